"""Loader of what is evaluated."""

from collections.abc import Iterator
from typing import Any

from ldm_lightning.data.workers import WorkerLoader


class EvaluationLoader(WorkerLoader):
    """Passes over batches of which no image could be read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return (batch for batch in super().__iter__() if batch is not None)

    def __len__(self) -> int:
        """Batches, those that are passed over included; 1 where a process has none.

        Lightning leaves a validation without batches out, and with it what processes do together.
        """
        return max(1, super().__len__())
