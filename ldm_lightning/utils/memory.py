"""Keep freed memory in the process, so that CPU training does not fetch it anew every update.

glibc hands every large block back to the kernel when it is freed, and a training step frees and
allocates the same activations again and again. Each time the kernel must find, clear and map the
pages anew.
"""

import ctypes
import logging
import sys

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
