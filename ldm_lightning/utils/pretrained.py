"""Files of the standard feature networks' weights, and their download.

Files are looked for in torch's hub cache, ``$TORCH_HOME/hub/checkpoints`` (by default
``~/.cache/torch/hub/checkpoints``), and downloaded there where a network exists. An explicit
directory is looked at alone and nothing is downloaded into it. Every file is read with
``weights_only=True``.
"""

import hashlib
import io
import logging
import pickle
import threading
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHT_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg16": "vgg16-397923af.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    "inception": "weights-inception-2015-12-05-6726825d.pth",
}
"""File by network. The last eight hex digits of a name begin the file's SHA-256."""

NETWORK_TIMEOUT_SECONDS = 5.0
"""How long to wait for an answer before a file counts as not downloadable."""


class MissingWeightsError(FileNotFoundError):
    """Weights that a feature network needs are not here and cannot be downloaded."""


def weights_path(network: str, *, weights_dir: str | Path | None = None) -> Path:
    """Find the weights of one network, downloading them where that is possible.

    Args:
        network: A key of ``WEIGHT_FILES``.
        weights_dir: Look in this directory alone; ``None`` means torch's hub cache.

    Raises:
        MissingWeightsError: If the file is missing and cannot be downloaded.
        ValueError: If the network is unknown.
    """
    return require_weights([network], weights_dir=weights_dir)[network]


def require_weights(
    networks: Iterable[str], *, weights_dir: str | Path | None = None
) -> dict[str, Path]:
    """Make sure that all weights are here before any work begins; name every missing file at once.

    Args:
        networks: Keys of ``WEIGHT_FILES``.
        weights_dir: Look in this directory alone; ``None`` means torch's hub cache.

    Returns:
        Path by network.

    Raises:
        MissingWeightsError: If a file is missing and cannot be downloaded.
        ValueError: If a network is unknown.
    """
    names = list(networks)
    unknown = [name for name in names if name not in WEIGHT_FILES]
    if unknown:
        raise ValueError(
            f"No weights are known for {', '.join(map(repr, unknown))}; choose from "
            f"{', '.join(WEIGHT_FILES)}."
        )
    directory = _directory(weights_dir)
    paths = {name: directory / WEIGHT_FILES[name] for name in names}
    missing = {name: path for name, path in paths.items() if not path.is_file()}
    if missing and weights_dir is None:
        missing = _download_all(missing)
    if missing:
        files = ", ".join(path.name for path in missing.values())
        raise MissingWeightsError(
            f"Weights of {', '.join(missing)} are missing: {files}. Put them into {directory} "
            "under exactly these names (copied from a machine with a network, where torchvision "
            "and torch-fidelity download them), or choose features=tiny, which needs no download."
        )
    return paths


def load_weights(network: str, *, weights_dir: str | Path | None = None) -> dict[str, Tensor]:
    """Read the state dict of one network to the CPU.

    Raises:
        MissingWeightsError: If the file is missing and cannot be downloaded.
        ValueError: If the file is not a state dict of plain tensors.
    """
    return parse_weights(read_weights(network, weights_dir=weights_dir), network)


def read_weights(network: str, *, weights_dir: str | Path | None = None) -> bytes:
    """Read a weight file, warning where it is not the published one.

    Raises:
        MissingWeightsError: If the file is missing and cannot be downloaded.
    """
    path = weights_path(network, weights_dir=weights_dir)
    content = path.read_bytes()
    expected = path.stem.rsplit("-", 1)[-1]
    if not hashlib.sha256(content).hexdigest().startswith(expected):
        logger.warning(
            "%s is not the published file (its SHA-256 does not begin with %s): figures made with "
            "it cannot be compared with anyone else's.",
            path,
            expected,
        )
    return content


def parse_weights(content: bytes, network: str) -> dict[str, Tensor]:
    """Turn the bytes of a weight file into tensors, refusing anything that is more than tensors.

    Raises:
        ValueError: If the bytes are not a state dict of plain tensors.
    """
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"The weight file of {network} ({WEIGHT_FILES[network]}) cannot be read as plain "
            "tensors; delete it and fetch it again."
        ) from error
    is_state_dict = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
    if not is_state_dict:
        raise ValueError(
            f"The weight file of {network} ({WEIGHT_FILES[network]}) must hold a dict of tensors, "
            f"got {type(weights).__name__}; delete it and fetch it again."
        )
    return dict(weights)


def _directory(weights_dir: str | Path | None) -> Path:
    if weights_dir is not None:
        return Path(weights_dir).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints"


def _download_all(missing: dict[str, Path]) -> dict[str, Path]:
    """Download what can be had and return what is still missing."""
    still_missing = dict(missing)
    for name, path in missing.items():
        url = _url(name)
        if not _answers(url):
            logger.warning("%s cannot be downloaded: no answer from the network.", path.name)
            break
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            logger.info("Downloading %s to %s", path.name, path.parent)
            hash_prefix = path.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=False)
        except (OSError, RuntimeError) as error:
            logger.warning("%s cannot be downloaded: %s", path.name, error)
            continue
        del still_missing[name]
    return still_missing


def _url(network: str) -> str:
    """Address of a weight file, as the package that published it knows it."""
    if network == "inception":
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return str(URL_INCEPTION_V3)
    from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

    published = {
        "alexnet": AlexNet_Weights,
        "vgg16": VGG16_Weights,
        "squeezenet1_1": SqueezeNet1_1_Weights,
    }
    return str(published[network].IMAGENET1K_V1.url)


def _answers(url: str) -> bool:
    """Return whether the address answers in time.

    A thread bounds the wait, because looking up a host's name obeys no timeout of ours.
    """
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            # The address is one that torchvision or torch-fidelity publishes.
            with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_SECONDS):  # nosec B310
                answered.set()
        except (OSError, ValueError):
            logger.debug("No answer for %s", url, exc_info=True)

    thread = threading.Thread(target=ask, daemon=True, name="weights-probe")
    thread.start()
    thread.join(NETWORK_TIMEOUT_SECONDS)
    return answered.is_set()
