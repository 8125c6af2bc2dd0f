"""Checks of a composed configuration, made before torch is imported."""
