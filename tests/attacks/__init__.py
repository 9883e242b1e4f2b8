"""What an attacker may try, over real sockets."""
