"""Position of a run in its training images; counted in images, never in batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stretch:
    """Part of an epoch that one number of processes has trained on.

    Attributes:
        num_processes: Processes that trained together.
        num_images: Images they have seen, all together.

    Raises:
        ValueError: If there are no processes, or fewer than no images.
    """

    num_processes: int
    num_images: int

    def __post_init__(self) -> None:
        if self.num_processes < 1 or self.num_images < 0:
            raise ValueError(f"No process has seen part of an epoch like this: {self}.")


@dataclass(frozen=True)
class Position:
    """A place in the training images of a run.

    Attributes:
        epoch: Passes over the images before this one.
        seen: What this pass has shown so far, in order; more than one stretch where the run was
            continued with another number of processes.
    """

    epoch: int = 0
    seen: tuple[Stretch, ...] = ()

    @property
    def num_images(self) -> int:
        """Images that this pass has shown so far."""
        return sum(stretch.num_images for stretch in self.seen)

    def stretches(self, num_processes: int) -> tuple[Stretch, ...]:
        """``seen``, with the stretch of so many processes last, which may be empty yet."""
        if self.seen and self.seen[-1].num_processes == num_processes:
            return self.seen
        return (*self.seen, Stretch(num_processes, 0))

    def after(self, num_images: int, *, num_processes: int) -> "Position":
        """The place after more images of the same pass."""
        if not num_images:
            return self
        *earlier, last = self.stretches(num_processes)
        grown = Stretch(num_processes, last.num_images + num_images)
        return Position(self.epoch, (*earlier, grown))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        seen = [[stretch.num_processes, stretch.num_images] for stretch in self.seen]
        return {"epoch": self.epoch, "seen": seen}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Position":
        """Read what ``to_dict`` returned."""
        return cls(int(stored["epoch"]), tuple(Stretch(*map(int, pair)) for pair in stored["seen"]))
