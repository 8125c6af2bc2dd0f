"""Images in folders: listing, decoding, splitting."""
