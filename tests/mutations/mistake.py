"""A mistake that a person could make, and the tests that should notice."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """One exact text of the package, what stands there instead, and who should notice.

    Attributes:
        what: The mistake in a few words.
        file: Below ``ldm_lightning``.
        text: Occurs once in the file.
        replacement: What takes its place.
        tests: Files or tests below ``tests``, separated by spaces; all of them run in seconds.
    """

    what: str
    file: str
    text: str
    replacement: str
    tests: str

    def made_in(self, package: Path) -> str:
        """The file's content with the mistake in it.

        Raises:
            ValueError: If the text does not occur once.
        """
        content = (package / self.file).read_text(encoding="utf-8")
        count = content.count(self.text)
        if count != 1:
            raise ValueError(
                f"{self.what}: the text occurs {count} times in {self.file}, not once."
            )
        return content.replace(self.text, self.replacement)
