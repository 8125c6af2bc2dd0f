"""The contract every bottleneck keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class BottleneckOutput:
    """Output of a bottleneck.

    Attributes:
        latents: What the decoder receives, [B, c, h, w].
        continuous: The same before quantization; the same tensor where nothing is quantized.
        terms: Regularization terms by name, each [B] or a scalar: ``kl`` in nats, summed over c, h,
            w; ``codebook`` and ``commitment``, averaged over c, h, w. The loss weights them by
            name.
        variance: Variance of the posterior, [B, c, h, w], where there is one.
        indices: Code of each position, [B, h, w] int64, where there are codes.
    """

    latents: Tensor
    continuous: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    variance: Tensor | None = None
    indices: Tensor | None = None


class Bottleneck(nn.Module, ABC):
    """Between encoder and decoder. A new one is one file here and one in ``conf/bottleneck``.

    Attributes:
        inputs_per_channel: Channels it takes from the encoder for each channel of the latents.
        num_codes: Size of the codebook; None where there is none.
        term_names: Names of the terms it returns, which the loss must weight.
        is_stochastic: Whether it samples when it is given noise.
        compares_vectors: Whether it measures distances between the vectors of positions, so that
            channels keep their relative scales.
    """

    inputs_per_channel: int = 1
    num_codes: int | None = None
    term_names: tuple[str, ...] = ()
    is_stochastic: bool = False
    compares_vectors: bool = False

    @abstractmethod
    def forward(self, encoded: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """Turn the encoder's output into latents.

        Args:
            encoded: [B, c * inputs_per_channel, h, w], unbounded; the first c are the latents' own
                where the bottleneck changes nothing else about them.
            noise: Standard normal, [B, c, h, w]; None takes the mean. Ignored where nothing is
                sampled.
        """

    def after_update(self, *, step: int, seed: int) -> None:  # noqa: B027 - most bottlenecks need nothing
        """Keep house after generator update ``step``, counted from 0; alike on every process."""

    def start_from(self, vectors: Tensor, *, seed: int) -> None:  # noqa: B027 - most have no codes
        """Start on the vectors of linear latents: place codes on them, for instance.

        Args:
            vectors: [N, c], of a sample of training images; alike on every process.
            seed: The run's seed.
        """

    def take_assigned(self) -> dict[str, Tensor]:
        """Return which rows ``after_update`` has set since the last call, past the optimizer.

        A moving average takes such rows over as they are, instead of gliding from where they were.

        Returns:
            By name of a parameter below this module: bool, one a row of its first dimension. Empty
            where nothing was assigned. Alike on every process.
        """
        return {}
