"""Check the keywords of parts against the classes and functions that take them.

A part of the configuration has a ``_target_``; its other keys become keyword arguments. Source is
parsed, not imported: torch would take seconds, and a misspelled keyword is to be told at once.
Where the source does not say which keywords there are (``**kwargs``, decorators, compiled modules),
nothing is checked.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef

SHARED_OPTIMIZER_KEYS = (
    *("_target_", "learning_rate", "base_learning_rate", "discriminator_learning_rate_ratio"),
    *("warmup_steps", "decay_start_fraction", "final_fraction", "clip_norm"),
)
"""Keys of ``optim`` that are no arguments of the optimizer's class."""

NOT_ARGUMENTS = {"optim": SHARED_OPTIMIZER_KEYS, "loss.terms.*": ("weight",)}
"""Keys beside a ``_target_`` that are used by others than its constructor."""

WITHOUT_ARGUMENTS = ("ABC", "Protocol", "object")
"""Base classes that leave the constructor as it is."""


def wrong_keywords(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Find keywords that no constructor takes.

    Args:
        values: Nested plain values of the configuration, unresolved.
        prefix: The full key of ``values`` and a dot; empty for the whole.

    Yields:
        One line each: the part, the keyword, and the keywords that its target takes.
    """
    target = values.get("_target_")
    if isinstance(target, str) and "${" not in target:
        part = prefix.rstrip(".")
        if not _is_found(target):
            package = target.partition(".")[0]
            yield f"{part}._target_={target}: there is no package {package!r}."
        known = keywords_of(target)
        if known is not None:
            taken = ", ".join(sorted(known)) or "nothing"
            for name in values.keys() - _not_arguments(part):
                if name not in known and not (name.startswith("_") and name.endswith("_")):
                    yield f"{prefix}{name}: {target} takes {taken}."
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from wrong_keywords(value, f"{prefix}{name}.")


def _not_arguments(part: str) -> set[str]:
    return {
        name
        for pattern, names in NOT_ARGUMENTS.items()
        if fnmatchcase(part, pattern)
        for name in names
    }


@functools.cache
def keywords_of(target: str) -> frozenset[str] | None:
    """The keyword arguments of a class or function; None where the source does not say.

    Args:
        target: Its full name, as in ``_target_``.
    """
    found = _definition(target)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.ClassDef):
        return _of_class(module, node)
    return None if node.decorator_list else _of_arguments(node, skip_first=False)


def _is_found(target: str) -> bool:
    try:
        return importlib.util.find_spec(target.partition(".")[0]) is not None
    except ValueError:  # __main__ and modules that were made in memory
        return True


def _module_file(module: str) -> Path | None:
    """The source file of a module; its packages are not imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None
    if spec is None:
        return None
    if not rest and spec.origin is not None and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


@functools.cache
def _source(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def _definition(target: str) -> tuple[str, ast.ClassDef | Function] | None:
    """A class or function of a module and that module, through imports by name."""
    seen = set()
    while target not in seen:
        seen.add(target)
        module, _, name = target.rpartition(".")
        file = _module_file(module) if module else None
        if file is None:
            return None
        followed = None
        for node in _source(file).body:
            if isinstance(node, ast.ClassDef | Function) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom):
                is_package = file.name == "__init__.py"
                origin = _imported_from(node, module, is_package=is_package)
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        followed = f"{origin}.{alias.name}"
        if followed is None:
            return None
        target = followed
    return None


def _imported_from(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The full name of the module in ``from ... import``."""
    if not node.level:
        return node.module or ""
    parents = module.split(".")
    parents = parents[: len(parents) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _of_class(module: str, node: ast.ClassDef) -> frozenset[str] | None:
    methods = {item.name: item for item in node.body if isinstance(item, Function)}
    if "__new__" in methods or node.keywords:
        return None
    if "__init__" in methods:
        return _of_arguments(methods["__init__"], skip_first=True)
    inherited: frozenset[str] = frozenset()
    for base in node.bases:
        if _name(base) in WITHOUT_ARGUMENTS:
            continue
        if not isinstance(base, ast.Name):
            return None
        found = _definition(f"{module}.{base.id}")
        if found is None:
            return None
        base_module, definition = found
        of_base = None
        if isinstance(definition, ast.ClassDef):
            of_base = _of_class(base_module, definition)
        if of_base is None:
            return None
        inherited |= of_base
    if not node.decorator_list:
        return inherited
    if [_name(decorator) for decorator in node.decorator_list] != ["dataclass"]:
        return None
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    if any("ClassVar" in ast.dump(field.annotation) or _is_special(field) for field in fields):
        return None
    return inherited | {field.target.id for field in fields if isinstance(field.target, ast.Name)}


def _is_special(field: ast.AnnAssign) -> bool:
    """Return whether a field may be no argument of the constructor: ``field(init=False)``."""
    call = field.value
    return isinstance(call, ast.Call) and any(word.arg == "init" for word in call.keywords)


def _name(node: ast.expr) -> str:
    """The last name of ``a.b`` or ``a.b(...)``."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _of_arguments(node: Function, *, skip_first: bool) -> frozenset[str] | None:
    if node.args.kwarg is not None:
        return None
    positional = node.args.args[1:] if skip_first and not node.args.posonlyargs else node.args.args
    return frozenset(argument.arg for argument in (*positional, *node.args.kwonlyargs))
