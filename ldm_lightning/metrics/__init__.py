"""Numbers on images and latents, for validation and evaluation; nothing here is trained."""
