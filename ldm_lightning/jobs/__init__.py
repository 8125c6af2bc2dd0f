"""Work of several processes in order: chains and sweeps."""
