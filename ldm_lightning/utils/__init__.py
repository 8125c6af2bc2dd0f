"""Helpers for every folder: image conversion, randomness, processes, files."""
