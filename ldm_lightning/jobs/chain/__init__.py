"""A chain: first stage, latents, second stage, samples, evaluation."""
