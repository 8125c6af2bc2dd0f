"""Kinds of value that each key of the configuration may hold: the type of its default, and bounds.

Checked before torch is imported, so that ``loss.kl_weight=abc`` is refused at once and by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

INFINITY = math.inf

NUMERAL = re.compile(r"\s*[-+]?[\d.]+([eE][-+]?\d+)?\s*")


@dataclass(frozen=True)
class Kind:
    """Kind of value that a key may hold.

    Attributes:
        name: ``flag``, ``whole``, ``number`` (whole or not), ``text``, ``path`` or ``any``.
        least: Smallest number.
        most: Largest number.
        is_open: Whether ``least`` itself is too small.
        is_list: Whether the key holds a list of such values.
        length: Of that list; None for any.
        or_one: Whether one value may stand for the list.
        or_null: Whether null is a value.
        words: Texts that may stand for the value, such as ``auto``.
    """

    name: str
    least: float = -INFINITY
    most: float = INFINITY
    is_open: bool = False
    is_list: bool = False
    length: int | None = None
    or_one: bool = False
    or_null: bool = False
    words: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Return whether a plain value, list or dict is of this kind."""
        if value is None:
            return self.or_null
        if isinstance(value, str) and value in self.words:
            return True
        if self.is_list and isinstance(value, list):
            return self.length in (None, len(value)) and all(map(self._accepts_one, value))
        return (not self.is_list or self.or_one) and self._accepts_one(value)

    def _accepts_one(self, value: Any) -> bool:
        if self.name == "any":
            return True
        if self.name in ("text", "path"):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return isinstance(value, str) or (is_number and self.name == "text")
        if self.name == "flag":
            return isinstance(value, bool)
        types = (int,) if self.name == "whole" else (int, float)
        if isinstance(value, bool) or not isinstance(value, types) or not math.isfinite(value):
            return False
        return (value > self.least if self.is_open else value >= self.least) and value <= self.most

    def __str__(self) -> str:
        """Such as ``a whole number of at least 1, or null``."""
        names = {"flag": "true or false", "whole": "a whole number", "number": "a number"}
        said = names.get(self.name, f"a {self.name}")
        if self.least > -INFINITY:
            said += f" {'above' if self.is_open else 'of at least'} {self.least:g}"
        if self.most < INFINITY:
            said += f"{' and' if self.least > -INFINITY else ' of'} at most {self.most:g}"
        if self.is_list:
            number = "" if self.length is None else f" of {self.length}"
            alone = f"{said}, or " if self.or_one else ""
            said = f"{alone}a list{number}, each {said}"
        others = [*self.words, *(["null"] if self.or_null else [])]
        return "".join([said, *(f", or {word}" for word in others)])


FLAG = Kind("flag")
TEXT = Kind("text")
PATH = Kind("path")
ANY = Kind("any")
ANY_NUMBER = Kind("number")
NUMBER = Kind("number", least=0)
POSITIVE = Kind("number", least=0, is_open=True)
FRACTION = Kind("number", least=0, most=1)
WHOLE = Kind("whole", least=0)
COUNT = Kind("whole", least=1)
SIZE = replace(COUNT, is_list=True, length=2, or_one=True)

KINDS: Mapping[str, Kind] = {
    # paths, in which ~ is the home
    "output_dir": PATH,
    "output": PATH,
    "checkpoint": PATH,
    "first_stage.checkpoint": PATH,
    "resume": PATH,
    "images": PATH,
    "reference": PATH,
    "*cache_dir": PATH,
    "data.root": PATH,
    "data.val_root": PATH,
    "*weights_dir": PATH,
    "runs": replace(PATH, is_list=True, or_one=True),
    # one value or several
    "resolution": SIZE,
    "data.resolution": SIZE,
    "conditioner.latent_size": SIZE,
    "splits": replace(TEXT, is_list=True, or_one=True),
    "labels": replace(ANY, or_null=True),
    "data.classes": replace(TEXT, is_list=True),
    "data.value_range": replace(ANY_NUMBER, is_list=True, length=2),
    "*precision": TEXT,
    "optim.betas": replace(FRACTION, is_list=True, length=2),
    "data.crop_scale": replace(FRACTION, is_open=True, is_list=True, length=2),
    "sampler.guidance_interval": replace(FRACTION, is_list=True, length=2),
    "*attention_at": replace(COUNT, is_list=True),
    "*width_multipliers": replace(COUNT, is_list=True),
    "downsampling_factors": replace(COUNT, is_list=True),
    # numbers whose default is null, asked for or computed
    "optim.learning_rate": NUMBER,
    "optim.clip_norm": POSITIVE,
    "loss.discriminator_start_steps": WHOLE,
    "loss.perceptual_weight": NUMBER,
    "sampler.guidance_scale": ANY_NUMBER,
    "denoiser.head_width": replace(COUNT, or_null=True),
    "denoiser.num_heads": replace(COUNT, or_null=True),
    "denoiser.context_width": COUNT,
    "conditioner.width": COUNT,
    "data.shuffle_shards": COUNT,
    "trainer.devices": replace(COUNT, words=("auto",)),
    "gate.thresholds.*.at_*": replace(ANY_NUMBER, or_null=True),
    "gate.thresholds.*.metric": TEXT,
    "gate.thresholds.*.when": replace(TEXT, or_null=True),
    "gate.thresholds.*": replace(ANY, or_null=True),
    "callbacks.checkpointing.higher_is_better": FLAG,
    "callbacks.stall_stopping.monitors": ANY,
    "callbacks.codebook_alarm.perplexity_fraction": FRACTION,
    "*channels": COUNT,
    "*downsampling_factor": COUNT,
    # numbers that are not only at least 0
    "bottleneck.initial_log_variance": ANY_NUMBER,
    "diffusion.training_times.mean": ANY_NUMBER,
    "validation.num_samples": WHOLE,
    "samples.num_samples": replace(COUNT, least=2),
    "denoiser.transformer_depth": WHOLE,
    "*prior_samples": WHOLE,
    "data.num_workers": WHOLE,
    "*warmup_steps": WHOLE,
    "*ramp_steps": WHOLE,
    "bottleneck.quantize_start_step": WHOLE,
    "bottleneck.restart_every_steps": WHOLE,
    "*_seconds": POSITIVE,
    "*_gib": POSITIVE,
    "*dropout": FRACTION,
    "callbacks.ema.decay": FRACTION,
    "*sigma_data": POSITIVE,
    "diffusion.training_times.std": POSITIVE,
    "*every_*steps": COUNT,
    "*num_*": COUNT,
    "*_width": COUNT,
    "*width": COUNT,
    "*batch_size": COUNT,
    "*max_*images": COUNT,
    "*images_per_shard": COUNT,
    "*per_image": COUNT,
    "*max_steps": COUNT,
    "*batches": COUNT,
    "*patience": COUNT,
    "*patch_size": COUNT,
}
"""By key, the first that fits; any other key holds what its default is, numbers of at least 0."""

