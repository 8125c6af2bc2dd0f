"""Terms that a configuration adds to the reconstruction loss by name.

A term is a module ``forward(reconstructions, images) -> [B]``: images in [-1, 1], one value an
image, 0 for equal images. It is frozen: a network inside it is used and not trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

OWN_NAMES = ("pixel", "perceptual", "adversarial", "discriminator", "r1", "lecam", "total")
"""Names under which losses of this package are logged already."""


@dataclass(frozen=True)
class LossTerm:
    """A frozen module and its weight in the loss.

    Raises:
        ValueError: If the weight is negative.
    """

    module: nn.Module
    weight: float

    def __post_init__(self) -> None:
        """Freeze the module."""
        if self.weight < 0:
            raise ValueError(f"The weight of a loss term must be at least 0, got {self.weight}.")
        self.module.eval().requires_grad_(False)

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Return the term of each image before its weight, [B].

        Raises:
            ValueError: If the module returns another shape.
        """
        values = self.module(reconstructions, images)
        if values.shape != images.shape[:1]:
            raise ValueError(
                f"The loss term {type(self.module).__name__} must return one value an image, "
                f"[{len(images)}], got {list(values.shape)}."
            )
        return values


def check_term_names(terms: Mapping[str, LossTerm], taken: set[str]) -> None:
    """Refuse names that are logged for something else.

    Args:
        terms: By name.
        taken: Names of the bottleneck's terms and of metrics.

    Raises:
        ValueError: Naming the term.
    """
    for name in terms:
        if name in OWN_NAMES or name in taken:
            raise ValueError(f"loss.terms.{name}: another value is logged as {name}; rename it.")
