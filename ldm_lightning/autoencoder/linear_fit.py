"""Fit the two linear maps of ``linear`` to a sample of images, in seconds.

The encoder keeps the principal components of f x f patches, in which a patch's mean color counts
more than in plain pixels. The decoder is the least-squares map from 3x3 latents, as they leave the
bottleneck, to the patch in their middle: neighbors tell what continues across a patch's edge.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_lightning.autoencoder.lapped import LappedDecoder, LappedMoments
from ldm_lightning.autoencoder.linear import LinearMaps
from ldm_lightning.bottleneck.base import Bottleneck
from ldm_lightning.utils.image import from_uint8
from ldm_lightning.utils.random import generator_for

COLOR_GAIN = 2.0
"""Factor on the mean color of a patch before components are chosen.

Brightness varies so much more that four components of 8x8 RGB patches else hold one of the two
axes of color. Neighbors tell gradients of brightness to the decoder, but not a color: on
photographs at 64 px, f = 8 and c = 4, mean PSNR rises from 23.83 to 24.85 dB and the explained
variance of Cb and Cr from 0.77 to 0.97. From c = 6 on the components are the same as without.
"""

MAX_EXACT_SIZE = 1024
"""Values of a patch up to which all its components are computed; larger patches by iteration."""

NUM_ITERATIONS = 12
NUM_SPARE = 16
"""Rounds of the iteration, and directions it carries beyond those that are kept."""

LARGEST_LOGIT_INPUT = 0.95
"""Images are shrunk into this range before their logit is taken, which has no end at 1."""

PIXELS_A_CHUNK = 2**20
IMAGES_A_CUT = 64

MAX_SAMPLE_PIXELS, MAX_SAMPLE_IMAGES = 2**23, 2048
"""Size of the sample of training images; reading it takes longer than the fit."""


def sample_size(resolution: tuple[int, int]) -> int:
    """Images of height and width that the fit takes."""
    return max(1, min(MAX_SAMPLE_IMAGES, MAX_SAMPLE_PIXELS // math.prod(resolution)))


@dataclass(frozen=True)
class PatchComponents:
    """Principal components of patches.

    Attributes:
        mean: Of all patches, [D] with D = C * f * f.
        analysis: Maps a patch without its mean to components, [n, D]; n is at most D.
        synthesis: Maps components back to the nearest patch, [D, n].
        variances: Of each component, falling, [n].
    """

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor
    variances: Tensor

    def first(self, num_components: int) -> "PatchComponents":
        """Return the first of them, all where there are fewer."""
        kept = slice(num_components)
        return PatchComponents(
            self.mean, self.analysis[kept], self.synthesis[:, kept], self.variances[kept]
        )


def patches_of(images: Tensor, size: int) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, h, w, C * size * size] that do not overlap."""
    return F.pixel_unshuffle(images, size).movedim(1, -1)


def fit_components(images: Tensor, *, size: int, num_components: int) -> PatchComponents:
    """Fit principal components of the patches of images.

    Args:
        images: uint8 [N, C, H, W]; height and width are divisible by ``size``.
        size: Height and width of a patch, f.
        num_components: Components to keep; all D where there are fewer.
    """
    length = images.shape[1] * size**2
    kept = min(num_components, length)
    total, count = torch.zeros(length, dtype=torch.float64), 0
    for patches in _weighted_patches(images, size):
        total += patches.double().sum(dim=0)
        count += len(patches)
    mean = (total / count).float()
    find = _exact if length <= MAX_EXACT_SIZE else _iterated
    variances, directions = find(images, mean, size=size, kept=kept)
    # An eigenvector's sign is free: the largest entry is positive, so that every machine agrees.
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    directions = (directions * largest.sign()).float()
    return PatchComponents(
        mean=_weigh_color(mean[None], size, 1 / COLOR_GAIN)[0],
        analysis=_weigh_color(directions, size, COLOR_GAIN),
        synthesis=_weigh_color(directions, size, 1 / COLOR_GAIN).T,
        variances=(variances / count).clamp(min=0).float(),
    )


