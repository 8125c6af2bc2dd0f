"""A sweep: one training process a job, a few at a time."""
