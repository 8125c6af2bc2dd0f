"""Return whether the process that left its number in a file still lives."""

import os
from pathlib import Path

CLOCK_SECONDS = 10.0
"""How far the clock of a file and that of the process table may be apart."""


def pid_exists(pid: int, *, seen: float | None = None) -> bool:
    """Return whether a process of this machine lives.

    Numbers are used again, in containers soon, so that a process which began after the number was
    written down is another one. A process that has ended, and that nobody has asked how (there may
    be nobody in a container), lives no more. Both are read from /proc; where there is none, only
    the number counts.

    Args:
        pid: Its number.
        seen: Unix time when it lived for certain.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    try:
        # The second field is the command in parentheses, and may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        state, ticks = fields[0], int(fields[19])
        began = _boot_time() + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return True
    return state not in ("Z", "X") and (seen is None or began <= seen + CLOCK_SECONDS)


def _boot_time() -> float:
    """Unix time when this machine began.

    Raises:
        ValueError: If it does not say.
        OSError: If it does not say.
    """
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise ValueError("/proc/stat names no btime.")
