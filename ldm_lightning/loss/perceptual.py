"""Perceptual distances: how far two images are apart in the features of a frozen network.

Sources: LPIPS: Zhang et al. 2018, arXiv:1801.03924, Eq. 1, through the `lpips` package, version
0.1 of its heads. The tiny distance is the same formula on the features of `nn/tiny_features.py`,
with all channel weights 1.

The same classes serve as a loss and as a metric. A feature network is no part of what is trained,
so it is kept out of the module tree: it appears in no state_dict, no optimizer, no average of
weights and no DDP bucket, and `.train()` does not reach it; `.to(...)` does.
"""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ldm_lightning.nn.tiny_features import MIN_SIZE as TINY_MIN_SIZE
from ldm_lightning.nn.tiny_features import TinyFeatures, feature_distance
from ldm_lightning.storage.hashing import hash_tensors
from ldm_lightning.utils.pretrained import load_weights

LpipsNet = Literal["alex", "vgg", "squeeze"]

BACKBONES: dict[str, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""Key of `utils.pretrained.WEIGHT_FILES` by the name that the `lpips` package uses."""

LPIPS_MIN_SIZE: dict[str, int] = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Smallest side in pixels at which no feature map of the backbone is empty."""


def gray_triplets(images: Tensor) -> Tensor:
    """Show images with any number of channels to a network that was trained on RGB.

    RGB passes unchanged and one channel is repeated. Any other C has no colors a photograph
    network could know, so every channel becomes a gray image of its own; whoever calls averages
    over the C results.

    Args:
        images: [B, C, H, W].

    Returns:
        [B * G, 3, H, W], image by image, with G = 1 for C in (1, 3) and G = C otherwise.
    """
    batch, channels, height, width = images.shape
    if channels == 3:
        return images
    return images.reshape(batch * channels, 1, height, width).expand(-1, 3, -1, -1)


class PerceptualLoss(nn.Module):
    """Distance per image in the features of a frozen network; subclasses say which.

    Args:
        network: The feature network; frozen here and kept out of the module tree.
        feature_network: Its name, for the protocol of a figure.
        weights_hash: SHA-256 of its weights, for the same protocol.
        min_size: Smallest side of an image in pixels that it can see.
    """

    feature_network: str
    weights_hash: str
    min_size: int

    def __init__(
        self, network: nn.Module, *, feature_network: str, weights_hash: str, min_size: int
    ) -> None:
        super().__init__()
        self.feature_network = feature_network
        self.weights_hash = weights_hash
        self.min_size = min_size
        # A tuple hides the network from nn.Module, which registers only modules.
        self._frozen = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> nn.Module:
        """The frozen feature network."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the hidden network along with ``.to()``, ``.cuda()`` and ``.double()``."""
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Measure the distance of each reconstruction from its image.

        Gradients reach ``reconstructions`` alone. The features of ``images`` are computed without a
        graph, so one use as a loss costs two forward passes and one backward pass of the network.

        Args:
            reconstructions: [B, C, H, W] in [-1, 1]; values beyond are taken as they are.
            images: [B, C, H, W] in [-1, 1].

        Returns:
            Distance per image, [B]: 0 for equal images.

        Raises:
            ValueError: If shapes differ, or images are too small for the network.
        """
        check_pair(reconstructions, images)
        if min(images.shape[2:]) < self.min_size:
            raise ValueError(
                f"{self.feature_network} needs images of at least {self.min_size} pixels a side, "
                f"got {images.shape[2]}x{images.shape[3]}; take larger images or features=tiny."
            )
        with torch.no_grad():
            targets = self.features(gray_triplets(images))
        distances = self.distance(self.features(gray_triplets(reconstructions)), targets)
        return distances.reshape(images.shape[0], -1).mean(dim=1)

    @abstractmethod
    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps [B, c_i, h_i, w_i] of RGB images [B, 3, H, W] in [-1, 1]."""

    @abstractmethod
    def distance(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Distance [B] between two lists of feature maps."""


class TinyPerceptual(PerceptualLoss):
    """Perceptual distance in the features that ship with this package; needs no download."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):  # layers are initialized before they are loaded
            network = TinyFeatures.pretrained()
        super().__init__(
            network,
            feature_network="tiny",
            weights_hash=network.weights_hash,
            min_size=TINY_MIN_SIZE,
        )

    @classmethod
    def without_weights(cls) -> Self:
        """The same: its weights ship with the package."""
        return cls()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """All stages of the tiny network."""
        stages: list[Tensor] = self.network.stages(images)  # type: ignore[operator]
        return stages

    def distance(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Channel-normalized squared differences, summed over stages."""
        return feature_distance(features, targets)


class Lpips(PerceptualLoss):
    """LPIPS with the weights of the `lpips` package.

    Backbones come from torchvision's weight files (`utils/pretrained.py`), heads from the package
    itself.

    Args:
        net: Backbone: "alex" is customary for measuring, "vgg" for training.
        weights_dir: Directory of the backbone's file; ``None`` means torch's hub cache.

    Raises:
        MissingWeightsError: If the backbone's file is missing and cannot be downloaded.
        ValueError: If ``net`` is unknown, or the file holds another network.
    """

    def __init__(self, net: LpipsNet = "vgg", *, weights_dir: str | Path | None = None) -> None:
        _check_net(net)
        network = _build_lpips(net, load_weights(BACKBONES[net], weights_dir=weights_dir))
        self._hold(network, net, weights_hash=hash_tensors(network.state_dict()))

    @classmethod
    def without_weights(
        cls, net: LpipsNet = "vgg", *, weights_dir: str | Path | None = None
    ) -> Self:
        """The network on the meta device, to count or time what it costs; measures nothing.

        Args:
            net: As above.
            weights_dir: Not looked at.

        Raises:
            ValueError: If ``net`` is unknown.
        """
        _check_net(net)
        sized = cls.__new__(cls)
        sized._hold(_lpips_without_weights(net), net, weights_hash="")
        return sized

    def _hold(self, network: nn.Module, net: LpipsNet, *, weights_hash: str) -> None:
        super().__init__(
            network,
            feature_network=f"lpips_{net}",
            weights_hash=weights_hash,
            min_size=LPIPS_MIN_SIZE[net],
        )

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps behind the backbone's ReLUs, normalized over channels.

        A position where every channel is 0 keeps a zero vector and passes no gradient; the
        package's own square root would pass NaN.
        """
        maps = self.network.net(self.network.scaling_layer(images))  # type: ignore[operator]
        # float() also where autocast chose a half type: norms over 512 channels need its precision
        return [_unit_norm(features) for features in maps]

    def distance(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Squared differences, weighted by the heads, averaged over space, summed over layers."""
        total = features[0].new_zeros(features[0].shape[0])
        for a, b, head in zip(features, targets, self.network.lins, strict=True):  # type: ignore[arg-type]
            # the package's 1x1 convolution, written out: autocast would round it to a half type
            weight = head.model[-1].weight.to(a.dtype)  # [1, c, 1, 1]
            total = total + ((a - b).square() * weight).sum(dim=1).mean(dim=(1, 2))
        return total


def check_pair(reconstructions: Tensor, images: Tensor) -> None:
    """Refuse reconstructions that cannot be compared with their images, element by element.

    Raises:
        ValueError: If the two are not of one shape [B, C, H, W].
    """
    if reconstructions.shape != images.shape or images.ndim != 4:
        raise ValueError(
            "reconstructions and images must have one shape [B, C, H, W], got "
            f"{list(reconstructions.shape)} and {list(images.shape)}."
        )


def _unit_norm(features: Tensor) -> Tensor:
    features = features if features.dtype == torch.float64 else features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _check_net(net: str) -> None:
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {', '.join(BACKBONES)}, got {net!r}.")


def _lpips_without_weights(net: str) -> nn.Module:
    """The package's network on the meta device.

    There the random initialization that is replaced anyway costs no time, no memory (VGG's unused
    classifier alone is 0.5 GB) and no random numbers of the run.
    """
    with warnings.catch_warnings():
        # lpips 0.1.4 calls torchvision with arguments that were deprecated in torchvision 0.13
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        import lpips

        with torch.device("meta"):
            return lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)


def _build_lpips(net: str, backbone: dict[str, Tensor]) -> nn.Module:
    """Build the package's network without its own loading, which downloads."""
    import lpips

    network = _lpips_without_weights(net)
    heads_path = Path(inspect.getfile(lpips)).parent / "weights" / "v0.1" / f"{net}.pth"
    heads = torch.load(heads_path, map_location="cpu", weights_only=True)
    state = {
        name: value for name, value in network.state_dict().items() if name.startswith("scaling_")
    }
    for name, value in heads.items():
        state[name] = value
        state[name.replace("lin", "lins.", 1)] = value  # the package registers each head twice
    for name in network.get_submodule("net").state_dict():
        # net.slice2.3.weight is torchvision's features.3.weight
        source = f"features.{name.split('.', 1)[1]}"
        if source in backbone:
            state[f"net.{name}"] = backbone[source]
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"The weight file of {BACKBONES[net]} does not hold that network: {error}. Delete it "
            "and fetch it again."
        ) from error
    return network
