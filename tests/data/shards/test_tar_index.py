"""Which members of a tar belong to one sample, and which are counted as not read."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.data.shards.tar_index import index_shard


def indexed(members, tmp_path, *, change=None):
    """Index a tar of (name, content) pairs; a name may occur twice."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change is not None:
                change(info)
            shard.addfile(info, io.BytesIO(content))
    with path.open("rb") as file:
        content = index_shard(file, "s.tar")
        found = []
        for sample in content.samples:
            file.seek(sample.image.offset)
            found.append((sample.key, sample.label, file.read(sample.image.size)))
    return found, {name: reason.count for name, reason in content.left_out.reasons.items()}


def test_dots_in_names_lose_no_image(tmp_path):
    names = [f"{n:02}.png" for n in range(20)] + [f"{n:02}.v2.png" for n in range(20, 40)]
    found, left_out = indexed([(name, name.encode()) for name in names], tmp_path)
    assert [content.decode() for _, _, content in found] == names
    assert left_out == {}


def test_images_beside_that_of_a_sample_are_counted(tmp_path):
    names = ["a.seg.png", "a.jpg", "a.png", "b.png"]
    found, left_out = indexed([(name, name.encode()) for name in names], tmp_path)
    assert [content for _, _, content in found] == [b"a.jpg", b"b.png"]
    assert list(left_out.values()) == [2]


def test_labels_are_found_under_the_own_name_or_that_of_the_sample(tmp_path):
    members = [("p.1.png", b"1"), ("p.2.png", b"2"), ("p.cls", b"4"), ("p.2.CLS", b"7")]
    members += [("q.png", b"3"), ("lost.cls", b"1"), ("lost.txt", b"x"), ("q.7.txt", b"x")]
    found, left_out = indexed(members, tmp_path)
    assert found == [("p.1", 4, b"1"), ("p.2", 7, b"2"), ("q", None, b"3")]
    assert list(left_out.values()) == [3]


def test_of_a_repeated_name_the_last_counts_as_where_a_tar_is_unpacked(tmp_path):
    found, left_out = indexed([("a.png", b"old"), ("a.png", b"new")], tmp_path)
    assert found == [("a", None, b"new")]
    assert left_out == {"repeated names": 1}


@pytest.mark.parametrize("content", [b"dog", b"-1", b"1.5", b"", b"9" * 1000])
def test_a_label_that_is_no_whole_number_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"s\.tar: a\.cls"):
        indexed([("a.png", b""), ("a.cls", content)], tmp_path)


def test_a_hard_link_that_states_a_size_does_not_shift_what_follows(tmp_path):
    path = tmp_path / "s.tar"
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    with tarfile.open(path, "w") as shard:
        info = tarfile.TarInfo("a.png")
        info.size = len(content)
        shard.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "./a.png", len(content)
        shard.addfile(link)
    with path.open("rb") as file:
        one, other = index_shard(file, "s.tar").samples
    assert one.image == other.image
