"""Bounded reading of small text files (JSON, YAML, CSV) that anybody may have written or damaged.

Every reader opens regular files only (a FIFO would block for ever), reads at most ``max_bytes``,
bounds the nesting, returns plain values, and raises one kind of error, which names the file.
"""

import csv
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

MAX_BYTES = 64 * 2**20
"""Largest file that is read whole unless a caller says otherwise: 64 MiB."""

MAX_DEPTH = 64
"""Deepest nesting of mappings and lists; configurations of this project need about ten."""

KindT = TypeVar("KindT", dict, list)


class SmallFileError(ValueError):
    """A small file cannot be used; the message begins with its path and says what is wrong."""


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the content of a regular file, decoded as UTF-8 (a byte order mark is dropped).

    Raises:
        FileNotFoundError: If there is no such file.
        SmallFileError: If it is no regular file, is larger than ``max_bytes``, cannot be read, or
            is no text.
    """
    path = Path(path)
    try:
        # without O_NONBLOCK, opening a FIFO waits for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SmallFileError(f"{path} is no regular file; expected a text file.")
            # a file of holes takes no room on disk, and all of it in memory
            content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise SmallFileError(f"{path} cannot be read: {err.strerror or err}.") from err
    if status.st_size > max_bytes or len(content) > max_bytes:
        raise SmallFileError(f"{path} is larger than {max_bytes:,} bytes; expected a small file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise SmallFileError(f"{path} is no UTF-8 text (byte {err.start}).") from err


def read_json(path: str | Path, kind: type[KindT], *, max_bytes: int = MAX_BYTES) -> KindT:
    """Return the JSON object (``dict``) or array (``list``) that a file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        SmallFileError: As ``read_text``; or if it is no JSON, holds NaN or infinity, is nested too
            deeply, or holds another kind of value.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), kind, name=path)


def parse_json(text: str | bytes, kind: type[KindT], *, name: str | Path) -> KindT:
    """Return the JSON object or array in a text that comes from ``name``; see ``read_json``."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise SmallFileError(f"{name} holds no valid JSON: {_reason(err)}.") from err
    return _checked(value, kind, name)


def read_yaml(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the YAML mapping that a file holds, as plain dicts, lists, numbers and text.

    Numbers are read as OmegaConf reads them (``1e-6`` is a float, a date is text).

    Raises:
        FileNotFoundError: If there is no such file.
        SmallFileError: As ``read_text``; or if it is no YAML, carries tags, anchors or aliases,
            repeats a key, is nested too deeply, or holds something else than a mapping.
    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        _check_events(yaml.parse(text, Loader=_PlainLoader), path)
        value = yaml.load(text, Loader=_PlainLoader)  # nosec B506
    except SmallFileError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as err:
        raise SmallFileError(f"{path} holds no valid YAML: {_reason(err)}.") from err
    return _checked(value, dict, path)


def read_csv(
    path: str | Path, header: Sequence[str], *, max_bytes: int = 4 * MAX_BYTES
) -> list[list[str]]:
    """Return the rows of a CSV file below its header, each with one text for each column.

    Blank rows are left out, and a last row without a line end, which a killed writer leaves.

    Raises:
        FileNotFoundError: If there is no such file.
        SmallFileError: As ``read_text``; or if the header is another one, or a row (the message
            names its line) has another number of columns.
    """
    text = read_text(path, max_bytes=max_bytes)
    complete = text[: text.rfind("\n") + 1]
    rows: list[list[str]] = []
    reader = csv.reader(complete.splitlines(keepends=True))
    try:
        first = next(reader, [])
        if first != list(header):
            raise SmallFileError(f"{path} begins with {first}; expected {list(header)}.")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise SmallFileError(
                    f"{path}, line {reader.line_num}, has {len(row)} columns; expected "
                    f"{len(header)} ({', '.join(header)})."
                )
            rows.append(row)
    except csv.Error as err:
        raise SmallFileError(f"{path}, line {reader.line_num}, is no CSV: {err}.") from err
    return rows


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without dates, with OmegaConf's floats, and without repeated keys."""

    # a copy: the resolvers of the base class are shared by all loaders of the process
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping of different keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(set(keys)) < len(keys):
            repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
            raise ValueError(f"the key {repeated[0]!r} stands twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def _check_events(events: Iterable[yaml.Event], path: str | Path) -> None:
    """Refuse what makes a small YAML file large or strange when it is loaded."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise SmallFileError(f"{path} holds an anchor or alias; expected plain values.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise SmallFileError(f"{path} is nested more than {MAX_DEPTH} levels deep.")


def _checked(value: Any, kind: type[KindT], name: str | Path) -> KindT:
    """Return a value of the expected kind and of bounded depth."""
    if not isinstance(value, kind):
        raise SmallFileError(f"{name} holds a {type(value).__name__}; expected a {kind.__name__}.")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return value
    raise SmallFileError(f"{name} is nested more than {MAX_DEPTH} levels deep.")


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _reason(error: BaseException) -> str:
    """The first line of a parser's message."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
