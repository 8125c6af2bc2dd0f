import torch

from ldm_lightning.bottleneck.identity import IdentityBottleneck


def test_latents_pass_as_they_are_without_terms_noise_or_codes():
    bottleneck, encoded = IdentityBottleneck(), torch.randn(2, 3, 4, 4)
    output = bottleneck(encoded, noise=torch.randn(2, 3, 4, 4))
    assert output.latents is output.continuous is encoded
    assert (dict(output.terms), output.variance, output.indices) == ({}, None, None)
    assert (bottleneck.inputs_per_channel, bottleneck.is_stochastic) == (1, False)
    assert bottleneck.take_assigned() == {}
