"""What the first validation would find is found before the first update."""

import pytest

from tests.cli.run import command, summary_of, tiny, write_images
from tests.cli.second_stage import tiny_second, trained_first_stage


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    return trained_first_stage(tmp_path_factory.mktemp("first"), "kl_f4")


def refused(words, folder, *parts):
    """The command ends with these words, before any file of a training."""
    ended = command("train", words, folder)
    assert ended.code == 1, ended.output
    for part in parts:
        assert part in ended.said
    assert not list(folder.glob("outputs/*/*/checkpoints/*"))
    assert not list(folder.glob("outputs/*/*/metrics.csv"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data__max_val_images": 1}, ["stall_monitors=val/rfd_tiny", "1 images"]),
        ({"data__num_val_images": 1}, ["stall_monitors=val/rfd_tiny", "1 images"]),
        ({"monitor": "val/elbo"}, ["monitor=val/elbo", "val/psnr"]),
        ({"monitor": "val/ssim", "resolution": 8}, ["monitor=val/ssim"]),
    ],
)
def test_a_first_stage_is_refused_what_it_will_not_measure(tmp_path, changes, parts):
    refused(tiny("ae_f8", **changes), tmp_path, *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"validation__num_samples": 1}, ["validation.num_samples=1"]),
        ({"data__max_val_images": 1}, ["monitor=gen/fd_tiny", "1 images"]),
        (
            {"validation__num_samples": 3, "monitor": "gen/recall_tiny"},
            ["monitor=gen/recall_tiny", "gen/fd_tiny"],
        ),
    ],
)
def test_a_second_stage_is_refused_what_it_will_not_measure(tmp_path, first_stage, changes, parts):
    refused(tiny_second(first_stage, **changes), tmp_path, *parts)


def test_a_class_that_only_validation_has_is_refused(tmp_path, first_stage):
    for split, names in (("train", ("cat", "dog")), ("val", ("cat", "zebra"))):
        for name in names:
            write_images(tmp_path / split / name, 4)
    words = tiny_second(
        first_stage,
        conditioner="class_label",
        data="image_folder",
        data__root=tmp_path / "train",
        data__val_root=tmp_path / "val",
    )
    refused(words, tmp_path, "4 of 8", "zebra/000.png", "validation")


def test_what_a_validation_will_measure_is_what_it_measures(first_stage):
    """The names that are checked at the start are those of a real validation."""
    metrics = summary_of(first_stage)["metrics"]
    measured = {name for name in metrics if name.startswith(("val/", "latent/"))}
    ended = command("train", tiny("kl_f4", monitor="val/elbo"), first_stage)
    assert ended.code == 1
    named = ended.said.partition("Measured are: ")[2].rstrip(".").split(", ")
    assert {name.rstrip(".") for name in named} == measured
