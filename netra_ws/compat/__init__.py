"""The older system's names, with Trio: a thin face over contexts, streams and runs."""
