"""The run folder: its path, its files, its lock."""
