"""Latent caches: written shard by shard, read by rows, in the order of their images."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ldm_lightning.autoencoder.frozen import Moments
from ldm_lightning.data.images.image_folder import image_folder_data_module
from ldm_lightning.data.latents import module as latents_file
from ldm_lightning.data.latents.cache import (
    LatentIndex,
    ShardReader,
    files_of_others,
    pack_keys,
    write_shard,
)
from ldm_lightning.data.latents.module import LatentDataModule, LatentDataset
from ldm_lightning.data.latents.writing import SplitWriter
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.samples import image_facts
from ldm_lightning.metrics.latents import measure_statistics
from ldm_lightning.storage.content import FileHashes

SETTINGS = {"batch_size": 4, "val_batch_size": 3, "num_workers": 0, "max_val_images": None}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def write_photos(folder):
    """42 images to train on, 8 to validate on, of two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 42), ("val", 8)):
        for number in range(count):
            path = folder / split / ("cat", "dög")[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


def image_module(photos, **changes):
    settings = {
        "root": str(photos / "train"),
        "val_root": str(photos / "val"),
        "val_fraction": 0.5,
        "resolution": 8,
        "image_channels": 3,
        "train_crop": "center",
        "crop_scale": (1.0, 1.0),
        "flip": True,
        "eval_crop": "center",
        "val_crops_per_image": 2,
        "max_bad_fraction": 0.2,
        "seed": 5,
        **SETTINGS,
    }
    module = image_folder_data_module(**(settings | changes))
    module.num_train_batches = 30
    return module


def encode(images):
    """A first stage that loses nothing: four channels of 4 x 4, and a variance."""
    mean = torch.cat([images[..., ::2, ::2], images[:, :1, 1::2, 1::2]], dim=1)
    return Moments(mean, mean.square() + 0.1)


def encode_exactly(images):
    return Moments(encode(images).mean, None)


def writer(folder, module, split, *, first_stage_hash="aaa", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    dataset = module.val_dataset if split == "val" else module.train_dataset
    dataset = dataset.without_augmentation()
    settings = {"images_per_shard": 8, "dtype": torch.float32, "rank": 0, "num_processes": 1}
    settings |= {"batch_size": 3, "num_workers": 0, "worker_timeout_seconds": 60.0}
    flip = changes.pop("flip", True) and split == "train"
    has_variance = changes.pop("has_variance", True)
    settings |= changes
    indices = list(range(len(dataset)))
    facts = image_facts(dataset, indices)
    index = LatentIndex(
        provenance={
            "first_stage_hash": first_stage_hash,
            **{name: value for name, value in facts.items() if name != "root"},
            "flip": flip,
            "dtype": str(settings["dtype"]),
        },
        made_at={"root": str(facts["root"])},
        latent_shape=(4, 4, 4),
        has_variance=has_variance,
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
    )
    return SplitWriter(folder, index, dataset, indices, **settings)


def write_split(split_writer, function=encode):
    for _ in split_writer.write(split_writer.pending(), function):
        pass
    split_writer.finished_index(FileHashes()).save(split_writer.folder)


def write_cache(folder, module, **changes):
    function = encode if changes.get("has_variance", True) else encode_exactly
    for split in ("train", "val"):
        split_writer = writer(folder / split, module, split, **changes)
        write_split(split_writer, function)
        if split == "train":
            measure_statistics(
                split_writer.moments(), num_channels=4, first_stage_hash="aaa", protocol={}
            ).save(folder / "statistics.json")
    return folder


@pytest.fixture(scope="module")
def cache(photos, tmp_path_factory):
    """A finished cache with mirrored copies; read it, copy it, leave it as it is."""
    return write_cache(tmp_path_factory.mktemp("cache"), image_module(photos))


@pytest.fixture
def copied(cache, tmp_path):
    """A cache of one's own, to be harmed."""
    for path in cache.rglob("*.*"):
        if path.is_file():
            target = tmp_path / path.relative_to(cache)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def change_index(folder, change):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def latent_module(cache, **changes):
    module = LatentDataModule(str(cache), **({"seed": 5, **SETTINGS} | changes))
    module.num_train_batches = 30
    return module


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# Against the images


def test_training_batches_are_those_of_the_images_in_their_order_with_their_flips(photos, cache):
    """Three epochs of ten batches each; issue 3, part 6."""
    on_the_fly = image_module(photos).train_dataloader()
    cached = latent_module(cache).train_dataloader()
    plain = {key: image for key, image in plain_images(photos)}
    num_flipped = num_seen = 0
    for images, latents in zip(on_the_fly, cached, strict=True):
        assert latents["key"] == images["key"]
        assert torch.equal(latents["label"], images["label"])
        expected = encode(images["image"])
        assert torch.equal(latents["mean"], expected.mean)
        assert torch.equal(latents["variance"], expected.variance)
        for key, image in zip(images["key"], images["image"], strict=True):
            num_flipped += not torch.equal(image, plain[key])
            num_seen += 1
    assert num_seen == 120
    assert 40 < num_flipped < 80


def plain_images(photos):
    module = image_module(photos, flip=False)
    dataset = module.train_dataset
    for index in range(len(dataset)):
        batch = module.collate_fn([dataset[SampleKey(0, index)]])
        yield batch["key"][0], batch["image"][0]


@pytest.mark.parametrize("max_val_images", [None, 5])
def test_validation_batches_are_those_of_the_images(photos, cache, max_val_images):
    images = image_module(photos, max_val_images=max_val_images)
    latents = latent_module(cache, max_val_images=max_val_images)
    pairs = list(zip(images.val_dataloader(), latents.val_dataloader(), strict=True))
    assert sum(len(batch["key"]) for batch, _ in pairs) == (max_val_images or 8)
    for image_batch, latent_batch in pairs:
        assert latent_batch["key"] == image_batch["key"]
        assert torch.equal(latent_batch["label"], image_batch["label"])
        assert torch.equal(latent_batch["mean"], encode(image_batch["image"]).mean)
    assert latents.protocol("val") == images.protocol("val")


def test_the_protocol_of_training_names_the_evaluation_crop_and_the_flips(photos, cache):
    latents, images = latent_module(cache).protocol("train"), image_module(photos).protocol("train")
    assert latents.pop("crop") == "adm_center + flip"
    assert images.pop("crop") == "center + flip"
    assert latents == images
    with pytest.raises(ValueError, match="split.*'test'"):
        latent_module(cache).protocol("test")


def test_without_mirrored_copies_nothing_is_mirrored(photos, tmp_path):
    write_cache(tmp_path, image_module(photos), flip=False)
    on_the_fly = image_module(photos, flip=False).train_dataloader()
    for images, latents in zip(on_the_fly, latent_module(tmp_path).train_dataloader(), strict=True):
        assert latents["key"] == images["key"]
        assert torch.equal(latents["mean"], encode(images["image"]).mean)


def test_every_process_reads_its_rows(cache, monkeypatch):
    whole = [batch["key"] for batch in latent_module(cache, batch_size=8).train_dataloader()]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("ldm_lightning.data.module.num_processes", lambda: 2)
        monkeypatch.setattr("ldm_lightning.data.module.process_rank", lambda rank=rank: rank)
        parts.append([batch["key"] for batch in latent_module(cache).train_dataloader()])
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_what_a_module_needs_to_know_stands_in_the_cache(cache):
    module = latent_module(cache)
    assert module.latent_shape == (4, 4, 4)
    assert (module.num_classes, module.class_names) == (2, ["cat", "dög"])
    assert module.first_stage_hash == "aaa"
    assert module.bad_files() == []


def test_without_posterior_and_classes_there_are_no_such_keys(photos, tmp_path):
    flat = image_module(photos, root=str(photos / "train" / "cat"))
    assert flat.num_classes is None
    write_cache(tmp_path, flat, has_variance=False)
    batch = next(iter(latent_module(tmp_path).train_dataloader()))
    assert set(batch) == {"mean", "key"}


def test_half_precision_on_disk_is_read_as_float32(photos, cache, tmp_path):
    write_cache(tmp_path, image_module(photos), dtype=torch.float16)
    batch = next(iter(latent_module(tmp_path).train_dataloader()))
    exact = next(iter(latent_module(cache).train_dataloader()))
    assert batch["mean"].dtype == batch["variance"].dtype == torch.float32
    torch.testing.assert_close(batch["mean"], exact["mean"], rtol=1e-3, atol=1e-6)
    size = {path: path.joinpath("train/00000.safetensors").stat().st_size for path in (tmp_path,)}
    assert size[tmp_path] < 0.6 * cache.joinpath("train/00000.safetensors").stat().st_size


def test_windows_of_the_evaluation_crop_are_samples_of_their_own(photos, tmp_path):
    module = image_module(photos, eval_crop="crops")
    write_cache(tmp_path, module)
    dataset = LatentDataset(tmp_path / "train", seed=0, augmented=False)
    assert len(dataset) == 84
    assert (dataset.key(0), dataset.key(1)) == ("cat/00.png#0", "cat/00.png#1")
    assert not torch.equal(dataset[SampleKey(0, 0)]["mean"], dataset[SampleKey(0, 1)]["mean"])


# Statistics


def test_statistics_equal_numpy_over_everything_training_can_draw(photos, cache):
    plain = torch.stack([image for _, image in plain_images(photos)])
    mean, variance = encode(torch.cat([plain, plain.flip(-1)]))
    values, extra = mean.double().numpy(), variance.double().numpy()
    statistics = latent_module(cache).statistics
    assert statistics.num_images == 42
    assert statistics.channel_means == pytest.approx(values.mean((0, 2, 3)), rel=1e-12)
    expected = np.sqrt(values.var((0, 2, 3), ddof=1) + extra.mean((0, 2, 3)))
    assert statistics.channel_stds == pytest.approx(expected, rel=1e-12)
    total = np.sqrt(values.var(ddof=1) + extra.mean())
    assert statistics.std == pytest.approx(total, rel=1e-12)


def test_statistics_of_other_weights_are_refused(copied):
    path = copied / "statistics.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"first_stage_hash": "bbb"}))
    with pytest.raises(ValueError, match="'aaa'.*first_stage_hash='bbb'"):
        _ = latent_module(copied).statistics
    path.unlink()
    with pytest.raises(ValueError, match=r"statistics\.json"):
        _ = latent_module(copied).statistics


# Writing


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_cache_that_goes_on_has_the_bytes_of_an_uninterrupted_one(
    photos, cache, tmp_path, num_workers
):
    module = image_module(photos)
    for split in ("train", "val"):
        unfinished = writer(tmp_path / split, module, split, num_workers=num_workers)
        batches = unfinished.write(unfinished.pending(), encode)
        for _ in range(2):  # in the midst of the first shard, of the third
            next(batches)
        batches.close()
        pending = unfinished.pending()
        assert pending == list(range(unfinished.num_shards))
        batches = unfinished.write(pending, encode)
        for _ in range(5 if split == "train" else 3):
            next(batches)
        batches.close()
    module = image_module(photos)
    again = writer(tmp_path / "train", module, "train", num_workers=num_workers)
    assert again.pending() == [1, 2, 3, 4, 5]
    write_split(again)
    write_split(writer(tmp_path / "val", module, "val"))
    assert files_of(tmp_path / "train") == files_of(cache / "train")
    assert files_of(tmp_path / "val") == files_of(cache / "val")
    assert again.pending() == []


def test_two_processes_write_the_cache_of_one(photos, cache, tmp_path):
    writers = [
        writer(tmp_path, image_module(photos), "train", rank=rank, num_processes=2)
        for rank in range(2)
    ]
    for each in writers:
        assert all(number > 0 for number in each.write(each.pending(), encode))
    assert writers[0].own_shards + writers[1].own_shards == [0, 2, 4, 1, 3, 5]
    writers[0].finished_index(FileHashes()).save(tmp_path)
    assert files_of(tmp_path) == files_of(cache / "train")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("harm", [flip_a_bit, cut])
def test_a_damaged_shard_is_made_anew_and_the_others_are_kept(photos, cache, copied, harm):
    harm(copied / "train" / "00002.safetensors")
    kept = (copied / "train" / "00001.safetensors").stat().st_ino
    again = writer(copied / "train", image_module(photos), "train")
    assert again.pending() == [2]
    write_split(again)
    assert files_of(copied) == files_of(cache)
    assert (copied / "train" / "00001.safetensors").stat().st_ino == kept


def test_an_image_that_cannot_be_read_is_left_out(photos, tmp_path):
    folder = tmp_path / "photos"
    for path in sorted((photos / "train").rglob("*.png"))[:20]:
        target = folder / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    names = sorted(path.name for path in folder.iterdir())
    for name in names[3:6]:  # a whole batch of three, in the first shard
        (folder / name).write_bytes(b"damaged")
    module = image_module(photos, root=str(folder))
    write_cache(tmp_path / "cache", module)
    dataset = LatentDataset(tmp_path / "cache" / "train", seed=0, augmented=False)
    assert [dataset.key(index) for index in range(len(dataset))] == names[:3] + names[6:]
    assert dataset[SampleKey(0, 3)]["key"] == names[6]


def test_latents_that_do_not_fit_the_type_are_refused_by_name(photos, tmp_path):
    module = image_module(photos)

    def large(images):
        return Moments(encode(images).mean * 1e6, None)

    def broken(images):
        return Moments(encode(images).mean * float("nan"), None)

    half = writer(tmp_path, module, "train", dtype=torch.float16, has_variance=False)
    with pytest.raises(ValueError, match=r"mean\b.*cat/00\.png.*dtype=float32"):
        write_split(half, large)
    full = writer(tmp_path, module, "train", has_variance=False)
    with pytest.raises(ValueError, match=r"finite.*cat/00\.png"):
        write_split(full, broken)
    assert not list(tmp_path.iterdir())


# Refusals


def test_other_weights_are_refused_by_name(cache):
    module = latent_module(cache)
    module.check("aaa")
    with pytest.raises(
        ValueError, match=r"first_stage_hash is 'aaa'; expected .*='bbb'"
    ) as refused:
        module.check("bbb")
    assert str(cache) in str(refused.value)


def test_other_data_and_transforms_are_refused_by_name(photos, cache):
    module = latent_module(cache)
    wanted = image_facts(image_module(photos).train_dataset.without_augmentation(), range(42))
    del wanted["root"]
    module.check("aaa", protocol=wanted)
    with pytest.raises(ValueError, match="'adm_center'.*crop='random'"):
        module.check("aaa", protocol=wanted | {"crop": "random"})
    with pytest.raises(ValueError, match=r"'\w+'.*images='other'"):
        module.check("aaa", protocol=wanted | {"images": "other"})


def test_splits_of_two_first_stages_are_refused(photos, copied):
    write_split(writer(copied / "val", image_module(photos), "val", first_stage_hash="bbb"))
    with pytest.raises(ValueError, match=r"/val\b.*first_stage_hash"):
        latent_module(copied)


def test_a_shard_of_another_cache_is_refused(photos, copied, tmp_path):
    other = writer(tmp_path / "other", image_module(photos), "train", first_stage_hash="bbb")
    write_split(other)
    source = tmp_path / "other" / "00001.safetensors"
    (copied / "train" / "00001.safetensors").write_bytes(source.read_bytes())
    num_bytes = len(source.read_bytes())
    change_index(copied / "train", lambda index: index["shards"][1].update(num_bytes=num_bytes))
    with pytest.raises(ValueError, match=r"00001\.safetensors"):
        latent_module(copied)


def test_missing_and_cut_off_shards_are_found_before_training(copied):
    path = copied / "train" / "00001.safetensors"
    cut(path)
    with pytest.raises(ValueError, match=r"00001\.safetensors.*\d+ bytes.*\d+"):
        latent_module(copied)
    path.unlink()
    with pytest.raises(ValueError, match=r"00001\.safetensors.*encode"):
        latent_module(copied)


def test_a_shard_with_a_damaged_header_is_refused(copied):
    path = copied / "train" / "00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\0" * 20 + content[40:])
    with pytest.raises(ValueError, match=r"00001\.safetensors.*encode"):
        latent_module(copied)


def test_shards_are_told_from_files_of_others(copied):
    folder = copied / "train"
    assert files_of_others(folder) == []
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "00001.safetensors").write_bytes(b"damaged")
    assert files_of_others(folder) == [folder / "model.safetensors"]


