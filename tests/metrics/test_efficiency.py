import torch

from ldm_lightning.metrics.efficiency import bits_per_pixel, compression_ratio, measure_throughput
from tests.module.small import quantizer, small_module


def test_compression_and_bits_are_those_of_the_shapes():
    """At 4x downsampling, 3 x 16 x 16 numbers become 4 x 4 x 4; 8 codes are 3 bits of 16 pixels."""
    autoencoder = small_module(bottleneck=quantizer()).autoencoder
    assert compression_ratio(autoencoder, (2, 3, 16, 16)) == 12.0
    assert bits_per_pixel(autoencoder) == 3 / 16
    assert bits_per_pixel(small_module().autoencoder) is None


def test_throughput_is_the_batch_over_the_median_time(monkeypatch):
    """Each encoding takes 1, 1, 2, 3 s and each decoding 4 s, of which the first do not count."""
    ticks = [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]
    marks = iter([mark for second in ticks for mark in (0.0, second)])
    monkeypatch.setattr("time.perf_counter", lambda: next(marks))
    autoencoder = small_module().autoencoder.eval()
    measured = measure_throughput(autoencoder, torch.zeros(2, 3, 16, 16), num_repeats=3)
    assert measured.encode_images_per_s == 1.0
    assert measured.decode_images_per_s == 0.5
