"""What a key of the configuration may hold, checked before torch is imported."""
