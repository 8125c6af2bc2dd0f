"""Keywords of parts are those of their constructors, read from source."""

import inspect
import re
import sys
import textwrap
from importlib import import_module

import pytest
from omegaconf import OmegaConf

from ldm_lightning.checks.constructors import keywords_of, wrong_keywords
from ldm_lightning.config import CONF_DIR
from tests.checks.test_keys import check, composed

TARGETS = sorted(
    {
        target
        for path in CONF_DIR.rglob("*.yaml")
        for target in re.findall(r"_target_: (ldm_lightning[\w.]+)", path.read_text())
    }
)


@pytest.mark.parametrize("target", [*TARGETS, "torch.optim.AdamW", "torch.nn.Conv2d"])
def test_keywords_are_those_that_python_says(target):
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    known = keywords_of(target)
    if known is not None:
        assert known == {parameter.name for parameter in parameters}
        assert all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters)


def test_most_parts_of_this_package_are_checked():
    unchecked = [target for target in TARGETS if keywords_of(target) is None]
    assert len(unchecked) <= 2
    assert len(TARGETS) > 50


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user's own, which fails when it is imported."""
    folder = tmp_path / "strange_parts" / "inner"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("from .inner.parts import Fresh as Renamed\n1 / 0\n")
    (folder / "__init__.py").write_text("")
    text = """
        from abc import ABC
        from dataclasses import dataclass, field
        from typing import ClassVar

        from ..base import Base

        class Fresh:
            def __init__(self, width, /, depth, *, rate=1.0):
                pass

        class Inherited(Base):
            pass

        @dataclass(frozen=True)
        class Record(ABC):
            width: int
            rates: list = field(default_factory=list)

        @dataclass
        class Special:
            width: int = field(init=False)

        @dataclass
        class Constant:
            width: ClassVar[int] = 3

        class Open:
            def __init__(self, **settings):
                pass

        def made(width, *, depth=1):
            return Fresh(width, depth)

        @decorated
        def wrapped(width):
            pass
    """
    (folder / "parts.py").write_text(textwrap.dedent(text))
    (folder.parent / "base.py").write_text("class Base:\n    def __init__(self, size): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "strange_parts.inner.parts"
    assert not any(name.startswith("strange_parts") for name in sys.modules)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Fresh", {"depth", "rate"}),
        ("Inherited", {"size"}),
        ("Record", {"width", "rates"}),
        ("made", {"width", "depth"}),
        *((name, None) for name in ("Special", "Constant", "Open", "wrapped", "Missing")),
    ],
)
def test_keywords_of_a_package_that_is_not_imported(package, name, expected):
    found = keywords_of(f"{package}.{name}")
    assert (None if found is None else set(found)) == expected


def test_an_import_by_name_is_followed(package):
    assert keywords_of("strange_parts.Renamed") == {"depth", "rate"}


def test_an_unknown_keyword_is_named_with_its_part_and_the_known_ones(package):
    part = {"_target_": f"{package}.made", "width": 1, "deepth": 2, "_convert_": "all"}
    [line] = wrong_keywords({"denoiser": part, "seed": 1})
    assert line.startswith(f"denoiser.deepth: {package}.made ")
    assert line.endswith("depth, width.")
    [line] = wrong_keywords({"callbacks": {"mine": {"_target_": "absent_package.Thing"}}})
    assert line.startswith("callbacks.mine._target_=absent_package.Thing: ")


def test_a_part_with_the_target_of_another_is_refused():
    cfg, choices = composed("train", ("experiment=kl_f8",))
    changed = cfg.copy()
    check(changed, choices)
    other = "ldm_lightning.bottleneck.vector_quantizer.VectorQuantizer"
    OmegaConf.update(changed, "bottleneck._target_", other)
    with pytest.raises(ValueError, match=r"bottleneck.initial_log_variance.*num_codes"):
        check(changed, choices)
