"""Agents that are always there, and the tools they do real work with."""
