import math

import numpy as np
import pytest
import torch

from ldm_lightning.callbacks.distributions import Distributions, spread_of, use_of_codes
from tests.callbacks.recorder import Recorder
from tests.callbacks.tiny_module import TinyModule, TinyReport, fit, make_trainer


@pytest.mark.parametrize("num_codes", [1, 7, 512, 513, 1000, 16384])
def test_every_use_of_a_code_is_in_one_bar_at_its_place(num_codes):
    counts = torch.randint(0, 9, (num_codes,), generator=torch.Generator().manual_seed(num_codes))
    heights, edges = use_of_codes(counts)
    assert len(heights) == len(edges) - 1 == min(num_codes, 512)
    assert (edges[0], edges[-1]) == (0, num_codes)
    for height, start, end in zip(heights, edges[:-1], edges[1:], strict=True):
        assert end > start
        assert height == counts[start:end].sum()


def test_channels_are_counted_between_their_extremes_and_nan_nowhere():
    values = [0.25, -1.0, 0.5, math.nan, 0.5, math.inf]
    heights, edges = spread_of(values)
    assert (sum(heights), heights[-1]) == (4, 2)
    assert (edges[0], edges[-1]) == (-1.0, 0.5)
    assert np.all(np.diff(edges) > 0)


def test_what_the_report_holds_is_shown_after_each_validation():
    module, recorder = TinyModule(), Recorder()
    module.next_report = TinyReport(
        per_channel={"latent/mean": [0.0, 1.0], "latent/std": [1.0, 1.0]},
        codebook_histogram=torch.tensor([3, 0, 5]),
    )
    trainer = make_trainer(
        [Distributions()], max_steps=10, logger=recorder, enable_checkpointing=False
    )
    fit(trainer, module)
    names = ["codebook/histogram", "latent/channel_means", "latent/channel_stds"]
    assert [(name, step) for name, _, _, step in recorder.histograms] == [
        (name, step) for step in (5, 10) for name in names
    ]
    assert recorder.histograms[0][1:3] == ([3, 0, 5], [0, 1, 2, 3])


def test_without_codes_there_is_no_histogram_of_them():
    module, recorder = TinyModule(), Recorder()
    module.next_report = TinyReport()
    fit(
        make_trainer([Distributions()], max_steps=5, logger=recorder, enable_checkpointing=False),
        module,
    )
    assert recorder.histograms == []
