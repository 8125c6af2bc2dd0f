"""Comparing what something was made of with what it should have been made of."""

import pytest

from ldm_lightning.utils.metadata import check_facts, count_fact, count_told

WORDS = {"what": "The cache", "remedy": "Encode again."}


def test_equal_facts_pass_and_unnamed_ones_are_not_compared():
    found = {"data": "shapes", "size": 32, "seed": 1}
    assert check_facts(found, {"data": "shapes", "size": 32}, **WORDS) is None


def test_every_fact_that_differs_or_is_missing_is_named_with_both_values():
    with pytest.raises(ValueError, match="The cache") as caught:
        check_facts({"data": "shapes", "size": 32}, {"data": "faces", "size": 32, "n": 5}, **WORDS)
    message = str(caught.value)
    for part in ("data is 'shapes'", "data='faces'", "n is not", "n=5", WORDS["remedy"]):
        assert part in message
    assert "size" not in message


def test_windows_are_counted_where_images_are_cut():
    whole, cut = {"num_images": 512}, {"num_images": 100, "num_windows": 1600}
    assert (count_fact(whole), count_fact(cut)) == ("num_images", "num_windows")
    assert count_told(whole) == "512"
    assert count_told(cut).split()[0] == "1,600"
    assert "100" in count_told(cut)
