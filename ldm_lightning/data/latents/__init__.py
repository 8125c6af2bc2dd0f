"""Latents of a first stage, cached on disk."""
