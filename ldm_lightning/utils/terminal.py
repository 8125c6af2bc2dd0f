"""Text for a terminal: no control character of a name acts on it, no letter is too much for it."""

import codecs
import io
import logging
import os
import sys
import unicodedata

ENCODING_ERRORS = "ldm_lightning.plain"


def printable(text: str) -> str:
    r"""Return a text whose control characters are written out (``\x1b``); new lines and tabs stay.

    Names of files, classes and runs come from elsewhere: an escape sequence in one could move the
    cursor, change colors or hide what was said before.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else _written_out(letter)
        for letter in text
    )


def one_line(text: str) -> str:
    r"""Return a printable text in which new lines and tabs are written out too (``\n``)."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def prepare_streams() -> None:
    """Let standard output and error take any text for as long as the command works.

    Where the encoding lacks a letter (ASCII in a container without a locale), it is written as the
    nearest one, as ``Frechet``, or as its number. A training does not end because the reader of a
    pipe has gone (``| head``). Log records hold printable text alone.
    """
    codecs.register_error(ENCODING_ERRORS, _nearest)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not what a test put in its place
            setattr(sys, name, _KeptOpen(stream))
    logging.setLogRecordFactory(PrintableRecord)


class _KeptOpen(io.TextIOWrapper):
    """A stream that writes every letter somehow, and nothing once its reader has gone.

    Args:
        stream: Where to write; it keeps the buffer open.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=ENCODING_ERRORS,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        """Write a text; returns the number of its letters."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._abandon()
            return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        try:
            super().flush()
        except BrokenPipeError:
            self._abandon()

    def _abandon(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


class PrintableRecord(logging.LogRecord):
    """A log record whose message does nothing to a terminal."""

    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        """Return the message."""
        return printable(super().getMessage())


def _nearest(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(map(_in_ascii, letters)), error.end


def _in_ascii(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or _written_out(letter)


def _written_out(letter: str) -> str:
    if ord(letter) < 128:
        return f"\\x{ord(letter):02x}"
    return letter.encode("ascii", "backslashreplace").decode()
