"""Images to a latent cache from the command line, interrupted, refused, trained on."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.builders.data import build_images
from ldm_lightning.builders.first_stage import stored_first_stage
from ldm_lightning.data.latents import writing as latent_writing
from ldm_lightning.data.latents.module import LatentDataModule
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.restore.first_stage import open_first_stage, rebuild_autoencoder
from ldm_lightning.storage.hashing import hash_tensors
from tests.cli.run import command, environment_of, summary_of, write_images
from tests.module.composed import compose_tiny


def write_run(folder, experiment="kl_f4", *changes, seed=0):
    """A run folder as training leaves it, with random weights."""
    settings = ("data.num_train_images=22", "loss.discriminator_start_steps=1", "trainer=cpu")
    cfg = compose_tiny(experiment, *settings, *changes, folder=folder)
    torch.manual_seed(seed)
    description = stored_first_stage(cfg)
    tensors = rebuild_autoencoder(description).state_dict()
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = {
        "state_dict": {f"autoencoder.{name}": value for name, value in tensors.items()},
        "first_stage": description,
        "global_step": 1,
    }
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "kl_f4")


def encoded(folder, *words, name="latents"):
    ended = command("encode", [f"output={name}", "images_per_shard=8", *words], folder)
    assert ended.code == 0, ended.output
    return folder / name


def refused(folder, *words):
    ended = command("encode", [*words], folder)
    assert ended.code not in (0, None), ended.output
    assert "Traceback" not in ended.output
    return ended.said


def latents_of(folder, **changes):
    settings = {"batch_size": 4, "val_batch_size": 4, "num_workers": 0, "max_val_images": None}
    return LatentDataModule(str(folder), **(settings | {"seed": 0} | changes))


def contents(folder):
    """All files of the cache itself; beside them lie a log and a summary with times."""
    names = [*folder.rglob("*.safetensors"), *folder.rglob("index.json")]
    return {
        path.relative_to(folder): path.read_bytes() for path in [*names, folder / "statistics.json"]
    }


def test_a_run_folder_is_enough_and_gives_what_its_first_stage_gives(run, tmp_path):
    cache = encoded(tmp_path, f"checkpoint={run}")
    first_stage = open_first_stage(run, weights="ema").frozen()
    module = latents_of(cache)
    module.check(first_stage.weights_hash)
    assert (len(module.train_dataset), len(module.val_dataset)) == (22, 13)
    images = build_images(OmegaConf.load(run / "config.yaml"))
    assert module.protocol("val") == images.protocol("val")
    assert module.protocol("train") == images.protocol("train")
    means, variances = [], []
    for index in range(22):
        batch = images.collate_fn([images.train_dataset[SampleKey(0, index)]])
        mean, variance = first_stage.moments(batch["image"])
        stored = module.train_dataset[SampleKey(0, index)]
        torch.testing.assert_close(stored["mean"], mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stored["variance"], variance[0], rtol=1e-4, atol=1e-5)
        assert (stored["key"], stored["label"]) == (batch["key"][0], int(batch["label"][0]))
        means.append(stored["mean"].double().numpy())
        variances.append(stored["variance"].double().numpy())
    values, extra = np.stack(means), np.stack(variances)
    statistics = module.statistics
    assert statistics.channel_means == pytest.approx(values.mean((0, 2, 3)), rel=1e-12)
    expected = np.sqrt(values.var((0, 2, 3), ddof=1) + extra.mean((0, 2, 3)))
    assert statistics.channel_stds == pytest.approx(expected, rel=1e-12)
    assert statistics.num_images == 22
    assert statistics.first_stage_hash == first_stage.weights_hash
    assert statistics.protocol["images"] == images.protocol("train")["images"]


def test_the_cache_says_what_it_was_provenance(run, tmp_path):
    cache = encoded(tmp_path, f"checkpoint={run}", "splits=[train]", "dtype=float16")
    index = json.loads((cache / "train" / "index.json").read_text())
    checkpoint = run / "checkpoints" / "best.ckpt"
    tensors = torch.load(checkpoint, weights_only=True)["state_dict"]
    raw = {name.removeprefix("autoencoder."): value for name, value in tensors.items()}
    assert index["provenance"] == {
        "first_stage_hash": hash_tensors(raw),
        "data": "shapes",
        "split": "train",
        "num_images": 22,
        "resolution": "32x32",
        "channels": 3,
        "value_range": "full",
        "crop": "none",
        "images": index["provenance"]["images"],
        "identified_by": "parameters",
        "flip": False,
        "dtype": "float16",
        "precision": "32",
        "images_per_shard": 8,
    }
    assert index["made_at"] == {
        "first_stage": str(checkpoint),
        "weights": "raw",
        "root": "embedded",
    }
    summary = summary_of(cache)
    assert summary["state"] == "finished"
    assert summary["latents"]["train"]["num_samples"] == 22
    assert summary["latents"]["train"].items() >= index["provenance"].items()
    assert summary["metrics"]["latent/std"] > 0
    assert {"versions", "commit", "config", "memory"} <= set(summary)
    assert not (cache / "val").exists()
    with pytest.raises(ValueError, match=str(cache / "val")):
        latents_of(cache)


def photos(folder):
    write_images(folder / "train", 20)
    write_images(folder / "val", 6, seed=1)
    return [
        "data=image_folder",
        f"data.root={folder / 'train'}",
        f"data.val_root={folder / 'val'}",
        "data.num_workers=0",
        "data.val_batch_size=3",
    ]


@pytest.mark.parametrize("flip", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_mirrored_copies_and_both_evaluation_crops(run, tmp_path, flip):
    words = [f"checkpoint={run}", *photos(tmp_path), f"flip={flip}"]
    center = latents_of(encoded(tmp_path, *words, "eval_crop=center"))
    assert len(center.train_dataset) == 20
    expected = "adm_center + flip" if flip == "true" else "adm_center"
    assert center.protocol("train")["crop"] == expected
    assert center.protocol("val")["crop"] == "adm_center"
    draws = [center.train_dataset[SampleKey(epoch, 3)]["mean"] for epoch in range(8)]
    assert len({tuple(mean.flatten().tolist()) for mean in draws}) == (2 if flip == "true" else 1)
    words += ["eval_crop=crops", "data.val_crops_per_image=2"]
    crops = latents_of(encoded(tmp_path, *words, name="crops"))
    assert (len(crops.train_dataset), len(crops.val_dataset)) == (40, 12)
    told = crops.protocol("val")
    assert (told["num_windows"], told["num_images"]) == (12, 6)
    assert crops.counts(1).windows_per_image == 2


def test_a_first_stage_with_codes_is_encoded_before_quantization(tmp_path):
    run = write_run(
        tmp_path / "vq", "vq_f4", "bottleneck.num_codes=16", "bottleneck.quantize_start_step=0"
    )
    module = latents_of(encoded(tmp_path, f"checkpoint={run}"))
    batch = next(iter(module.val_dataloader()))
    assert set(batch) == {"mean", "label", "key"}
    quantizer = open_first_stage(run, weights="ema").frozen().autoencoder.bottleneck.eval()
    output = quantizer(batch["mean"])
    assert (output.latents - batch["mean"]).abs().max() > 1e-3


# Interrupted


@pytest.mark.slow
def test_interrupted_and_continued_equals_uninterrupted_byte_by_byte(run, tmp_path, monkeypatch):
    stop = 2
    words = [f"checkpoint={run}", *photos(tmp_path), "flip=true"]
    expected = contents(encoded(tmp_path, *words, name="whole"))
    write, written = latent_writing.write_shard, []

    def interrupt(folder, number, *arguments, **options):
        if len(written) == stop:
            # what a killed process leaves: half a file under the temporary name
            (folder / f".{latent_writing.shard_name(number)}.0.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(number)
        write(folder, number, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(latent_writing, "write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encoded(tmp_path, *words)
    cache = tmp_path / "latents"
    assert summary_of(cache)["state"] == "interrupted"
    assert len(list(cache.rglob("*.safetensors"))) == stop
    with pytest.raises(ValueError, match=r"ldm_lightning\.encode"):
        latents_of(cache)
    kept = {path: path.stat().st_ino for path in cache.rglob("*.safetensors")}
    assert encoded(tmp_path, *words) == cache
    assert contents(cache) == expected
    assert all(path.stat().st_ino == number for path, number in kept.items())
    assert not list(cache.rglob("*.tmp"))
    assert summary_of(cache)["state"] == "finished"


def test_a_finished_cache_is_checked_and_kept(run, tmp_path):
    cache = encoded(tmp_path, f"checkpoint={run}")
    before = contents(cache)
    ended = command(
        "encode", [f"checkpoint={run}", "output=latents", "images_per_shard=8"], tmp_path
    )
    assert re.search(r"\b3 shards\b.*\b0\b", ended.said)
    assert contents(cache) == before
    path = cache / "train" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    encoded(tmp_path, f"checkpoint={run}")
    assert contents(cache) == before


# Refused


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["flip=true"], "flip=True"),
        (["dtype=float16"], "dtype='float16'"),
        (["resolution=48"], "resolution='48x48'"),
        (["splits=[val]", "data=shapes", "data.textures=false"], "num_images=2000"),
    ],
)
def test_a_cache_of_other_things_is_refused_by_what_differs(run, tmp_path, words, part):
    cache = encoded(tmp_path, f"checkpoint={run}")
    before = contents(cache) | {"summary": (cache / "summary.json").read_bytes()}
    common = [f"checkpoint={run}", "output=latents", "images_per_shard=8"]
    said = refused(tmp_path, *common, *words)
    assert part in said
    assert "output=" in said
    assert contents(cache) | {"summary": (cache / "summary.json").read_bytes()} == before


def test_a_swapped_first_stage_is_refused_by_both_hashes(run, tmp_path):
    cache = encoded(tmp_path, f"checkpoint={run}")
    other = write_run(tmp_path / "other", seed=1)
    said = refused(tmp_path, f"checkpoint={other}", "output=latents", "images_per_shard=8")
    hashes = [open_first_stage(path, weights="ema").frozen().weights_hash for path in (run, other)]
    assert f"first_stage_hash is {hashes[0]!r}; expected first_stage_hash={hashes[1]!r}" in said
    module = latents_of(cache)
    module.check(hashes[0])
    with pytest.raises(ValueError, match=hashes[1]):
        module.check(hashes[1])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["splits=[test]"], r"splits.*\['train', 'val'\].*\['test'\]"),
        (["dtype=int8"], "dtype.*float32, float16.*'int8'"),
        (["resolution=30"], r"\b30x30\b.*\b4\b"),
        (["weights=best"], "weights.*'ema'.*'raw'.*best"),
    ],
)
def test_a_value_out_of_range_is_named(run, tmp_path, words, part):
    assert re.search(part, refused(tmp_path, f"checkpoint={run}", "output=latents", *words))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_was_not_given_is_asked_for(run, tmp_path):
    assert "checkpoint=RUN" in refused(tmp_path, "output=latents")
    assert re.search(r"\boutput\b", refused(tmp_path, f"checkpoint={run}"))


def test_a_cache_is_not_encoded_again(run, tmp_path):
    cache = encoded(tmp_path, f"checkpoint={run}")
    words = [f"checkpoint={run}", "output=again", "data=latents", f"data.root={cache}"]
    assert "data=latents" in refused(tmp_path, *words)


@pytest.mark.parametrize("place", ["checkpoint", "config"])
def test_a_foreign_target_is_refused_and_not_called(tmp_path, place):
    run, sprung = write_run(tmp_path / "run"), tmp_path / "sprung"
    foreign = {"_target_": "os.mkdir", "path": str(sprung)}
    if place == "checkpoint":
        path = run / "checkpoints" / "best.ckpt"
        content = torch.load(path, weights_only=True)
        content["first_stage"]["bottleneck"] = foreign
        torch.save(content, path)
    else:
        config = OmegaConf.load(run / "config.yaml")
        config.data = foreign
        OmegaConf.save(config, run / "config.yaml")
    said = refused(tmp_path, f"checkpoint={run}", "output=latents")
    assert "'os.mkdir'" in said
    assert not sprung.exists()


# Processes


@pytest.mark.slow
def test_two_processes_make_the_cache_of_one(run, tmp_path):
    words = [f"checkpoint={run}", *photos(tmp_path), "flip=true"]
    expected = contents(encoded(tmp_path, *words, name="one"))
    arguments = [sys.executable, "-m", "ldm_lightning.encode", "output=two", "images_per_shard=8"]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731", "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [*arguments, *words],
            cwd=tmp_path,
            env=os.environ
            | environment_of(tmp_path)
            | places
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [each.wait(timeout=240) for each in started] == [0, 0]
    found = contents(tmp_path / "two")
    statistics = [
        json.loads(each.pop(name))
        for each in (found, expected)
        for name in [next(path for path in each if path.name == "statistics.json")]
    ]
    assert found == expected
    for name in ("mean", "std", "channel_means", "channel_stds", "num_images"):
        assert statistics[0][name] == pytest.approx(statistics[1][name], rel=1e-12)
