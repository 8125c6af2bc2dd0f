"""From a checkpoint or run folder back to objects."""
