"""Everything around an update: averages, checkpoints, pictures, alarms, progress."""
