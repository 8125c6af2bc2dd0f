"""Codes that are placed, not learned, are in the moving average at once; all else glides."""

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.callbacks.ema import Ema
from tests.cli.run import command, run_folder, tensors_of, tiny
from tests.module.small import loader, quantizer, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

DECAY = 0.9
CODES = "bottleneck.embedding.weight"


class Recorder(pl.Callback):
    """Keeps, by update: the codes, another weight, their averages, and which codes were placed."""

    def __init__(self, ema):
        self.ema, self.weights, self.averages, self.placed = ema, [], [], []

    def on_train_start(self, trainer, pl_module):
        self._keep(pl_module)
        take = pl_module.take_assigned

        def taken():
            assigned = take()
            self.placed.append(assigned.get(CODES))
            return assigned

        pl_module.take_assigned = taken

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == len(self.weights):
            self._keep(pl_module)

    def _keep(self, pl_module):
        parameters = dict(pl_module.averaged.named_parameters())
        self.weights.append({name: value.detach().clone() for name, value in parameters.items()})
        averages = self.ema._averages or parameters
        self.averages.append({name: value.detach().clone() for name, value in averages.items()})


def recorded(tmp_path, *, accumulate_batches=1, **settings):
    ema = Ema(decay=DECAY, warm_up=False)
    recorder = Recorder(ema)
    module = small_module(
        bottleneck=quantizer(**settings), start_step=None, accumulate_batches=accumulate_batches
    )
    run = trainer(tmp_path, max_steps=6, callbacks=[ema, recorder], limit_val_batches=0)
    run.fit(module, loader(6 * accumulate_batches, batch_size=2))
    assert len(recorder.placed) == 6
    return recorder


@pytest.mark.parametrize(
    ("settings", "placing", "accumulate_batches"),
    [
        ({"quantize_start_step": 2}, [2], 1),
        ({"restart_every_steps": 3}, [3, 6], 2),
        ({"quantize_start_step": 2, "restart_every_steps": 2}, [2, 4, 6], 1),
    ],
)
def test_placed_codes_equal_the_average_and_all_else_follows_the_formula(
    tmp_path, settings, placing, accumulate_batches
):
    seen = recorded(tmp_path, accumulate_batches=accumulate_batches, **settings)
    assert [t for t, rows in enumerate(seen.placed, start=1) if rows is not None] == placing
    kept = moved = 0
    for t, rows in enumerate(seen.placed, start=1):
        for name, value in seen.weights[t].items():
            expected = DECAY * seen.averages[t - 1][name] + (1 - DECAY) * value
            if name == CODES and rows is not None:
                moved += int(rows.sum())
                assert torch.equal(seen.averages[t][name][rows], value[rows])
                expected[rows] = value[rows]
                kept += int((~rows).sum())
            torch.testing.assert_close(seen.averages[t][name], expected, rtol=1e-6, atol=1e-7)
    assert moved > 0
    assert (kept > 0) == ("restart_every_steps" in settings)  # used codes stayed, and glided


def test_a_codebook_without_placing_glides_as_a_whole(tmp_path):
    seen = recorded(tmp_path)
    assert seen.placed == [None] * 6


@pytest.mark.slow
def test_a_run_continued_right_after_placing_equals_the_uninterrupted_one(tmp_path):
    words = tiny(
        "vqvae_f8",
        bottleneck__num_codes=64,
        bottleneck__quantize_start_step=2,
        bottleneck__restart_every_steps=3,
        accumulate_batches=2,
        validation__every_steps=5,
    )
    ends = []
    for number, steps in enumerate(([7], [2, 3, 7])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for start, max_steps in enumerate(steps):
            more = [f"resume={run_folder(folder, 'vqvae_f8')}"] if start else []
            ended = command("train", [*words, *more, f"max_steps={max_steps}"], folder)
            assert ended.code == 0, ended.output
        last = run_folder(folder, "vqvae_f8") / "checkpoints" / "last.ckpt"
        ends.append(tensors_of(torch.load(last, weights_only=True)))
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
