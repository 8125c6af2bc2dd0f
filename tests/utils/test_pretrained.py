import logging
import pickle
import threading
import time

import pytest
import torch

from ldm_lightning.storage.hashing import hash_json, hash_tensors
from ldm_lightning.utils import pretrained
from ldm_lightning.utils.pretrained import (
    WEIGHT_FILES,
    MissingWeightsError,
    load_weights,
    require_weights,
    weights_path,
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


def no_network(url):
    return False


def test_finds_a_file_in_the_hub_cache_and_in_an_explicit_directory(hub, tmp_path):
    hub.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, hub / WEIGHT_FILES["alexnet"])
    assert weights_path("alexnet") == hub / WEIGHT_FILES["alexnet"]
    assert weights_path("alexnet", weights_dir=str(hub)) == hub / WEIGHT_FILES["alexnet"]
    assert torch.equal(load_weights("alexnet")["w"], torch.ones(2))


def test_names_every_missing_file_where_to_put_it_and_the_way_on(hub, monkeypatch):
    monkeypatch.setattr(pretrained, "_answers", no_network)
    with pytest.raises(MissingWeightsError) as caught:
        require_weights(["alexnet", "vgg16", "inception"])
    message = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    for part in (*(WEIGHT_FILES[n] for n in ("alexnet", "vgg16", "inception")), str(hub)):
        assert part in message
    assert "features=tiny" in message


def test_an_explicit_directory_is_never_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_answers", lambda url: pytest.fail("asked the network"))
    with pytest.raises(MissingWeightsError, match=str(tmp_path)):
        require_weights(["vgg16"], weights_dir=tmp_path)


def test_downloads_with_the_published_hash_where_a_network_answers(hub, monkeypatch):
    asked = []

    def download(url, path, hash_prefix, progress):
        asked.append((url.rsplit("/", 1)[-1], hash_prefix))
        torch.save({}, path)

    monkeypatch.setattr(pretrained, "_answers", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    paths = require_weights(list(WEIGHT_FILES))
    assert all(path.is_file() for path in paths.values())
    assert asked == [(name, name[-12:-4]) for name in WEIGHT_FILES.values()]


def test_a_failed_download_counts_as_missing(hub, monkeypatch):
    def download(url, path, hash_prefix, progress):
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(pretrained, "_answers", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(MissingWeightsError, match="squeezenet1_1"):
        require_weights(["squeezenet1_1"])


def test_a_silent_network_is_given_up_within_the_timeout(monkeypatch):
    hang_up = threading.Event()

    def silence(*args, **kwargs):
        hang_up.wait(10)
        raise OSError("no answer")

    monkeypatch.setattr(pretrained, "NETWORK_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", silence)
    begin = time.monotonic()
    assert not pretrained._answers("https://example.invalid/file")
    assert time.monotonic() - begin < 5
    hang_up.set()


def test_refuses_a_network_it_knows_no_weights_of():
    with pytest.raises(ValueError, match="'resnet'.*alexnet"):
        require_weights(["resnet"])


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "content", [b"", b"not a file of weights", pickle.dumps(Payload(), protocol=2)]
)
def test_refuses_files_that_hold_anything_but_tensors(tmp_path, content, capsys):
    (tmp_path / WEIGHT_FILES["alexnet"]).write_bytes(content)
    with pytest.raises(ValueError, match=WEIGHT_FILES["alexnet"]):
        load_weights("alexnet", weights_dir=tmp_path)
    assert "unpickled" not in capsys.readouterr().out


def test_refuses_a_list_of_tensors(tmp_path):
    torch.save([torch.ones(1)], tmp_path / WEIGHT_FILES["alexnet"])
    with pytest.raises(ValueError, match=r"\bdict\b.*\blist\b"):
        load_weights("alexnet", weights_dir=tmp_path)


def test_warns_about_a_file_that_is_not_the_published_one(tmp_path, caplog):
    torch.save({"w": torch.ones(1)}, tmp_path / WEIGHT_FILES["alexnet"])
    with caplog.at_level(logging.WARNING):
        load_weights("alexnet", weights_dir=tmp_path)
    assert WEIGHT_FILES["alexnet"] in caplog.text


def test_weight_hash_depends_on_names_types_shapes_and_values_but_not_on_order():
    one = {"a": torch.ones(2, 3), "b": torch.zeros(())}
    assert hash_tensors(one) == hash_tensors(dict(reversed(one.items())))
    others = [
        {"c": torch.ones(2, 3), "b": torch.zeros(())},
        {"a": torch.ones(2, 3).double(), "b": torch.zeros(())},
        {"a": torch.ones(3, 2), "b": torch.zeros(())},
        {"a": torch.ones(2, 3), "b": torch.ones(())},
    ]
    assert len({hash_tensors(other) for other in [one, *others]}) == 5


def test_json_hash_ignores_the_order_of_keys():
    assert hash_json({"a": 1, "b": "x"}) == hash_json({"b": "x", "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
