"""Training in several processes: how they start, are watched, and share gradients or weights."""
