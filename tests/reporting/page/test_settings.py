from ldm_lightning.reporting.page.settings import find_differences
from tests.reporting.page.runs_on_disk import example_run


def runs_with(*settings, kind="first stage"):
    return [example_run(n, settings=one, kind=kind) for n, one in enumerate(settings, start=1)]


def keys(runs):
    return [difference.key for difference in find_differences(runs)]


def test_only_what_differs_is_listed_and_swept_settings_come_first():
    runs = runs_with(
        {"seed": 0, "loss.kl_weight": 1e-6, "resolution": 32},
        {"seed": 1, "loss.kl_weight": 1e-4, "resolution": 32},
        {"seed": 0, "loss.kl_weight": 1e-4, "resolution": 32},
    )
    assert keys(runs) == ["loss.kl_weight", "seed"]


def test_a_setting_that_follows_from_another_is_named_beside_it():
    runs = runs_with({"seed": 0, "data.seed": 0}, {"seed": 1, "data.seed": 1})
    (difference,) = find_differences(runs)
    assert (difference.key, difference.also) == ("seed", ("data.seed",))


def test_kinds_of_runs_are_not_compared_with_each_other():
    first = runs_with({"stage": "first", "loss.kl_weight": 1.0})
    second = runs_with({"stage": "second"}, kind="second stage")
    assert keys(first + second) == []


def test_a_setting_that_one_run_lacks_differs_but_runs_without_any_are_not_asked():
    assert keys(runs_with({"a": 1, "b": 1}, {"a": 1})) == ["b"]
    assert keys(runs_with({"a": 1}, {})) == []


def test_where_files_lie_is_no_difference():
    for key in ("output_dir", "cache_dir", "data.cache_dir", "data.shard_cache_dir"):
        assert keys(runs_with({key: "a"}, {key: "b"})) == []


def test_numbers_and_words_that_look_alike_differ():
    assert keys(runs_with({"a": 1}, {"a": "1"})) == ["a"]