def test_an_index_that_is_missing_damaged_or_of_another_version_is_refused(copied):
    path = copied / "train" / "index.json"
    text = path.read_text()
    for broken in (text[: len(text) // 2], "[]", "{}", text.replace('"provenance"', '"made"')):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"index\.json"):
            latent_module(copied)
    path.write_text(text.replace('"format": 2', '"format": 3'))
    with pytest.raises(ValueError, match=r"format 3\b.*\b2\b"):
        latent_module(copied)
    path.unlink()
    with pytest.raises(ValueError, match=r"ldm_lightning\.encode checkpoint="):
        latent_module(copied)


def test_an_unfinished_cache_is_refused(photos, copied):
    writer(copied / "train", image_module(photos), "train").index.save(copied / "train")
    with pytest.raises(ValueError, match=r"/train\b.*ldm_lightning\.encode"):
        latent_module(copied)


# Reading


def test_a_shard_is_opened_when_a_sample_of_it_is_asked_for_and_read_by_rows(cache, monkeypatch):
    opened = []

    class Watched(ShardReader):
        def __init__(self, folder, number, **options):
            opened.append(number)
            super().__init__(folder, number, **options)

        def read(self):
            raise AssertionError("the whole shard is read")

    monkeypatch.setattr(latents_file, "ShardReader", Watched)
    dataset = LatentDataset(cache / "train", seed=0, augmented=True)
    assert len(dataset) == 42
    assert opened == []
    for index in (17, 16, 41, 17):
        assert dataset[SampleKey(0, index)]["mean"].shape == (4, 4, 4)
    assert opened == [2, 5]


def resident_anonymous_kib():
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_rows_of_a_large_shard_cost_no_memory(tmp_path):
    tensors = {"mean": torch.zeros(64, 4, 256, 256), **pack_keys([str(n) for n in range(64)])}
    write_shard(tmp_path, 0, tensors, provenance_hash="x")  # 64 MiB
    del tensors
    before = resident_anonymous_kib()
    reader = ShardReader(tmp_path, 0, provenance_hash="x")
    assert reader.row("mean", 40).sum() == 0
    assert reader.key(40) == "40"
    assert resident_anonymous_kib() - before < 8 * 1024


def test_names_of_any_kind_survive(tmp_path):
    keys = ["a", "", "dög/日本.png", "with\nnewline", "\udcff"]
    write_shard(tmp_path, 0, pack_keys(keys), provenance_hash="x")
    reader = ShardReader(tmp_path, 0, provenance_hash="x")
    assert [reader.key(row) for row in range(len(reader))] == keys


def test_open_files_stay_behind_when_a_worker_is_started(cache):
    dataset = LatentDataset(cache / "train", seed=0, augmented=True)
    expected = dataset[SampleKey(1, 3)]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[SampleKey(1, 3)]["mean"], expected["mean"])


# Resuming


class Recorder(LightningModule):
    """Remembers what it was trained on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(4, 1)
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["key"], batch["mean"]))
        return self.network(batch["mean"].mean((2, 3))).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


def fit(cache, *, num_batches, path=None, num_workers=0):
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=num_batches,
        max_epochs=-1,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    data = latent_module(cache, num_workers=num_workers)
    trainer.fit(module, data, ckpt_path=path, weights_only=True)
    return trainer, module


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(("stop", "num_workers"), [(7, 0), (13, 2), (10, 0)])
def test_a_run_that_stops_within_an_epoch_goes_on_as_if_it_had_not(
    cache, tmp_path, stop, num_workers
):
    _, whole = fit(cache, num_batches=22)
    trainer, first = fit(cache, num_batches=stop, num_workers=num_workers)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _, second = fit(cache, num_batches=22, path=tmp_path / "last.ckpt", num_workers=num_workers)
    seen = first.seen + second.seen
    assert [keys for keys, _ in seen] == [keys for keys, _ in whole.seen]
    for (_, mean), (_, expected) in zip(seen, whole.seen, strict=True):
        assert torch.equal(mean, expected)
    assert torch.equal(second.network.weight, whole.network.weight)


def test_the_position_of_another_cache_is_announced(photos, cache, tmp_path, caplog):
    state = latent_module(cache).train_dataloader().state_dict()
    write_cache(tmp_path, image_module(photos), flip=False)
    latent_module(tmp_path).train_dataloader().load_state_dict(state)
    assert "images=" in caplog.text


@pytest.mark.parametrize("link", [False, True])
def test_one_split_is_not_taken_for_both(copied, link):
    shutil.rmtree(copied / "val")
    if link:
        (copied / "val").symlink_to("train")
    else:
        shutil.copytree(copied / "train", copied / "val")
    with pytest.raises(ValueError, match="'train'.*split='val'"):
        latent_module(copied)
