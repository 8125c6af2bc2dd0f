"""What a run will cost before it starts: counted, then measured on a few updates."""
