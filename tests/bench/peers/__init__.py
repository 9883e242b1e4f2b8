"""What Dialogue is compared with: a module each, as its documentation has it; ``node`` has those for Node."""
