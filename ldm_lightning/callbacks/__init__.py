"""What is not needed to compute an update: averages, checkpoints, pictures, alarms, progress."""
