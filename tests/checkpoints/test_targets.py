import re

import pytest

from ldm_lightning.checkpoints.targets import check_targets, read_stored

OURS = "ldm_lightning.nn.blocks.ResidualBlock"


def test_our_own_parts_are_allowed_at_any_depth():
    check_targets({"_target_": OURS, "list": [{"part": {"_target_": OURS, "width": 8}}, 3, None]})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.nn.Linear",
        "hydra.utils.get_method",
        "ldm_lightning.storage.files.os.system",  # reached through our own module
        "ldm_lightning.nn.blocks.torch.load",
        "ldm_lightning.nn.blocks.nn.Linear",  # imported there, defined elsewhere
        "ldm_lightning.nn.blocks.nn",
        "ldm_lightning.nn.blocks.ResidualBlock.forward",
        "ldm_lightning.nn.blocks.__builtins__",
        "ldm_lightning.nn.blocks",
        "ldm_lightning.nn.missing.Part",
        "ldm_lightning.nnx.Part",
        "ldm_lightning.runs.run_folder.RunFolder",
        "ldm_lightning.nn..blocks.ResidualBlock",
        "ResidualBlock",
        "",
        3,
        ["os.system"],
    ],
)
@pytest.mark.parametrize("wrap", [lambda node: node, lambda node: {"a": [{"b": node}]}])
def test_everything_else_is_refused(target, wrap):
    with pytest.raises(ValueError, match=re.escape(repr(target))):
        check_targets(wrap({"_target_": target}))


@pytest.mark.parametrize("key", ["width", "${oc.env:SECRET}"])
@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a ${b}", "\\${escaped}"])
def test_interpolations_are_refused(key, text):
    with pytest.raises(ValueError, match=r"\$\{"):
        check_targets({"_target_": OURS, "list": [{key: text}]})


def test_null_builds_nothing_and_may_be_stored():
    check_targets({"_target_": None})


def test_one_class_may_be_named_without_the_rest_of_its_package():
    check_targets({"_target_": OURS}, allowed={OURS})
    with pytest.raises(ValueError, match="AttentionBlock"):
        check_targets({"_target_": "ldm_lightning.nn.blocks.AttentionBlock"}, allowed={OURS})
    with pytest.raises(ValueError, match="blocks.nn"):  # a module: refused where it is named too
        check_targets(
            {"_target_": "ldm_lightning.nn.blocks.nn"}, allowed={"ldm_lightning.nn.blocks.nn"}
        )


def test_a_stored_file_is_read_and_named_where_it_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"part:\n  _target_: {OURS}\n  width: 1e-3\n")
    assert read_stored(path, allowed={OURS}) == {"part": {"_target_": OURS, "width": 1e-3}}
    for text in ("a: ${b}\n", "a: {_target_: os.system}\n", "- 1\n", "a: &b [1]\nc: *b\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="config.yaml"):
            read_stored(path, allowed={OURS})
    with pytest.raises(FileNotFoundError):
        read_stored(tmp_path / "missing.yaml", allowed={OURS})
