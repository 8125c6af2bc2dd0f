import logging

import pytest
import torch

from ldm_lightning.callbacks.codebook_alarm import CodebookAlarm
from tests.callbacks.tiny_module import TinyModule, TinyReport, fit, make_trainer


def alarms_of(histograms, **options):
    module = TinyModule()
    reports = iter(histograms)

    def next_report(module, batch_idx):
        if batch_idx == 0:
            module.next_report = TinyReport(codebook_histogram=next(reports), num_images=8)

    module.on_validation_batch = next_report
    callback = CodebookAlarm(**options)
    settings = {"val_check_interval": 1, "enable_checkpointing": False}
    fit(make_trainer([callback], max_steps=len(histograms), **settings), module)
    return callback.alarms


def histogram_with(num_used):
    counts = torch.zeros(100)
    counts[:num_used] = 70
    return counts


def test_warns_after_low_perplexity_in_consecutive_validations(caplog):
    with caplog.at_level(logging.WARNING):
        alarms = alarms_of([histogram_with(4)] * 3, patience=2)
    assert len(alarms) == 1
    for fact in (
        "Update 2",
        "4.0 of 100 codes",
        "4.0% are used",
        "96 are dead",
        "8 validation images",
    ):
        assert fact in alarms[0]
    for remedy in ("quantize_start_step", "restart_every_steps", "normalize=true", "num_codes"):
        assert remedy in caplog.text


def test_is_silent_at_the_threshold_and_above():
    assert alarms_of([histogram_with(5)] * 4, patience=1, perplexity_fraction=0.05) == []


def test_codes_that_so_few_positions_cannot_reach_are_not_missed():
    counts = torch.zeros(10_000)
    counts[:100] = 1  # 100 positions, every one with a code of its own
    assert alarms_of([counts] * 4, patience=1, perplexity_fraction=0.05) == []


def test_a_good_validation_starts_the_count_anew():
    low, good = histogram_with(3), histogram_with(50)
    assert alarms_of([low, good, low, good], patience=2) == []


def test_repeats_itself_while_nothing_changes():
    assert len(alarms_of([histogram_with(3)] * 6, patience=2)) == 3


def test_models_without_codes_are_left_alone():
    assert alarms_of([None] * 4, patience=1) == []


@pytest.mark.parametrize(
    "options", [{"perplexity_fraction": 0.0}, {"perplexity_fraction": 1.0}, {"patience": 0}]
)
def test_refuses_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="perplexity_fraction < 1.*patience >= 1"):
        CodebookAlarm(**options)
