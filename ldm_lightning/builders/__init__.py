"""From configuration to objects: networks, losses, data, callbacks, the trainer."""
