"""The jobs of a sweep: their folders, their processes, what they have reached."""
