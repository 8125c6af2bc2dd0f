"""Tar shards: what is in them, each sample once, the same as the files they were made of."""

import io
import json
import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.order.sampling import EvaluationSampler, SampleKey, TrainBatchSampler
from ldm_lightning.data.shards.shard_set import find_shards
from ldm_lightning.data.shards.tar_index import index_shard
from ldm_lightning.data.shards.webdataset import webdataset_data_module

SETTINGS = {
    "val_root": None,
    "val_fraction": 0.5,
    "resolution": 8,
    "image_channels": 3,
    "train_crop": "center",
    "crop_scale": (0.5, 1.0),
    "flip": False,
    "eval_crop": "center",
    "val_crops_per_image": 16,
    "max_bad_fraction": 0.05,
    "shuffle_shards": None,
    "shard_cache_dir": "not_made",
    "shard_cache_gib": 1.0,
    "batch_size": 3,
    "val_batch_size": 4,
    "num_workers": 0,
    "max_val_images": None,
    "seed": 0,
}


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, prefix: str, *, count: int = 2, size: int = 6) -> Path:
    for shard in range(count):
        members = {}
        for number in range(shard * size, (shard + 1) * size):
            members[f"{number:04d}.png"] = png(number)
            members[f"{number:04d}.cls"] = str(number % 3).encode()
        write_shard(folder / f"{prefix}-{shard:04d}.tar", members)
    return folder


def data_module(root, **changes) -> ImageDataModule:
    module = webdataset_data_module(root=str(root), **(SETTINGS | changes))
    module.num_train_batches = len(module.train_dataset) // module.loading.batch_size
    return module


def test_images_and_labels_are_those_that_were_written(tmp_path):
    module = data_module(write_shards(tmp_path, "train"))
    seen = 0
    for batch in chain(module.train_dataloader(), module.val_dataloader()):
        for image, key, label in zip(batch["image"], batch["key"], batch["label"], strict=True):
            number = int(key.split("/")[1])
            stored = np.array(Image.open(io.BytesIO(png(number)))).transpose(2, 0, 1)
            assert torch.equal(image, torch.from_numpy(stored).float() / 127.5 - 1)
            assert label == number % 3
            assert key.startswith(f"train-{number // 6:04d}.tar/")
            seen += 1
    assert seen >= 8
    assert module.num_classes == 3


def test_the_index_agrees_with_the_webdataset_library(tmp_path):
    import webdataset as wds

    path = tmp_path / "library-0000.tar"
    with wds.TarWriter(str(path)) as writer:
        for number in range(5):
            name = f"{'long_folder_name/' * 8}sample{number}"  # beyond a plain tar header
            writer.write({"__key__": name, "png": png(number), "cls": str(number).encode()})
    with path.open("rb") as stream:
        ours = [(s.key, s.label, s.image.size) for s in index_shard(stream, str(path)).samples]
    with path.open("rb") as stream:
        files = wds.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        library = list(wds.tariterators.group_by_keys(files))
    theirs = [(s["__key__"], int(s["cls"]), len(s["png"])) for s in library]
    assert ours == theirs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_processes_with_workers_see_each_sample_once_an_epoch(tmp_path, num_workers):
    module = data_module(write_shards(tmp_path / "a", "x", size=7), val_fraction=0.2)
    dataset = module.train_dataset
    keys = []
    for rank in range(2):
        sampler = TrainBatchSampler(
            len(dataset),
            batch_size=1,
            num_batches=len(dataset) // 2,
            seed=0,
            rank=rank,
            num_processes=2,
        )
        loader = torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=lambda rows: rows
        )
        keys += [sample["key"] for rows in loader for sample in rows]
    assert len(keys) == len(set(keys)) == len(dataset) // 2 * 2

    evaluated = []
    for rank in range(2):
        sampler = EvaluationSampler(module.val_indices, rank=rank, num_processes=2)
        evaluated += [module.val_dataset[key]["key"] for key in sampler]
    assert len(evaluated) == len(set(evaluated)) == len(module.val_dataset)


def test_captions_come_from_text_or_json(tmp_path):
    members = {}
    for number in range(8):
        members[f"{number}.png"] = png(number)
        members[f"{number}.txt"] = f" number {number}\n".encode()
    root = write_shard(tmp_path / "train-0.tar", members)
    members = {"0.jpg": png(0), "0.json": json.dumps({"caption": "zero", "other": 1}).encode()}
    val_root = write_shard(tmp_path / "val" / "val-0.tar", members)
    module = data_module(root, val_root=str(val_root))
    batch = next(iter(module.train_dataloader()))
    assert batch["caption"] == [f"number {key.split('/')[1]}" for key in batch["key"]]
    assert next(iter(module.val_dataloader()))["caption"] == ["zero"]
    assert "label" not in batch
    assert module.num_classes is None


def test_class_names_beside_the_shards_are_used(tmp_path):
    write_shards(tmp_path, "train")
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d"]')
    module = data_module(tmp_path)
    assert module.class_names == ["a", "b", "c", "d"]
    assert module.num_classes == 4


def test_classes_without_an_image_are_known_and_given_names_count(tmp_path):
    for split in ("train", "val"):
        members = {}
        for number in range(12):
            label = str(number % 2 * 3).encode()
            members |= {f"{number}.png": png(number), f"{number}.cls": label}
        write_shard(tmp_path / f"{split}-0.tar", members)
    module = data_module(tmp_path, classes=["a", "b", "c", "d", "e"])
    assert (module.num_classes, module.class_names) == (5, ["a", "b", "c", "d", "e"])
    assert module.classes_without_images() == [1, 2, 4]
    with pytest.raises(ValueError, match=r"data\.classes\b.*\b4\b"):
        data_module(tmp_path, classes=["a", "b"])


