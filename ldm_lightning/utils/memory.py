"""Memory of this process and machine: what is free, and how to keep freed blocks.

glibc hands every large block back to the kernel when it is freed, and a training step frees and
allocates the same activations again and again. Each time the kernel must find, clear and map the
pages anew; ``keep_freed_memory`` ends that.
"""

import ctypes
import logging
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process reuse large freed blocks instead of returning them to the kernel.

    Returns:
        Whether it took effect: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        logger.debug("No glibc: freed memory goes back to the kernel.")
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all([mallopt(name, value) == 1 for name, value in settings])


def available_memory(device: torch.device) -> int | None:
    """Bytes that a new process could take on a device; None where the system does not say.

    On the CPU what is free or can be freed at once, and no more than a control group allows, as in
    a container.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one that says "max"
        return available
    return min(available, limit - used)
