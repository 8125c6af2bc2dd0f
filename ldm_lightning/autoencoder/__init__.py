"""Encoder, decoder, and the autoencoder that joins them around a bottleneck."""
