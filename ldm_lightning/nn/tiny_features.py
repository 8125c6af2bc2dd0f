"""A small frozen classifier: features for a perceptual and a Fréchet distance, no download.

The network was trained by this project on CIFAR-10 (`experiments/tiny_features`; the record of that
training is `tiny_features.json` beside this file). It ships in the package, so its numbers exist on
a machine without a network; they carry their own names (`perceptual_tiny`, `rfd_tiny`, ...) and are
never compared with LPIPS or FID.

Sources: residual network: He et al. 2016, arXiv:1512.03385. Low-pass filter before subsampling:
Zhang 2019, arXiv:1904.11486. Distance between normalized features: Zhang et al. 2018,
arXiv:1801.03924, Eq. 1 with one fixed weight per stage instead of learned ones per channel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.storage.hashing import hash_tensors

WEIGHTS_PATH = Path(__file__).with_suffix(".safetensors")
RECORD_PATH = Path(__file__).with_suffix(".json")
PATCH_SIZE = 32  # pixels: the size of the images the network was trained on
# Chosen on 27 photographs of another set than the reported one; experiments/tiny_features/README.md
STAGE_WEIGHTS = (0.2, 0.2, 0.5, 0.1)
MIN_SIZE = 8  # pixels: the last stage has one eighth of the input's resolution


class BlurPool(nn.Module):
    """Halve the resolution: mean over 4x4 pixels at every second pixel.

    A maximum or a stride alone lets a shift by one pixel change everything behind it. The mean over
    four has its zeros at the two frequencies that alias to the lowest ones, and is one cheap
    operation. At the border only pixels inside the picture are averaged.
    [B, C, H, W] -> [B, C, H // 2, W // 2].
    """

    def forward(self, features: Tensor) -> Tensor:
        """Filter and subsample ``features``."""
        return F.avg_pool2d(features, 4, stride=2, padding=1, count_include_pad=False)


class ResidualBlock(nn.Module):
    """Add two 3x3 convolutions with ReLU to the input: [B, C, H, W] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features`` plus what the convolutions add."""
        return features + F.relu(self.conv2(F.relu(self.conv1(features))))


class TinyClassifier(nn.Module):
    """Residual classifier of 32-pixel images, with the normalization layers already folded away.

    Four levels at 1, 1/2, 1/4 and 1/8 of the input's resolution. Training inserts batch
    normalization behind every convolution and folds it back in afterward
    (`experiments/tiny_features/train.py`).
    """

    widths = (32, 48, 96, 128)
    feature_dim = 128
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        w0, w1, w2, w3 = self.widths
        self.stem = nn.Conv2d(3, w0, 3, padding=1)
        self.enter = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((w0, w1), (w1, w2), (w2, w3))
        )
        self.pool = BlurPool()
        self.blocks = nn.ModuleList(
            [
                ResidualBlock(w1),
                ResidualBlock(w2),
                nn.Sequential(ResidualBlock(w3), ResidualBlock(w3)),
            ]
        )
        self.head = nn.Linear(w3, self.num_classes)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Feature maps of all levels, finest first; see `TinyFeatures.stages`."""
        features = F.relu(self.stem(images))
        levels = [features]
        for enter, block in zip(self.enter, self.blocks, strict=True):
            features = block(self.pool(F.relu(enter(features))))
            levels.append(features)
        return levels

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [B, 10] of ``images`` [B, 3, H, W] in [-1, 1]."""
        return self.head(self.levels(images)[-1].mean(dim=(2, 3)))


class TinyFeatures(TinyClassifier):
    """The trained classifier, frozen: always in eval mode, no parameter requires a gradient.

    Args:
        weights: All tensors of `TinyClassifier`, by name; stored in any float type, used in
        float32.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        wrong = [
            f"{name}: expected {expected.get(name, 'no such tensor')}, found "
            f"{found.get(name, 'nothing')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if wrong:
            raise ValueError(
                f"These are not weights of TinyFeatures ({len(wrong)} tensors differ): "
                f"{'; '.join(wrong[:3])}. Use the packaged file, or train one with "
                "experiments/tiny_features/train.py."
            )
        # assign: the weights are real even where modules are being built on the meta device
        self.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        self.weights_hash = hash_tensors(self.state_dict())
        self.to(memory_format=torch.channels_last)  # a quarter faster on the CPU under bf16
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def pretrained(cls, path: Path = WEIGHTS_PATH) -> "TinyFeatures":
        """Load the packaged weights, or those in another safetensors file.

        Raises:
            ValueError: If the file is missing, unreadable, or holds the weights of another network.
        """
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"Cannot read the weights of the tiny feature network from {path}: {error}. "
                "Reinstall the package, or train them with experiments/tiny_features/train.py."
            ) from error
        try:
            return cls(weights)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def train(self, mode: bool = True) -> "TinyFeatures":
        """Stay in eval mode whatever ``mode``: a frozen network has nothing to train."""
        return super().train(False)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps for `feature_distance`, at the images' native scale.

        Fully convolutional, never resized: at any picture size, one position of the four stages
        sees a patch of at most 3, 16, 42 and 126 pixels across (training pictures had 32).

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 8.

        Returns:
            Maps [B, c_i, H // 2**i, W // 2**i], non-negative, with c_i = 32, 48, 96, 128.

        Raises:
            ValueError: If the images are not RGB or too small.
        """
        check_images(images)
        return self.levels(images)

    def embedding(self, images: Tensor) -> Tensor:
        """One vector per image for the Fréchet distance.

        The network judges 32-pixel pictures, so a larger image is shown to it in two ways: cut at
        native scale into a grid of 32-pixel patches, which show texture and sharpness, and as a
        whole, reduced by area to fit 32 x 32, which shows composition. The vector is half the mean
        over patches, half the whole. Patches cover the image evenly with as few as possible, so
        they overlap only where a side is no multiple of 32. An image of at most 32 x 32 is one
        patch, and the vector is its own.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 8.

        Returns:
            [B, 128], at least float32: the pooled features that feed the classifier's head.

        Raises:
            ValueError: If the images are not RGB or too small.
        """
        check_images(images)
        height, width = images.shape[2:]
        if max(height, width) <= PATCH_SIZE:
            return self._pooled(images)
        tall, wide = min(height, PATCH_SIZE), min(width, PATCH_SIZE)
        corners = [(y, x) for y in patch_starts(height) for x in patch_starts(width)]
        patches = sum(
            self._pooled(images[..., y : y + tall, x : x + wide]) for y, x in corners
        ) / len(corners)
        scale = PATCH_SIZE / max(height, width)
        size = [max(MIN_SIZE, round(side * scale)) for side in (height, width)]
        whole = self._pooled(F.interpolate(images, size=size, mode="area"))
        return (patches + whole) / 2

    def _pooled(self, images: Tensor) -> Tensor:
        """Mean of the last level over space, [B, 128], at least float32."""
        return at_least_float32(self.levels(images)[-1]).mean(dim=(2, 3))


def patch_starts(length: int) -> list[int]:
    """First pixels of the fewest patches of 32 that cover ``length`` pixels, evenly spaced."""
    if length <= PATCH_SIZE:
        return [0]
    intervals = -(-length // PATCH_SIZE) - 1
    return [round(i * (length - PATCH_SIZE) / intervals) for i in range(intervals + 1)]


def feature_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of channel-normalized features, weighted over stages.

    Source: Zhang et al. 2018, arXiv:1801.03924, Eq. 1. Differs from it: one weight per stage, not
    learned; the weights sum to 1. Features are non-negative, so the distance lies in [0, 2].

    Args:
        features_a: `TinyFeatures.stages` of the first images, each [B, c_i, h_i, w_i].
        features_b: The same of the second images.

    Returns:
        Distance per image, [B], at least float32, averaged over space: 0 for identical images.
        Typical values on photographs are in `experiments/tiny_features/README.md`.
    """
    terms = [
        weight * (unit_norm(a) - unit_norm(b)).square().sum(dim=1).mean(dim=(1, 2))
        for weight, a, b in zip(STAGE_WEIGHTS, features_a, features_b, strict=True)
    ]
    return torch.stack(terms).sum(dim=0)


def at_least_float32(features: Tensor) -> Tensor:
    """Widen half types, in which sums over channels or space lose digits; keep float64."""
    return features if features.dtype == torch.float64 else features.float()


def unit_norm(features: Tensor) -> Tensor:
    """Divide the features at each position by their norm over channels, in at least float32.

    The constant keeps the gradient finite where all features are 0; their mean square norm on
    photographs is 2 to 15.
    """
    features = at_least_float32(features)
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-3).rsqrt()


def check_images(images: Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` is [B, 3, H, W] with H and W at least 8."""
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"TinyFeatures takes images [B, 3, H, W] with H and W >= {MIN_SIZE}, got "
            f"{list(images.shape)}. Convert other channel counts to RGB first."
        )
