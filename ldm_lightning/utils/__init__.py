"""What every folder may use: image conversion, randomness, processes, files."""
