"""Learning-rate schedule."""

import pytest

from ldm_lightning.module.learning_rate import WarmupDecay


def test_warm_up_rises_to_one_and_decay_ends_at_the_last_fraction():
    schedule = WarmupDecay(
        max_steps=100, warmup_steps=4, decay_start_fraction=0.5, final_fraction=0.1
    )
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(49) == 1.0
    assert schedule(75) == pytest.approx(0.55)
    assert schedule(100) == pytest.approx(0.1)
    assert schedule(1000) == pytest.approx(0.1)


def test_without_decay_the_rate_stays():
    assert WarmupDecay(max_steps=10)(10_000) == 1.0


def test_shares_outside_zero_to_one_are_refused():
    with pytest.raises(ValueError, match=r"decay_start_fraction.*\[0, 1\].*\b1\.5\b"):
        WarmupDecay(max_steps=10, decay_start_fraction=1.5)
