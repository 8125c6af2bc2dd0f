"""The user's home: ``~`` in paths, the folder of caches, and machines that have neither.

A container may run as a user without an account, without HOME, or with one that does not exist.
"""

import logging
import os
import re
import stat
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

HOME_SIGN = re.compile(r"(?<=[=,\['\"])~[^,\[\]'\"]*")
"""A value of a command line that begins with ``~``, alone or in a list."""

PLAIN = re.compile(r"[\w./+@-]+", flags=re.ASCII)
"""What Hydra takes as it stands."""


def expanded(path: str, *, key: str) -> str:
    """Return ``path`` with the home in place of a leading ``~`` or ``~user``.

    Raises:
        ValueError: Naming ``key``, if that home is not known.
    """
    if not path.startswith("~"):
        return path
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        user = path.partition("/")[0]
        why = "HOME is not set" if user == "~" else f"there is no user {user[1:]!r}"
        raise ValueError(
            f"{key}={path}: {why}. Give the whole path; a folder of that name is ./{path}."
        )
    return whole


def expanded_override(override: str) -> str:
    """Return an override of a command line, ``key=~/x``, with the home in place of ``~``.

    Hydra refuses an unquoted ``~``, and a shell expands it only at the beginning of a word.

    Raises:
        ValueError: Naming the key, if that home is not known.
    """
    key, sign, _ = override.partition("=")
    if not sign or key.startswith("-"):
        return override

    def replaced(match: re.Match[str]) -> str:
        whole = expanded(match[0], key=key)
        quotes = re.findall(r"['\"]", override[: match.start()])
        if len(quotes) % 2 == 1:
            return whole.replace(quotes[-1], f"\\{quotes[-1]}")
        return whole if PLAIN.fullmatch(whole) else quoted(whole)

    return HOME_SIGN.sub(replaced, override)


def quoted(text: str) -> str:
    """Return a text as Hydra's command line takes it for exactly that text."""
    # There, a backslash means something before a quote alone.
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def ensure_home() -> None:
    """Give this process and those it starts a temporary home where there is none; say so once.

    Libraries keep their caches below the home, and some create a folder named ``~`` without one.
    """
    home = os.path.expanduser("~")
    if home != "~" and os.path.isdir(home):
        return
    temporary = _temporary_folder()
    log.warning(
        "There is no home folder (HOME=%s): caches go to %s. Set HOME to keep them.",
        os.environ.get("HOME", "not set"),
        temporary,
    )
    os.environ["HOME"] = str(temporary)
    os.environ.setdefault("USER", str(os.getuid()))  # asked for by name where there is no account


def cache_folder() -> Path:
    """Return where caches go, below XDG_CACHE_HOME, ``~/.cache`` or a temporary folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    nearest = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        root = _temporary_folder() / ".cache"
    return root / "ldm_lightning"


def _temporary_folder() -> Path:
    """Return a folder of this user that nobody else writes, the same each time if possible."""
    path = Path(tempfile.gettempdir()) / f"ldm_lightning_{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ldm_lightning_"))
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Path(tempfile.mkdtemp(prefix="ldm_lightning_"))  # somebody waits for us there
    return path
