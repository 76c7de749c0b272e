"""Runs AI agents for many users and streams what they do over WebSockets, on Trio."""

__version__ = "0.1.0"
