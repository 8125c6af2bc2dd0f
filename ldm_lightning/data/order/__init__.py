"""Order of images: sampling, shuffling, positions to resume from."""
