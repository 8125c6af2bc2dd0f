"""Minutes to equal quality: our first stages against the recipe that they come from."""
