"""Continuing a run: what it had, what a command may change, where it goes on."""
