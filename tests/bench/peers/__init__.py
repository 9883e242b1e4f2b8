"""What Dialogue is compared with, each as its documentation has it; ``node`` has those for Node."""
