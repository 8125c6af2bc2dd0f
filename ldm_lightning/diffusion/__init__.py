"""Noise schedules, parametrisations, weightings, and the process that joins them."""