OPEN_MAPPINGS = ("loss.terms", "metrics")
"""Mappings whose entries the user names; each builds a class."""

NODES_OR_NULL = ("callbacks.*", "gate.thresholds.*", "logger.*", "discriminator", "loss.perceptual")
"""Mappings that null switches off."""


def kind_of(key: str, default: Any) -> Kind:
    """Kind of value that a key may hold.

    Args:
        key: Its full name.
        default: What conf/ says: a plain value, a list, an interpolation, ``???`` or None.
    """
    known = next((kind for pattern, kind in KINDS.items() if fnmatchcase(key, pattern)), None)
    kind = known or _of_default(default)
    if isinstance(default, list) and not kind.is_list:  # several of what one is elsewhere
        kind = replace(kind, is_list=True)
    return replace(kind, or_null=True) if default is None else kind


def _of_default(default: Any) -> Kind:
    if isinstance(default, bool):
        return FLAG
    if isinstance(default, int):
        return WHOLE
    if isinstance(default, float):
        return NUMBER
    if isinstance(default, list):
        return replace(TEXT, is_list=True)
    if default is None or not isinstance(default, str) or "${" in default:
        return replace(TEXT, or_null=True)
    return TEXT


def wrong_values(value: Any, default: Any, *, key: str = "") -> list[str]:
    """Return what is wrong with the values below a key, one line each.

    Args:
        value: Of the configuration: dicts, lists and plain values; interpolations are resolved,
            except those of the defaults.
        default: The same place of the defaults.
        key: The full name of that place; empty for the whole.
    """
    if key in OPEN_MAPPINGS:
        return _wrong_entries(value, key)
    if isinstance(default, dict) and default:
        if value is None and any(fnmatchcase(key, pattern) for pattern in NODES_OR_NULL):
            return []
        if not isinstance(value, dict):
            below = f"{key}.{next(iter(default))}"
            return [f"{key}={said(value)}: expected keys below it, such as {below}."]
        return [
            line
            for name in value.keys() & default.keys()
            for line in wrong_values(
                value[name], default[name], key=f"{key}.{name}" if key else str(name)
            )
        ]
    is_given = value != "???" and not (isinstance(value, str) and value == default)
    kind = kind_of(key, default)
    if is_given and not kind.accepts(value):
        return [f"{key}={said(value)}: expected {kind}."]
    return []


def _wrong_entries(entries: Any, key: str) -> list[str]:
    """Return what is wrong with the entries of an open mapping, one line each."""
    expected = "expected {_target_: CLASS, and its arguments}, or null"
    if not isinstance(entries, dict):
        return [f"{key}={said(entries)}: {expected} below each name."]
    wrong = []
    for name, entry in entries.items():
        if entry is None:
            continue
        if not isinstance(entry, dict) or not entry.get("_target_"):
            wrong.append(f"{key}.{name}={said(entry)}: {expected}.")
        elif key == "loss.terms" and not ANY_NUMBER.accepts(weight := entry.get("weight")):
            wrong.append(f"{key}.{name}.weight={said(weight)}: expected {ANY_NUMBER}.")
    return wrong


def said(value: Any) -> str:
    """A value as a command line has it; a text that looks like a number is quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(said, value))}]"
    return repr(value) if isinstance(value, str) and NUMERAL.fullmatch(value) else str(value)


def is_path(key: str) -> bool:
    """Return whether a key holds a path, or a list of paths."""
    return any(kind.name == "path" and fnmatchcase(key, name) for name, kind in KINDS.items())
