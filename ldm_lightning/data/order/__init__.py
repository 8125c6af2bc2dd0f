"""Which image comes next: sampling, shuffling, positions to resume from."""
