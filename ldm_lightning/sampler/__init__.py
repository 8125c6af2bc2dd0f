"""Pure functions from noise to latents, the time grids they walk, and guidance."""
