"""Drawn shapes: images made from a seed, without files."""
