"""Noise schedules, parametrizations, weightings, and the process that joins them."""
