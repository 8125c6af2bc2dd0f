import re

import pytest

from ldm_lightning.utils.targets import check_targets

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
        "ldm_lightning.utils.files.os.system",  # reached through our own module
        "ldm_lightning.nn.blocks.torch.load",
        "ldm_lightning.nn.blocks.nn.Linear",  # imported there, defined elsewhere
        "ldm_lightning.nn.blocks.nn",
        "ldm_lightning.nn.blocks.ResidualBlock.forward",
        "ldm_lightning.nn.blocks.__builtins__",
        "ldm_lightning.nn.blocks",
        "ldm_lightning.nn.missing.Part",
        "ldm_lightning.nnx.Part",
        "ldm_lightning.utils.run_folder.RunFolder",
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


def test_interpolations_are_refused():
    with pytest.raises(ValueError, match=r"\$\{oc\.env:SECRET\}"):
        check_targets({"_target_": OURS, "width": "${oc.env:SECRET}"})
