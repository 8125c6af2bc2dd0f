"""Train latent diffusion models from the first convolution on."""
