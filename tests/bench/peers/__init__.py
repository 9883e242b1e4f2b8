"""What Dialogue is compared with: programs that do the same, or the least of it, without it."""
