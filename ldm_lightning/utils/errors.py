"""Telling an error in one line."""


def error_line(error: BaseException) -> str:
    """Return kind and message of an error, as ``ValueError: ...``.

    An error in a worker process of a data loader arrives with the worker's whole traceback as its
    message; the last line of that is the error.
    """
    text = str(error)
    if "Original Traceback" in text:
        return text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {text}"
