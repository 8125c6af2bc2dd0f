"""Checkpoint files: reading, writing, checking."""
