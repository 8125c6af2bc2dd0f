"""Reading ``metrics.csv``, without the trainer that writes it."""

from pathlib import Path

from ldm_lightning.storage.small_files import SmallFileError, read_csv

HEADER = ("step", "metric", "value")

MAX_BYTES = 2**31
"""A million updates with fifty figures each are about as much."""


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Read a ``metrics.csv`` as (step, metric, value).

    Blank rows and a half-written last row are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        SmallFileError: If it cannot be read, or a row is damaged; names the file.
    """
    rows = []
    for number, (step, metric, value) in enumerate(read_csv(path, HEADER, max_bytes=MAX_BYTES)):
        try:
            rows.append((int(step), metric, float(value)))
        except ValueError as err:
            raise SmallFileError(
                f"{path} is damaged in row {number + 1}: {step[:20]!r}, {metric[:20]!r}, "
                f"{value[:20]!r}; expected a whole number, a name and a number."
            ) from err
    return rows
