"""Errors of our own, telling any in one line, and telling an error from its echo elsewhere."""

import re

LOST = re.compile(
    r"/gloo/|gloo::|\bNCCL\b|Connection (closed|reset|refused)|Broken pipe|Timed out waiting"
    r"|caused pair closure"
)
"""What torch says in a process that another one no longer answers."""


class ContactLostError(Exception):
    """Another process of the run has ended, or no longer answers."""


class OutOfMemory(Exception):  # noqa: N818 - torch has an OutOfMemoryError
    """The device has no memory left; the message says what to change."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit; the message says why and what to do."""


def error_line(error: BaseException) -> str:
    """Return kind and message of an error, as ``ValueError: ...``.

    An error in a worker process of a data loader arrives with the worker's whole traceback as its
    message; the last line of that is the error.
    """
    text = str(error)
    if "Original Traceback" in text:
        return text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is torch's about missing memory, on a device or the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}  # without importing torch
    return "OutOfMemoryError" in names or "DefaultCPUAllocator: can't allocate" in str(error)


def is_loss_of_contact(error: BaseException) -> bool:
    """Return whether an error only says that another process no longer answers."""
    if isinstance(error, ContactLostError):
        return True
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):  # without importing torch
        return True
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
