"""Windows: what can be seen from outside without a socket. Read only."""
