"""Numbers as people read them: bytes, operations, durations."""

import math


def format_bytes(number: float) -> str:
    """In binary units, three digits: ``1.46 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1000:
            return _digits(number, unit)
        number /= 1024
    return _digits(number, "TiB")


def format_flops(number: float) -> str:
    """Floating-point operations in decimal units, three digits: ``895 GFLOP``."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"):
        if abs(number) < 1000:
            return _digits(number, unit)
        number /= 1000
    return _digits(number, "ZFLOP")


def format_seconds(seconds: float) -> str:
    """In the unit that suits: ``0.31 s``, ``9 min``, ``3.5 h``, ``12 days``."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < limit * length:
            return _digits(seconds / length, unit, digits=2)
    return _digits(seconds / 86400, "days", digits=2)


def _digits(number: float, unit: str, *, digits: int = 3) -> str:
    """At least so many significant digits, unless the number is whole."""
    decimals = 0
    if number % 1:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:.{decimals}f} {unit}"
