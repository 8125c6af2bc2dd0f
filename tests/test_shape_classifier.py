import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.shapes.module import CLASS_NAMES
from tests import shape_classifier
from tests.shape_classifier import (
    SIZE,
    ShapeClassifier,
    blurred,
    labels_of,
    read_samples,
    report,
    trained_classifier,
)


class ByMean(torch.nn.Module):
    """Reads class k in an image of the level k / 10."""

    def forward(self, images):
        levels = torch.arange(len(CLASS_NAMES)) / 10
        return -(images.mean(dim=(1, 2, 3))[:, None] - levels).abs()


def write(folder, classes):
    folder.mkdir(parents=True)
    for number, k in enumerate(classes):
        pixels = np.full((SIZE, SIZE, 3), round((k / 10 + 1) * 127.5), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")


def test_shares_are_those_of_the_images(tmp_path):
    write(tmp_path / "images", [0, 1, 1, 3])
    (tmp_path / "labels.json").write_text(json.dumps({"labels": [0, 1, 2, None]}))
    result = read_samples(ByMean(), tmp_path, "labels.json")
    assert (result["num_images"], result["num_labeled"]) == (4, 3)
    assert result["requested_class_read"] == pytest.approx(2 / 3)
    assert result["by_requested_class"] == {"circle": 1, "square": 1, "triangle": 0}
    assert [result["read_shares"][CLASS_NAMES[k]] for k in range(4)] == [0.25, 0.5, 0, 0.25]
    record = {
        "held_out_accuracy": 1,
        "held_out_accuracy_blurred": 0.5,
        "blur_sigma": 0.8,
    }
    assert re.search(r"66\.67%.*n = 3\b", report(record, result))


def test_images_without_labels_are_counted_by_what_is_read(tmp_path):
    write(tmp_path / "flat", [5, 5])
    result = read_samples(ByMean(), tmp_path / "flat", "labels.json")
    assert result["read_shares"]["heart"] == 1
    assert "requested_class_read" not in result


def test_classes_in_names(tmp_path):
    assert labels_of(["ring/7.png", "bar_2.png"], tmp_path, "names") == [6, 7]
    with pytest.raises(ValueError, match="'disc'"):
        labels_of(["disc_1.png"], tmp_path, "names")


def test_labels_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "labels.json").write_text('{"labels": [0]}')
    with pytest.raises(ValueError, match="1 entries"):
        labels_of(["000001.png"], tmp_path, "labels.json")


def test_blur_keeps_the_mean_of_a_flat_image():
    flat = torch.full((1, 3, SIZE, SIZE), 0.25)
    assert torch.allclose(blurred(flat, 0.8), flat)


def test_kept_weights_are_those_that_were_trained(tmp_path, monkeypatch):
    small = {"num_train_images": 32, "num_test_images": 8, "epochs": 1, "batch_size": 16}
    monkeypatch.setattr(shape_classifier, "SETTINGS", shape_classifier.SETTINGS | small)
    path = tmp_path / "weights.safetensors"
    first, record = trained_classifier(path)
    again, kept = trained_classifier(path)
    assert kept == record
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(first(images), again(images))
    monkeypatch.setitem(shape_classifier.SETTINGS, "epochs", 2)
    with pytest.raises(ValueError, match=str(path)):
        trained_classifier(path)


def test_brightness_and_contrast_do_not_matter():
    network = ShapeClassifier().eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(network(images), network(images * 0.5 + 0.2), atol=0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute of work, on a machine that may be busy
def test_held_out_shapes_are_read(tmp_path):
    _, record = trained_classifier(tmp_path / "weights.safetensors")
    assert record["held_out_accuracy"] > 0.95
    assert record["held_out_accuracy_blurred"] > 0.9
