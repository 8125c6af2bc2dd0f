"""Interface of a source of encoded images: a folder, tar shards."""

from typing import Protocol


class ImageSource(Protocol):
    """Encoded images by index, in an order that depends on their names alone."""

    data_name: str
    root: str
    split: str
    num_classes: int | None
    class_names: list[str] | None
    label_gap: str

    def __len__(self) -> int:
        """Images of the source."""
        ...

    def name(self, index: int) -> str:
        """Name of an image, unique, relative to the root."""
        ...

    @property
    def identified_by(self) -> str:
        """Basis of ``identity``: ``content``, or in words what is weaker about it."""
        ...

    def identity(self) -> str:
        """Short hash of what the files hold, of names and labels; may read every file."""
        ...

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        ...

    def near(self, index: int) -> range:
        """Images that are as quick to read as this one when it has just been read."""
        ...

    def annotations(self, index: int) -> tuple[int | None, str | None]:
        """Return the image's label and caption, where known."""
        ...

    def class_counts(self) -> list[int] | None:
        """Images of each class, where there are classes."""
        ...
