"""Tests of the older system's surface, topic by topic: ``README.md`` tells which test serves which."""