def _weigh_color(patches: Tensor, size: int, gain: float) -> Tensor:
    """Multiply the mean color of patches [N, D]: that of each channel less that of all channels."""
    channels = patches.view(len(patches), -1, size**2)
    color = (channels - channels.mean(dim=1, keepdim=True)).mean(dim=2, keepdim=True)
    return (channels + (gain - 1) * color).flatten(1)


def _weighted_patches(images: Tensor, size: int) -> Iterator[Tensor]:
    """Patches [N, D] of a chunk of images after another, their mean color amplified."""
    for chunk in _chunks(images):
        yield _weigh_color(patches_of(chunk, size).flatten(0, 2), size, COLOR_GAIN)


def _exact(images: Tensor, mean: Tensor, *, size: int, kept: int) -> tuple[Tensor, Tensor]:
    """Sums of squares along the leading directions [kept, D], and these."""
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for patches in _weighted_patches(images, size):
        centered = patches - mean
        scatter += (centered.T @ centered).double()
    values, vectors = torch.linalg.eigh(scatter)
    return values.flip(0)[:kept], vectors.flip(1)[:, :kept].T


def _iterated(images: Tensor, mean: Tensor, *, size: int, kept: int) -> tuple[Tensor, Tensor]:
    """The same by orthogonal iteration; no [D, D] table is held."""
    rows = images.new_empty(images.numel() // len(mean), len(mean))  # cut once for all rounds
    for part, cut in zip(
        images.split(IMAGES_A_CUT),
        rows.split(IMAGES_A_CUT * (len(rows) // len(images))),
        strict=True,
    ):
        cut.copy_(patches_of(part, size).flatten(0, 2))
    per_chunk = max(1, PIXELS_A_CHUNK // len(mean))

    def weighed(columns: Tensor) -> Tensor:
        return _weigh_color(columns.T.contiguous(), size, COLOR_GAIN)

    def centered() -> Iterator[Tensor]:
        for part in rows.split(per_chunk):
            yield from_uint8(part) - plain_mean

    # Weighing patches is a symmetric linear map: the few directions are weighed in their stead.
    plain_mean = _weigh_color(mean[None], size, 1 / COLOR_GAIN)[0]
    basis = torch.randn(len(mean), kept + NUM_SPARE, generator=generator_for("components", size))
    for _ in range(NUM_ITERATIONS):
        basis, _ = torch.linalg.qr(basis)
        product, directions = torch.zeros_like(basis), weighed(basis)
        for patches in centered():
            product += patches.T @ (patches @ directions.T)
        basis = weighed(product).T
    basis, _ = torch.linalg.qr(basis)
    within = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    directions = weighed(basis)
    for patches in centered():
        coordinates = patches @ directions.T
        within += (coordinates.T @ coordinates).double()
    values, rotation = torch.linalg.eigh(within)
    return values.flip(0)[:kept], (basis.double() @ rotation.flip(1)[:, :kept]).T


def fit_linear_maps(
    maps: LinearMaps, bottleneck: Bottleneck, images: Tensor, *, seed: int, logits: bool = False
) -> None:
    """Fit both maps to images, and place the bottleneck's codes on the components.

    Channels beyond a patch's values stay zero. Channels have unit variance each, or, where the
    bottleneck compares vectors, together: a code then stands for the patches nearest to it.

    Args:
        maps: Is changed.
        bottleneck: Is changed where it has codes; see ``Bottleneck.start_from``.
        images: uint8 [N, C, H, W]; height and width are divisible by the downsampling factor.
        seed: Of the codes.
        logits: Fit the logits of a Bernoulli likelihood instead of images.
    """
    components = fit_components(
        images, size=maps.downsampling_factor, num_components=maps.to_latents.out_channels
    )
    fit_to_components(maps, bottleneck, images, components, seed=seed, logits=logits)


@torch.no_grad()
def fit_to_components(
    maps: LinearMaps,
    bottleneck: Bottleneck,
    images: Tensor,
    components: PatchComponents,
    *,
    seed: int,
    logits: bool = False,
) -> None:
    """Fit both maps where the components of the images' patches are known.

    Args:
        maps: Is changed.
        bottleneck: Is changed where it has codes.
        images: As ``fit_linear_maps`` takes them.
        components: No more than the latents have channels.
        seed: Of the codes.
        logits: Fit the logits of a Bernoulli likelihood instead of images.
    """
    size, kept = maps.downsampling_factor, len(components.variances)
    deviations = _deviations(components)
    if bottleneck.compares_vectors:
        deviations = deviations.square().mean().sqrt().expand(kept)
    _set_encoder(maps, components, deviations)
    vectors = [maps.encode(chunk).movedim(1, -1).flatten(0, 2) for chunk in _chunks(images)]
    bottleneck.start_from(torch.cat(vectors), seed=seed)
    moments = LappedMoments(kept, len(components.mean))
    was_training = bottleneck.training
    bottleneck.eval()
    for chunk in _chunks(images):
        latents = bottleneck(_as_encoded(maps.encode(chunk), bottleneck)).latents
        target = _logit(chunk) if logits else chunk
        moments.add(latents[:, :kept], patches_of(target, size) - components.mean)
    bottleneck.train(was_training)
    _set_decoder(maps, components, moments.solve(components.synthesis * deviations))


@torch.no_grad()
def fit_channel_counts(
    images: Tensor, components: PatchComponents, *, size: int, channel_counts: Sequence[int]
) -> list[LinearMaps]:
    """Fit maps without a bottleneck for several numbers of channels, in one pass over the images.

    Args:
        images: uint8 [N, C, H, W]; height and width are divisible by ``size``.
        components: Of their patches, as many as the largest number of channels.
        size: Height and width of a patch, f.
        channel_counts: Channels of the latents, c.
    """
    maps = [
        LinearMaps(image_channels=images.shape[1], latent_channels=count, downsampling_factor=size)
        for count in channel_counts
    ]
    deviations = _deviations(components)
    moments = LappedMoments(len(deviations), len(components.mean))
    encoder = components.analysis / deviations[:, None]
    for chunk in _chunks(images, num_values=PIXELS_A_CHUNK // 4):  # 3x3 latents are 9 times them
        patches = patches_of(chunk, size) - components.mean
        moments.add((patches @ encoder.T).movedim(-1, 1), patches)
    for one in maps:
        first = components.first(one.to_latents.out_channels)
        _set_encoder(one, first, _deviations(first))
        _set_decoder(one, first, moments.solve(first.synthesis * _deviations(first)))
    return maps


def _deviations(components: PatchComponents) -> Tensor:
    """Standard deviation along each component, above zero: [n]."""
    return components.variances.clamp(min=1e-12).sqrt()


def _set_encoder(maps: LinearMaps, components: PatchComponents, scales: Tensor) -> None:
    """Let the latents be the components over scales [n]; further channels are zero."""
    kept = len(scales)
    encoder = components.analysis / scales[:, None]
    weight, bias = maps.to_latents.weight, maps.to_latents.bias
    assert bias is not None
    weight.zero_()
    weight[:kept] = encoder.view(kept, *weight.shape[1:])
    bias.zero_()
    bias[:kept] = -encoder @ components.mean


def _set_decoder(maps: LinearMaps, components: PatchComponents, decoder: LappedDecoder) -> None:
    """Let patches be what the decoder finds, about the mean patch."""
    weight, bias = maps.to_patches.weight, maps.to_patches.bias
    assert bias is not None
    weight.zero_()
    weight[:, : decoder.weight.shape[1]] = decoder.weight
    bias.copy_(components.mean + decoder.bias)


def _as_encoded(latents: Tensor, bottleneck: Bottleneck) -> Tensor:
    """Latents as a bottleneck takes them from an encoder; its further inputs are zero."""
    extra = [torch.zeros_like(latents)] * (bottleneck.inputs_per_channel - 1)
    return torch.cat([latents, *extra], dim=1)


def _logit(images: Tensor) -> Tensor:
    """Logit of a pixel's probability (x + 1) / 2."""
    return 2 * torch.atanh(images * LARGEST_LOGIT_INPUT)


def _chunks(images: Tensor, *, num_values: int = PIXELS_A_CHUNK) -> Iterator[Tensor]:
    """Images in [-1, 1], a bounded number of values at a time."""
    count = max(1, num_values // images[0].numel())
    for part in images.split(count):
        yield from_uint8(part)
