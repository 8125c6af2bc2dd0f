"""Training and validation images are kept apart, whatever paths and links lead to them."""

import io
import tarfile

import pytest

from tests.data.images.test_image_folder import data_module, write_images
from tests.data.shards.test_webdataset import data_module as shard_module
from tests.data.shards.test_webdataset import png, write_shards


def names_of(dataset):
    return {dataset.key(index) for index in range(len(dataset))}


@pytest.fixture
def photos(tmp_path):
    """Two folders side by side, and one in which both lie."""
    write_images(tmp_path / "both" / "train", 6)
    write_images(tmp_path / "both" / "held_out", 3, first=6)
    return tmp_path


@pytest.mark.parametrize(
    ("root", "val_root", "named"),
    [
        ("both", "both/held_out", "data.val_root"),
        ("both/train", "both", "data.val_root"),
        ("both/train", "both/train", "data.val_fraction"),
        ("both/train", "link_to_train", "data.val_fraction"),
        ("both/train", "link_to_both", "data.val_root"),
        ("link_to_both", "both/held_out", "data.val_root"),
        ("with_link_inside", "both/held_out", "held_out"),
        ("both/held_out", "with_link_inside", "held_out"),
        ("with_linked_file", "both/held_out", "006.png"),
        ("with_hard_link", "both/held_out", "006.png"),
        ("both/held_out", "with_hard_link", "006.png"),
    ],
)
def test_shared_folders_and_files_are_refused_by_name(photos, root, val_root, named):
    both = photos / "both"
    (photos / "link_to_train").symlink_to(both / "train")
    (photos / "link_to_both").symlink_to(both)
    for name in ("with_link_inside", "with_linked_file", "with_hard_link"):
        write_images(photos / name, 2, first=20)
    (photos / "with_link_inside" / "more").symlink_to(both / "held_out")
    (photos / "with_linked_file" / "x.png").symlink_to(both / "held_out" / "006.png")
    (photos / "with_hard_link" / "x.png").hardlink_to(both / "held_out" / "006.png")
    with pytest.raises(ValueError, match=named):
        data_module(photos / root, val_root=str(photos / val_root))


def test_folders_side_by_side_are_accepted(photos):
    module = data_module(photos / "both" / "train", val_root=str(photos / "both" / "held_out"))
    assert not names_of(module.train_dataset) & names_of(module.val_dataset)


@pytest.mark.parametrize("given_val_root", [False, True])
@pytest.mark.parametrize(
    ("train", "val", "others"),
    [
        ("train", "val", ["test"]),
        ("Training", "Validation", []),
        ("TRAIN", "valid", ["extra"]),
        ("train2017", "val2017", []),
        ("train_images", "test-images", []),
        ("train", "eval", ["dev"]),
        ("images/train", "images/val", ["images/test"]),
    ],
)
def test_a_root_that_holds_splits_is_refused_with_the_words(
    tmp_path, train, val, others, given_val_root
):
    root = tmp_path / "root"
    for number, name in enumerate([train, val, *others]):
        write_images(root / name, 2, first=10 * number)
    val_root = str(write_images(tmp_path / "other", 2, first=90)) if given_val_root else None
    with pytest.raises(ValueError, match="data.val_root=") as error:
        data_module(root, val_root=val_root)
    assert f"data.root={root / train} data.val_root={root / val}" in str(error.value)


def test_class_names_that_resemble_a_split_are_classes(tmp_path):
    for name in ("trains", "bus", "test_tube", "valley"):
        write_images(tmp_path / name, 5)
    assert data_module(tmp_path).class_names == ["bus", "test_tube", "trains", "valley"]


def test_links_to_one_file_stay_on_one_side_of_a_split(tmp_path):
    write_images(tmp_path, 20)
    for number in range(20):
        (tmp_path / f"{number:03d}_again.png").hardlink_to(tmp_path / f"{number:03d}.png")
        (tmp_path / f"{number:03d}_soft.png").symlink_to(f"{number:03d}.png")
    module = data_module(tmp_path, val_fraction=0.5)
    sides = [{name[:3] for name in names_of(d)} for d in (module.train_dataset, module.val_dataset)]
    assert not sides[0] & sides[1]
    assert len(module.train_dataset) + len(module.val_dataset) == 60


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder", "url"])
def test_a_shard_of_both_splits_is_refused_by_name(tmp_path, link):
    write_shards(tmp_path / "a", "part")
    other = tmp_path / "b" / "part-0001.tar"
    target = tmp_path / "a" / "part-0001.tar"
    if link == "folder":
        other.parent.symlink_to("a")
    else:
        other.parent.mkdir()
    if link == "symbolic":
        other.symlink_to(target)
    elif link == "hard":
        other.hardlink_to(target)
    val_root = f"file://{target}" if link == "url" else str(other)
    with pytest.raises(ValueError, match=r"part-0001\.tar.*data.val_root"):
        shard_module(
            tmp_path / "a" / "part-*.tar", val_root=val_root, shard_cache_dir=str(tmp_path)
        )


def test_folders_of_shards_are_told_by_their_words(tmp_path):
    for name in ("train", "val"):
        write_shards(tmp_path / name, "part")
    with pytest.raises(ValueError, match="data.val_root=") as error:
        shard_module(tmp_path)
    assert f"data.root={tmp_path / 'train'} data.val_root={tmp_path / 'val'}" in str(error.value)


def test_links_in_a_shard_stay_on_one_side_of_a_split(tmp_path):
    with tarfile.open(tmp_path / "part.tar", "w") as shard:
        for number in range(20):
            info = tarfile.TarInfo(f"{number:02d}.png")
            info.size = len(png(number))
            shard.addfile(info, io.BytesIO(png(number)))
            link = tarfile.TarInfo(f"{number:02d}_again.png")
            link.type, link.linkname = tarfile.LNKTYPE, info.name
            shard.addfile(link)
    module = shard_module(tmp_path)
    sides = [
        {name.split("/")[1][:2] for name in names_of(d)}
        for d in (module.train_dataset, module.val_dataset)
    ]
    assert not sides[0] & sides[1]
    assert len(module.train_dataset) + len(module.val_dataset) == 40
