"""Networks that remove noise from latents."""
