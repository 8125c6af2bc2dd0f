import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ldm_lightning.metrics.features import TinyExtractor
from ldm_lightning.utils.pretrained import WEIGHT_FILES


@pytest.fixture(scope="session")
def inception_dir(tmp_path_factory):
    """A folder with random Inception weights of the published structure."""
    folder = tmp_path_factory.mktemp("inception")
    path = folder / WEIGHT_FILES["inception"]
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, weights: None)
        torch.save({}, path)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    torch.save(network.state_dict(), path)
    return folder


@pytest.fixture
def extractor():
    return TinyExtractor()


@pytest.fixture(scope="session")
def pictures():
    """Make smooth random pictures in [-1, 1], each of its own color."""

    def make(count, *, seed=0, size=(32, 32), channels=3):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, channels, 4, 4, generator=generator)
        fine = torch.randn(count, channels, *size, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
        return (0.5 * smooth + 0.1 * fine).clamp(-1, 1)

    return make
