"""Cost of a run before it starts: counted, then measured on a few updates."""
