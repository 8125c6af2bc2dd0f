import dataclasses
import math
import re

import pytest

from ldm_lightning.metrics.diagnosis import FirstStageFacts, likely_causes

# kl_f4 on shapes at 32 px, scale=cpu: its validation, and the same weights with a perturbed decoder
GOOD = {
    "val/psnr": 20.33,
    "val/perceptual_tiny": 0.2515,
    "val/rfd_tiny": 0.6113,
    "val/kl": 12196.0,
    "latent/std": 9.475,
}
FACTS = FirstStageFacts(
    num_latents=256,
    num_positions=512 * 64,
    downsampling_factor=4,
    kl_weight=1e-6,
    gray_psnr=11.5,
    trained=GOOD,
    same_images=True,
    psnr_rise=0.1,
)
ALL = frozenset(GOOD)
PSNR = frozenset({"val/psnr"})


def names(metrics, failed, facts):
    return [cause.name for cause in likely_causes(metrics, failed, facts)]


def with_facts(**changes):
    return dataclasses.replace(FACTS, **changes)


def test_nothing_is_wrong_where_nothing_failed():
    assert likely_causes(GOOD, frozenset(), FACTS) == ()


def test_weights_changed_since_their_own_validation_are_damaged_and_the_latents_say_where():
    decoder = {**GOOD, "val/psnr": 17.42}
    (cause,) = likely_causes(decoder, PSNR, FACTS)
    assert cause.name == "damaged_weights"
    assert all(part in cause.evidence for part in ("17.42 dB", "20.33 dB", "val/kl is 12196"))
    assert cause.evidence.index("decoder") < cause.evidence.index("encoder")
    encoder = {**decoder, "val/kl": 900.0}
    (cause,) = likely_causes(encoder, PSNR, FACTS)
    assert re.search(r"val/kl is 900\b.*\b12196\b", cause.evidence)
    assert "decoder" not in cause.evidence


def test_without_a_record_damage_shows_where_gray_images_would_be_better():
    unknown = with_facts(trained={}, same_images=False, psnr_rise=None)
    (cause,) = likely_causes({**GOOD, "val/psnr": 8.0}, PSNR, unknown)
    assert cause.name == "damaged_weights"
    assert "11.5 dB" in cause.evidence
    (cause,) = likely_causes({**GOOD, "val/psnr": 15.0}, PSNR, unknown)
    assert cause.name == "poor_reconstruction"
    assert "damaged weights" in cause.evidence


def test_a_poor_figure_that_training_had_as_well_is_no_damage():
    poor = {**GOOD, "val/psnr": 8.0}
    assert names(poor, PSNR, with_facts(trained=poor)) == ["poor_reconstruction"]
    assert names(poor, PSNR, with_facts(trained=poor, same_images=False)) == ["damaged_weights"]


def test_a_kl_weight_of_ten_is_a_posterior_collapse_and_not_damage():
    collapsed = {
        "val/psnr": 11.03,
        "val/perceptual_tiny": 0.6728,
        "val/rfd_tiny": 6.027,
        "val/kl": 0.0207,
        "latent/std": 0.9994,
    }
    facts = with_facts(trained=collapsed, kl_weight=10.0)
    (cause,) = likely_causes(collapsed, ALL - {"latent/std"}, facts)
    assert cause.name == "posterior_collapse"
    assert "8.1e-05 nats" in cause.evidence
    assert "0.0207" in cause.evidence
    assert re.search(r"loss\.kl_weight.*\b10\b", cause.change)


def test_both_are_named_where_a_collapsed_first_stage_was_damaged():
    found = names({**GOOD, "val/kl": 0.02, "val/psnr": 7.0}, PSNR, FACTS)
    assert found == ["damaged_weights", "posterior_collapse"]


@pytest.mark.parametrize(
    ("usage", "perplexity", "failed", "collapsed"),
    [
        (0.02, 8.0, {"val/psnr"}, True),
        (0.02, 15.0, {"val/codebook_usage"}, True),
        (0.9, 500.0, {"val/psnr"}, False),
    ],
)
def test_few_codes_are_a_codebook_collapse(usage, perplexity, failed, collapsed):
    metrics = {"val/psnr": 12.0, "val/codebook_usage": usage, "val/codebook_perplexity": perplexity}
    facts = FirstStageFacts(num_codes=1024, num_positions=10**6, downsampling_factor=4)
    (cause,) = likely_causes(metrics, frozenset(failed), facts)
    assert (cause.name == "codebook_collapse") == collapsed
    if collapsed:
        assert f"usage is {usage}" in cause.evidence
        assert "of 1024 codes" in cause.evidence


def test_a_handful_of_positions_cannot_use_many_codes():
    metrics = {"val/psnr": 12.0, "val/codebook_usage": 0.01, "val/codebook_perplexity": 30.0}
    facts = FirstStageFacts(num_codes=1024, num_positions=64)
    assert names(metrics, PSNR, facts) == ["poor_reconstruction"]


@pytest.mark.parametrize(("std", "name"), [(0.001, "latents_vanish"), (5000.0, "latents_explode")])
def test_latents_out_of_range_are_named(std, name):
    (cause,) = likely_causes({**GOOD, "latent/std": std}, frozenset({"latent/std"}), FACTS)
    assert cause.name == name
    assert f"latent/std is {std:.4g}" in cause.evidence


def test_a_wide_gap_to_its_own_images_is_a_change_of_domain():
    facts = with_facts(same_images=False)
    assert names({**GOOD, "val/psnr": 14.0}, PSNR, facts)[0] == "other_images"
    assert "other_images" not in names({**GOOD, "val/psnr": 19.0}, PSNR, facts)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"psnr_rise": 0.8}, "undertrained"),
        ({"downsampling_factor": 16}, "too_compressed"),
        ({}, "poor_reconstruction"),
    ],
)
def test_a_healthy_first_stage_that_is_not_good_enough(changes, name):
    metrics = {**GOOD, "val/psnr": 16.0}
    facts = with_facts(trained=metrics, **changes)
    assert names(metrics, PSNR, facts) == [name]


def test_pixels_without_perception_are_blur():
    metrics = {**GOOD, "val/perceptual_tiny": 0.9}
    (cause,) = likely_causes(metrics, frozenset({"val/perceptual_tiny"}), FACTS)
    assert cause.name == "lost_texture"
    assert "val/perceptual_tiny is 0.9" in cause.evidence


def test_what_is_not_finite_is_named_and_hides_nothing_else():
    metrics = {**GOOD, "val/psnr": math.nan, "val/kl": 0.01}
    assert names(metrics, PSNR, FACTS) == ["not_measured", "posterior_collapse"]


def test_an_unknown_pattern_says_so():
    (cause,) = likely_causes({**GOOD, "val/ssim": 0.2}, frozenset({"val/ssim"}), FACTS)
    assert cause.name == "unknown"
    assert "val/ssim" in cause.evidence
