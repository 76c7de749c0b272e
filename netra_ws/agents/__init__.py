"""Thought: what users implement, the runs of it, and the tools they work with."""
