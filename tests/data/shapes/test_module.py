"""The procedural data set: the same everywhere, balanced, shapes that stand out."""

import hashlib

import numpy as np
import pytest
import torch

from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.shapes.module import CLASS_NAMES, COLORS, GRAYS, Shapes, shapes_data_module

SETTINGS = {
    "resolution": 32,
    "image_channels": 3,
    "textures": True,
    "num_train_images": 64,
    "num_val_images": 20,
    "batch_size": 8,
    "val_batch_size": 8,
    "num_workers": 0,
    "max_val_images": None,
    "seed": 0,
}


def shapes(resolution=(32, 32), image_channels=3, textures=True, split="train", num_images=240):
    return Shapes(
        resolution=resolution,
        image_channels=image_channels,
        textures=textures,
        split=split,
        num_images=num_images,
    )


def draw(dataset, indices=None):
    return [dataset[SampleKey(0, i)] for i in indices or range(len(dataset))]


@pytest.mark.parametrize("textures", [True, False])
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("resolution", [(32, 32), (64, 64), (24, 56)])
def test_any_size_and_number_of_channels(resolution, image_channels, textures):
    for sample in draw(shapes(resolution, image_channels, textures, num_images=50)):
        assert sample["image"].shape == (image_channels, *resolution)
        assert sample["image"].dtype == torch.uint8


def test_an_image_is_a_function_of_its_number():
    first = draw(shapes(), [3, 17, 100])
    again = draw(shapes(num_images=500), [3, 17, 100])
    other_epoch = [shapes()[SampleKey(9, i)] for i in (3, 17, 100)]
    for one, two, three in zip(first, again, other_epoch, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["image"], three["image"])
        assert one["caption"] == two["caption"]


def test_all_images_differ_within_and_between_the_splits():
    hashes = [
        hashlib.sha256(sample["image"].numpy().tobytes()).digest()
        for split in ("train", "val")
        for sample in draw(shapes(split=split))
    ]
    assert len(set(hashes)) == 480


def test_classes_are_balanced_and_named_in_the_caption():
    samples = draw(shapes())
    counts = np.bincount([sample["label"] for sample in samples])
    assert counts.tolist() == [30] * len(CLASS_NAMES)
    for sample in samples:
        subject, ground = sample["caption"].removeprefix("a ").split(" on ")
        color, shape = subject.rsplit(" ", 1)
        assert shape == CLASS_NAMES[sample["label"]]
        assert color in COLORS
        assert color not in ground


@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("textures", [True, False])
def test_the_shape_has_its_color_and_stands_out_from_every_pixel_around_it(
    image_channels, textures
):
    palette = COLORS if image_channels == 3 else GRAYS
    least = 60 if image_channels == 1 else 85
    for sample in draw(shapes((64, 64), image_channels, textures)):
        color = sample["caption"].removeprefix("a ").split(" on ")[0].rsplit(" ", 1)[0]
        pixels = sample["image"].permute(1, 2, 0).float().numpy()
        distance = np.linalg.norm(pixels - np.array(palette[color]), axis=-1)
        shape = distance <= 12 * image_channels**0.5  # the color's jitter
        edge = distance < least
        assert 0.02 < shape.mean() < 0.6
        # Between the shape's color and the ground's there is nothing but the soft edge.
        assert (edge & ~shape).sum() < 0.45 * shape.sum()
        assert (~edge).mean() > 0.3


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_shapes_lie_within_the_image(name):
    indices = [i for i in range(240) if i % len(CLASS_NAMES) == CLASS_NAMES.index(name)]
    for sample in draw(shapes((64, 64), textures=False), indices):
        ground = sample["image"][:, 0, 0]
        image = sample["image"]
        border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
        assert (border == ground[:, None]).all()


def test_areas_and_outlines_are_those_of_the_classes():
    # The share of its bounding square that a shape covers tells most of them apart.
    dataset = shapes((128, 128), textures=False, num_images=400)
    fill = {name: [] for name in CLASS_NAMES}
    for sample in draw(dataset):
        image = sample["image"].float()
        inside = ((image - image[:, :1, :1]).norm(dim=0) > 60).numpy()
        rows, columns = np.nonzero(inside)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        fill[CLASS_NAMES[sample["label"]]].append(inside.sum() / extent**2)
    mean = {name: np.mean(values) for name, values in fill.items()}
    assert mean["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert mean["ring"] == pytest.approx(np.pi / 4 * (1 - (0.47 / 0.93) ** 2), abs=0.02)
    assert mean["bar"] < 0.5 * mean["square"]
    assert mean["star"] < mean["triangle"] + 0.1 < mean["square"] + 0.1


def test_textures_add_detail_and_plain_grounds_have_none():
    def share_of_changes(textures):
        images = torch.stack([s["image"] for s in draw(shapes(textures=textures))])
        return (images[..., 1:] != images[..., :-1]).float().mean()

    assert share_of_changes(False) < 0.15
    assert share_of_changes(True) > 0.5


def test_data_module_gives_labels_captions_and_distinct_splits():
    module = shapes_data_module(**SETTINGS)
    module.num_train_batches = 8
    trained = [key for batch in module.train_dataloader() for key in batch["key"]]
    assert len(set(trained)) == 64
    batch = next(iter(module.val_dataloader()))
    assert batch["label"].dtype == torch.int64
    assert batch["image"].shape == (8, 3, 32, 32)
    assert len(batch["caption"]) == 8
    assert not set(batch["key"]) & set(trained)
    assert module.num_classes == 8
    assert module.class_names == CLASS_NAMES
    assert module.bad_files() == []


def test_the_seed_of_the_run_sets_the_order_but_not_the_images():
    keys = []
    for seed in (0, 1):
        module = shapes_data_module(**(SETTINGS | {"seed": seed}))
        module.num_train_batches = 8
        keys.append([key for batch in module.train_dataloader() for key in batch["key"]])
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])


def test_the_protocol_changes_with_the_images():
    def images(**changes):
        return shapes_data_module(**(SETTINGS | changes)).protocol("val")["images"]

    assert images() == images(seed=5, num_train_images=100)
    assert len({images(), images(textures=False), images(num_val_images=10)}) == 3
    assert len({images(max_val_images=5), images(max_val_images=6)}) == 2
    protocol = shapes_data_module(**(SETTINGS | {"max_val_images": 7})).protocol("val")
    assert protocol["num_images"] == 7
    assert all(isinstance(value, str | int | float) for value in protocol.values())
    with pytest.raises(ValueError, match="split.*'test'"):
        shapes_data_module(**SETTINGS).protocol("test")


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="image_channels=4"):
        shapes_data_module(**(SETTINGS | {"image_channels": 4}))
    with pytest.raises(ValueError, match=r"\bval\b.*\b0\b"):
        shapes_data_module(**(SETTINGS | {"num_val_images": 0}))
