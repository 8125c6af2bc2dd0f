"""Measuring trained models: a first stage on images, sets of images, the gate."""
