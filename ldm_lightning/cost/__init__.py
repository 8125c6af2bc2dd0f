"""What networks and updates cost: floating-point operations, bytes."""
