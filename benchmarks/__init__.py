"""Side-by-side timings; ratios of interleaved runs, never absolute times."""
