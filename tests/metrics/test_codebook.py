import math

import pytest
import torch

from ldm_lightning.metrics.codebook import CodebookUsage


def usage_of(*batches, num_codes):
    metric = CodebookUsage(num_codes)
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def test_evenly_used_codes_have_the_perplexity_of_their_number():
    result = usage_of(torch.arange(16).repeat(3).view(3, 4, 4), num_codes=16)
    assert result.perplexity == pytest.approx(16)
    assert result.usage == 1.0
    assert result.num_dead == 0


def test_one_code_has_perplexity_one():
    result = usage_of(torch.full((2, 4, 4), 5), num_codes=8)
    assert result.perplexity == pytest.approx(1)
    assert result.usage == 1 / 8
    assert result.num_dead == 7
    assert result.histogram.tolist() == [0, 0, 0, 0, 0, 32, 0, 0]


def test_uneven_use_has_the_closed_form_of_its_entropy():
    result = usage_of(torch.tensor([0, 0, 0, 1]), num_codes=4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert result.perplexity == pytest.approx(math.exp(entropy))


def test_perplexity_is_of_the_whole_set_not_of_its_batches():
    batches = [torch.full((1, 4, 4), code) for code in range(8)]
    assert usage_of(*batches, num_codes=8).perplexity == pytest.approx(8)


def test_a_pass_without_codes_counts_all_as_dead():
    result = usage_of(torch.empty(0, dtype=torch.int64), num_codes=4)
    assert (result.usage, result.perplexity, result.num_dead) == (0.0, 1.0, 4)


def test_refuses_an_index_beyond_the_codebook():
    with pytest.raises(ValueError, match=r"\b9\b.*\b4 codes\b"):
        usage_of(torch.tensor([9]), num_codes=4)
    with pytest.raises(ValueError, match=r"num_codes.*\b0\b"):
        CodebookUsage(0)


def test_counts_are_not_stored_in_checkpoints():
    assert CodebookUsage(4).state_dict() == {}