def names(shards: list[Path]) -> list[str]:
    return [path.name for path in shards]


def test_a_folder_stands_for_the_shards_of_the_split(tmp_path):
    write_shards(tmp_path, "train")
    write_shards(tmp_path, "test", count=1)
    assert names(find_shards(str(tmp_path), split="train")) == ["train-0000.tar", "train-0001.tar"]
    assert names(find_shards(str(tmp_path), split="val")) == ["test-0000.tar"]
    module = data_module(tmp_path)
    assert (len(module.train_dataset), len(module.val_dataset)) == (12, 6)
    assert module.val_dataset.key(0) == "test-0000.tar/0000"


def test_test_shards_are_not_trained_on_whatever_the_others_are_called(tmp_path):
    write_shards(tmp_path, "part")
    write_shards(tmp_path, "test", count=1)
    assert names(find_shards(str(tmp_path), split="train")) == ["part-0000.tar", "part-0001.tar"]
    assert len(data_module(tmp_path).val_dataset) == 6


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("t-*.tar", ["t-0000.tar", "t-0001.tar", "t-0002.tar"]),
        ("t-{0001..0002}.tar", ["t-0001.tar", "t-0002.tar"]),
        ("t-{0000,0002}.tar", ["t-0000.tar", "t-0002.tar"]),
        ("{s,t}-000[12].tar", ["t-0001.tar", "t-0002.tar"]),
        ("t-0001.tar", ["t-0001.tar"]),
    ],
)
def test_patterns_stand_for_the_shards_they_match(tmp_path, pattern, expected):
    write_shards(tmp_path, "t", count=3, size=1)
    assert names(find_shards(str(tmp_path / pattern), split="train")) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_member_is_skipped_and_listed(tmp_path, num_workers):
    members = {f"{number}.png": png(number) for number in range(30)}
    members["7.png"] = b"damaged"
    root = write_shard(tmp_path / "train-0.tar", members)
    val_members = {f"{number}.png": png(number) for number in range(20)}
    val_members["3.png"] = val_members["3.png"][:150]
    val_root = write_shard(tmp_path / "val" / "val-0.tar", val_members)
    module = data_module(root, val_root=str(val_root), num_workers=num_workers)
    module.bad_files_path = tmp_path / "bad.tsv"
    trained = [key for batch in module.train_dataloader() for key in batch["key"]]
    assert len(trained) == 30
    assert "train-0.tar/7" not in trained
    evaluated = [key for batch in module.val_dataloader() for key in batch["key"]]
    assert evaluated == [f"val-0.tar/{n}" for n in range(20) if n != 3]
    first, second = module.bad_files()
    assert "train-0.tar/7" in first
    assert "val-0.tar/3" in second


def test_settings_that_cannot_work_are_refused(tmp_path):
    root = write_shards(tmp_path, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"/empty\b.*\*\.tar"):
        data_module(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"none\.tar"):
        data_module(tmp_path / "none.tar")
    with pytest.raises(ValueError, match=r"train-0000\.tar.*data\.root.*data\.val_root"):
        data_module(root, val_root=str(root / "train-0000.tar"))
    without = write_shard(tmp_path / "no_images" / "a.tar", {"0.cls": b"1"})
    with pytest.raises(ValueError, match=r"no_images.*image"):
        data_module(without)
    wrong = write_shard(tmp_path / "wrong" / "a.tar", {"0.png": png(0), "0.cls": b"dog"})
    with pytest.raises(ValueError, match=r"0\.cls.*'dog'"):
        data_module(wrong)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_a_truncated_shard_is_refused_by_name(tmp_path, share):
    path = write_shards(tmp_path, "train", count=1) / "train-0000.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"train-0000\.tar"):
        data_module(path)


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w:gz") as shard:
        info = tarfile.TarInfo("0.png")
        info.size = len(png(0))
        shard.addfile(info, io.BytesIO(png(0)))
    with pytest.raises(ValueError, match=r"\.tar.*uncompressed"):
        data_module(tmp_path)


def test_the_digest_changes_with_the_images(tmp_path):
    digests = set()
    for size in (6, 7):
        root = write_shards(tmp_path / str(size), "train", size=size)
        digests.add(data_module(root).protocol("train")["images"])
    assert len(digests) == 2


def test_samples_do_not_depend_on_the_epoch_without_augmentation(tmp_path):
    dataset = data_module(write_shards(tmp_path, "train")).train_dataset
    assert torch.equal(dataset[SampleKey(0, 2)]["image"], dataset[SampleKey(5, 2)]["image"])


def test_how_many_labels_are_missing_is_known_with_an_example(tmp_path):
    members = {f"{number:04d}.png": png(number) for number in range(6)}
    members |= {f"{number:04d}.cls": b"1" for number in range(6) if number != 4}
    some = write_shard(tmp_path / "some" / "a.tar", dict(sorted(members.items())))
    pngs = {name: content for name, content in members.items() if name.endswith("png")}
    none = write_shard(tmp_path / "none" / "a.tar", pngs)
    whole = write_shards(tmp_path / "whole", "a")
    datasets = [data_module(whole, val_root=str(root.parent)).val_dataset for root in (some, none)]
    assert [dataset.num_classes for dataset in datasets] == [None, None]
    for part in ("5 of 6", "a.tar/0004"):
        assert part in datasets[0].label_gap
    assert datasets[1].label_gap == ""
    assert data_module(whole).train_dataset.label_gap == ""
