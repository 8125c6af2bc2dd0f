"""From a batch to what a denoiser is conditioned on."""
