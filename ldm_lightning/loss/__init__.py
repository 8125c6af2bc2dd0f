"""Terms on tensors. A loss never owns a network that is being trained."""
