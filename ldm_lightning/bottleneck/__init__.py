"""The part between encoder and decoder: identity, Gaussian posterior, vector quantizer."""
