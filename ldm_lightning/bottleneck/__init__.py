"""What sits between encoder and decoder: identity, Gaussian posterior, vector quantizer."""
