"""The device that is timed: the GPU where there is one, else the processor."""

import time
from pathlib import Path

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds on a clock, read when everything asked of the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(dtype: torch.dtype, *, num_rounds: int = 10) -> float:
    """Operations a second that the device reaches on a large product of matrices: the ceiling."""
    side = 8192 if DEVICE.type == "cuda" else 2048
    first, second = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(num_rounds + 1):
        start = now()
        torch.mm(first, second)
        best = min(best, now() - start)
    return 2 * side**3 / best


def held_bytes() -> int:
    """Memory that this process holds now: of the GPU, else of the machine."""
    if DEVICE.type == "cuda":
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS")


def most_bytes_held() -> int:
    """The most it ever held."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")  # not getrusage, which remembers the parent process


def _status_bytes(name: str) -> int:
    """A size of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(size) * 1024
