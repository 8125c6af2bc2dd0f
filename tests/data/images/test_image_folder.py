"""Folders of images: what is found, how it is split, and what happens to damaged files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.class_names import class_names_of
from ldm_lightning.data.images.folder_listing import list_images
from ldm_lightning.data.images.image_folder import image_folder_data_module
from ldm_lightning.data.images.separation import is_validation_name

SETTINGS = {
    "val_root": None,
    "val_fraction": 0.3,
    "resolution": 16,
    "image_channels": 3,
    "train_crop": "random_resized",
    "crop_scale": (0.5, 1.0),
    "flip": True,
    "eval_crop": "center",
    "val_crops_per_image": 16,
    "max_bad_fraction": 0.05,
    "batch_size": 4,
    "val_batch_size": 3,
    "num_workers": 0,
    "max_val_images": None,
    "seed": 0,
}


def write_images(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def data_module(root: Path, **changes):
    module = image_folder_data_module(root=str(root), **(SETTINGS | changes))
    module.num_train_batches = 10
    return module


def keys_of(loader) -> list[str]:
    return [key for batch in loader for key in batch["key"]]


def test_batches_follow_the_contract(tmp_path):
    module = data_module(write_images(tmp_path / "images", 20))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < -0.5
    assert 0.5 < batch["image"].max() <= 1
    assert all(key.endswith(".png") for key in batch["key"])
    assert "label" not in batch


@pytest.mark.parametrize("image_channels", [1, 3])
def test_resolution_may_be_height_and_width(tmp_path, image_channels):
    module = data_module(
        write_images(tmp_path, 20), resolution=[8, 24], image_channels=image_channels
    )
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert next(iter(loader))["image"].shape[1:] == (image_channels, 8, 24)
    assert module.protocol("val")["resolution"] == "8x24"


def test_hidden_and_other_files_are_ignored_and_the_order_is_sorted(tmp_path):
    write_images(tmp_path / "b", 2)
    write_images(tmp_path / "a" / "deep", 1)
    write_images(tmp_path / ".hidden", 1)
    (tmp_path / "b" / ".also.png").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    expected = ["a/deep/000.png", "b/000.png", "b/001.png"]
    assert list_images(tmp_path, key="data.root").names == expected


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog", "cat"):
        write_images(tmp_path / "train" / name, 6)
    write_images(tmp_path / "val" / "dog", 2)
    module = data_module(tmp_path / "train", val_root=str(tmp_path / "val"))
    assert module.class_names == ["cat", "dog"]
    assert module.num_classes == 2
    for batch in module.train_dataloader():
        expected = [["cat", "dog"].index(key.split("/")[0]) for key in batch["key"]]
        assert batch["label"].tolist() == expected
    assert next(iter(module.val_dataloader()))["label"].tolist() == [1, 1]


def test_classes_keep_the_ids_that_were_given(tmp_path):
    for name in ("ant", "bee", "cat"):
        write_images(tmp_path / name, 8)
    names = ["cat", "dog", "bee", "ant"]
    module = data_module(tmp_path, classes=names)
    assert (module.class_names, module.num_classes) == (names, 4)
    assert module.classes_without_images() == [1]
    for batch in module.train_dataloader():
        assert batch["label"].tolist() == [names.index(key.split("/")[0]) for key in batch["key"]]


@pytest.mark.parametrize(
    ("classes", "named"), [(["ant", "Bees"], "bee.*near: Bees"), (["ant", "ant"], "'ant' twice")]
)
def test_folders_that_are_none_of_the_given_classes_are_refused(tmp_path, classes, named):
    for name in ("ant", "bee"):
        write_images(tmp_path / name, 4)
    with pytest.raises(ValueError, match=named):
        data_module(tmp_path, classes=classes)


def test_folders_without_images_are_named_and_held_out_classes_are_not_sampled(tmp_path, caplog):
    for name in ("ant", "bee"):
        write_images(tmp_path / name, 20)
    write_images(tmp_path / "rare", 1)
    (tmp_path / "empty").mkdir()
    share = next(s / 20 for s in range(1, 20) if is_validation_name("rare/000.png", s / 20))
    module = data_module(tmp_path, val_fraction=share)
    assert module.class_names == ["ant", "bee", "rare"]
    assert module.classes_without_images() == [2]
    assert "empty" in caplog.text


def test_what_is_not_read_is_told_once_with_an_example(tmp_path, caplog):
    write_images(tmp_path, 8)
    for number in range(3):
        (tmp_path / f"{number}.heic").write_bytes(b"")
    data_module(tmp_path)
    (record,) = caplog.records
    assert "suffix .heic: 3 (e.g. 0.heic)" in record.getMessage()


@pytest.mark.parametrize("names", [["a.png", "x/b.png"], ["x/a.png", "x/b.png"]])
def test_without_several_folders_there_are_no_classes(names):
    assert class_names_of(names) is None


def test_the_split_is_stable_when_files_are_added(tmp_path):
    write_images(tmp_path, 40)
    before = data_module(tmp_path)
    write_images(tmp_path, 40, first=40)
    after = data_module(tmp_path)

    def names(dataset):
        return {dataset.key(index) for index in range(len(dataset))}

    assert names(before.val_dataset) <= names(after.val_dataset)
    assert names(before.train_dataset) <= names(after.train_dataset)
    assert not names(after.val_dataset) & names(after.train_dataset)
    assert 0.15 < len(after.val_dataset) / 80 < 0.45
    assert before.protocol("val")["images"] != after.protocol("val")["images"]


def test_validation_sees_each_image_once_and_a_subset_is_fixed(tmp_path):
    root = write_images(tmp_path, 60)
    everything = keys_of(data_module(root).val_dataloader())
    assert len(everything) == len(set(everything)) == len(data_module(root).val_dataset)
    some = data_module(root, max_val_images=5)
    chosen = keys_of(some.val_dataloader())
    assert chosen == keys_of(data_module(root, max_val_images=5, seed=3).val_dataloader())
    assert len(chosen) == 5
    assert set(chosen) < set(everything)
    assert some.protocol("val")["num_images"] == 5
    assert some.protocol("val")["images"] != data_module(root).protocol("val")["images"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_does_not_depend_on_workers(tmp_path, num_workers):
    root = write_images(tmp_path, 20)
    expected = [batch["image"] for batch in data_module(root).train_dataloader()]
    loader = data_module(root, num_workers=num_workers).train_dataloader()
    assert all(
        torch.equal(batch["image"], image) for batch, image in zip(loader, expected, strict=True)
    )


def test_fixed_windows_of_every_validation_image(tmp_path):
    val_root = write_images(tmp_path / "val", 3)
    module = data_module(
        write_images(tmp_path / "train", 8),
        val_root=str(val_root),
        eval_crop="crops",
        val_crops_per_image=4,
        val_batch_size=5,
    )
    batches = list(module.val_dataloader())
    keys = [key for batch in batches for key in batch["key"]]
    assert keys == [f"{number:03d}.png#{crop}" for number in range(3) for crop in range(4)]
    protocol = module.protocol("val")
    assert (protocol["num_windows"], protocol["num_images"]) == (12, 3)
    counts = module.counts(1)
    assert (counts.num_evaluated_images, counts.windows_per_image) == (3, 4)
    assert "12 windows of 3 images" in str(counts)
    subset = data_module(
        tmp_path / "train", val_root=str(val_root), eval_crop="crops", max_val_images=2
    ).protocol("val")
    assert (subset["num_windows"], subset["num_images"]) == (32, 2)
    assert protocol["crop"].split()[:3] == ["4", "fixed", "native"]
    # Every window is a piece of its file at native scale.
    stored = torch.from_numpy(np.array(Image.open(val_root / "000.png"))).permute(2, 0, 1)
    window = ((batches[0]["image"][0] + 1) * 127.5).round().to(torch.uint8)
    pieces = stored.unfold(1, 16, 1).unfold(2, 16, 1)  # [3, top, left, 16, 16]
    assert (pieces == window[:, None, None]).all(-1).all(-1).all(0).any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_files_are_replaced_in_training_and_left_out_in_evaluation(tmp_path, num_workers):
    train_root = write_images(tmp_path / "train", 30)
    val_root = write_images(tmp_path / "val", 31)
    truncate(train_root / "007.png")
    for number in (4, 30):  # the last one alone fills the last batch
        truncate(val_root / f"{number:03d}.png")
    settings = {"val_root": str(val_root), "max_bad_fraction": 0.1, "num_workers": num_workers}
    module = data_module(train_root, **settings)
    module.bad_files_path = tmp_path / "bad_files.tsv"

    keys = keys_of(module.train_dataloader())
    assert len(keys) == 40
    assert "007.png" not in keys
    assert keys == keys_of(data_module(train_root, **settings).train_dataloader())

    evaluated = keys_of(module.val_dataloader())
    assert evaluated == [f"{n:03d}.png" for n in range(31) if n not in (4, 30)]

    bad = module.bad_files()
    assert len(bad) == 3
    assert all(reason.strip() for reason in bad)
    for line, name in zip(bad, ["007.png", "004.png", "030.png"], strict=True):
        assert name in line
    assert len((tmp_path / "bad_files.tsv").read_text().splitlines()) >= 3


def test_bad_files_are_gathered_without_a_path_too(tmp_path):
    root = write_images(tmp_path, 40)
    truncate(root / "011.png")
    module = data_module(root, val_fraction=0.1, num_workers=2, max_bad_fraction=0.5)
    keys_of(module.train_dataloader())
    keys_of(module.val_dataloader())
    assert [line.count("011.png") > 0 for line in module.bad_files()] == [True]


def test_an_earlier_run_in_the_same_folder_does_not_count(tmp_path):
    root = write_images(tmp_path / "images", 20)
    path = tmp_path / "bad_files.tsv"
    path.write_text("".join(f"train\t{n}.png\tCannot read {n}.png: gone\n" for n in range(20)))
    module = data_module(root)
    module.bad_files_path = path
    assert len(keys_of(module.train_dataloader())) == 40
    assert module.bad_files() == []


@pytest.mark.parametrize(("num_good", "num_workers"), [(0, 0), (1, 2)])
def test_hardly_any_good_file_stops_the_run_with_a_clear_error(
    tmp_path, monkeypatch, num_good, num_workers
):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # no long ends
    train_root = write_images(tmp_path / "train", 10)
    for number in range(num_good, 10):
        truncate(train_root / f"{number:03d}.png")
    val_root = write_images(tmp_path / "val", 4)
    module = data_module(train_root, val_root=str(val_root), num_workers=num_workers)
    with pytest.raises(ValueError, match=r"\b10 files\b.*\btrain\b"):
        list(module.train_dataloader())


def test_the_share_is_of_the_whole_split(tmp_path):
    train_root = write_images(tmp_path / "train", 20)
    val_root = write_images(tmp_path / "val", 20)
    truncate(val_root / "000.png")
    module = data_module(train_root, val_root=str(val_root))
    assert len(keys_of(module.val_dataloader())) == 19  # exactly the allowed 5 %
    truncate(val_root / "019.png")
    module = data_module(train_root, val_root=str(val_root))
    with pytest.raises(ValueError, match=r"\b2\b.*\b20 files\b.*000\.png.*data\.max_bad_fraction"):
        list(module.val_dataloader())


def test_missing_and_empty_folders_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere"):
        data_module(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.root=.*/file\b"):
        data_module(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.root=.*empty.*\.jpg"):
        data_module(tmp_path / "empty")
    root = write_images(tmp_path / "images", 3)
    with pytest.raises(ValueError, match=r"data\.val_root=.*nowhere"):
        data_module(root, val_root=str(tmp_path / "nowhere"))


def test_a_split_with_an_empty_side_is_refused(tmp_path):
    root = write_images(tmp_path, 1)
    with pytest.raises(ValueError, match=r"data\.val_fraction=0\.3\b.*\b1 image.*data\.val_root"):
        data_module(root)
    with pytest.raises(ValueError, match=r"data\.val_fraction.*\b0\b"):
        data_module(root, val_fraction=0.0)


@pytest.mark.parametrize("name", ["batch_size", "val_batch_size", "max_val_images"])
def test_numbers_out_of_range_are_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"data\.{name}\b.*\b0\b"):
        data_module(write_images(tmp_path, 20), **{name: 0})


def test_all_windows_of_all_training_images_are_measured(tmp_path):
    module = data_module(
        write_images(tmp_path, 12), val_fraction=0.25, eval_crop="crops", val_crops_per_image=4
    )
    keys = keys_of(module.unaugmented_dataloader())
    assert len(set(keys)) == len(keys) == 4 * len(module.train_dataset)


def test_a_training_sample_goes_on_with_other_crops_where_images_are_few(tmp_path):
    sample = data_module(write_images(tmp_path, 20)).training_sample(50)
    assert sample.shape == (50, 3, 16, 16)
    assert sample.dtype == torch.uint8
    assert len(sample.flatten(1).unique(dim=0)) == 50
    more_than_there_are = data_module(tmp_path, batch_size=40)
    assert torch.equal(sample, more_than_there_are.training_sample(50))
