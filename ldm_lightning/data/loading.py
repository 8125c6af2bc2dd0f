"""Settings of batches, workers and order that all data sets share."""

from dataclasses import dataclass

from ldm_lightning.data.workers import TIMEOUT_SECONDS


@dataclass(frozen=True)
class LoadingSettings:
    """Batches, workers and order of a data module; the keys of ``data`` have the same names.

    Attributes:
        batch_size: Training images per process and batch.
        val_batch_size: Evaluation images per process and batch.
        num_workers: Processes that read images, for each loader; 0 reads in the main process.
        seed: The run's seed.
        max_val_images: Evaluate a fixed subset of at most this many, chosen by a hash of the names,
            with all windows of each; None evaluates all.
        worker_timeout_seconds: Longest wait for a batch from a worker process.

    Raises:
        ValueError: If a number is out of range.
    """

    batch_size: int
    val_batch_size: int
    num_workers: int
    seed: int
    max_val_images: int | None
    worker_timeout_seconds: float = TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.worker_timeout_seconds <= 0:
            raise ValueError(
                f"data.worker_timeout_seconds must be positive, got {self.worker_timeout_seconds}."
            )
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("val_batch_size", self.val_batch_size, 1),
            ("num_workers", self.num_workers, 0),
            ("max_val_images", 1 if self.max_val_images is None else self.max_val_images, 1),
        ):
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}.")
