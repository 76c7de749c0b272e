"""Life: the nursery of each user, and everything in it."""
