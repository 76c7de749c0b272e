"""Random input for everything that reads a client's bytes; ``python -m tests.fuzz --help``."""
