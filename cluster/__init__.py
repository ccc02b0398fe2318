"""Submitting a command line to a cluster: knows nothing of what the command does, and imports nothing of `pipeline`."""
