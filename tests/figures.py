"""Read the numbers out of a sentence, so that tests do not depend on its words."""

import re


def figures_of(text: str) -> list[float]:
    """All numbers of a text in their order, without those within words such as ``kl_f8``."""
    return [float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?\b", text)]
