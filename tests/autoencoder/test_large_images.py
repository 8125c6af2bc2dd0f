"""512 and 1024 px: first stages build, run and keep their memory in bounds (requirement B12)."""

import pytest
import torch

from ldm_lightning.builders.first_stage import stored_first_stage
from ldm_lightning.planning.counter import without_memory
from ldm_lightning.planning.update_cost import count_forward
from ldm_lightning.restore.first_stage import rebuild_autoencoder
from tests.module.composed import compose_tiny


def composed(tmp_path, experiment, resolution):
    words = [f"resolution={resolution}", "loss.discriminator_start_steps=0"]
    cfg = compose_tiny(experiment, *words, folder=tmp_path)
    return stored_first_stage(cfg)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (512, 256)])
@pytest.mark.parametrize(("experiment", "factor"), [("kl_f8", 8), ("vqgan_f16", 16)])
def test_a_first_stage_runs_at_512_px(tmp_path, experiment, factor, height, width):
    stored = composed(tmp_path, experiment, f"[{height},{width}]")
    autoencoder, images = rebuild_autoencoder(stored).eval(), torch.rand(1, 3, height, width)
    with torch.no_grad():
        output = autoencoder(images)
    assert output.reconstructions.shape == images.shape
    assert output.bottleneck.latents.shape[2:] == (height // factor, width // factor)


@pytest.mark.parametrize("experiment", ["kl_f8", "vqgan_f16"])
def test_memory_grows_with_the_pixels_and_no_faster(tmp_path, experiment):
    """Attention at 1024 px and f 8 has 16,384 positions."""
    kept = {}
    for side in (256, 1024):
        stored = composed(tmp_path, experiment, side)
        with without_memory():
            autoencoder, images = rebuild_autoencoder(stored).eval(), torch.empty(1, 3, side, side)
            kept[side] = count_forward(lambda: autoencoder(images), autoencoder).kept_bytes  # noqa: B023
    assert kept[1024] == pytest.approx(16 * kept[256], rel=0.02)
