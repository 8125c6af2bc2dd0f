"""A warning when few codes of a codebook carry everything."""

import logging
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

logger = logging.getLogger(__name__)

REMEDIES = (
    "start the codes by k-means after some unquantized updates "
    "(bottleneck.quantize_start_step=300)",
    "restart dead codes (bottleneck.restart_every_steps=100)",
    "compare directions only (bottleneck.normalize=true)",
    "use fewer codes (bottleneck.num_codes)",
    "lower optim.learning_rate",
)


class CodebookAlarm(pl.Callback):
    """Warn when the codebook's perplexity stays low over several validations.

    Perplexity is exp of the entropy, in nats, of how often each code is used: the number of equally
    used codes that would carry as much.

    Args:
        perplexity_fraction: Perplexity below this fraction of the codes, or of the latent positions
            of the whole validation set where those are fewer, is low.
        patience: Low validations in a row before the warning; it is repeated after as many more.

    Raises:
        ValueError: If ``perplexity_fraction`` is outside (0, 1) or ``patience`` is not positive.
    """

    def __init__(self, *, perplexity_fraction: float = 0.05, patience: int = 2) -> None:
        if not 0 < perplexity_fraction < 1 or patience < 1:
            raise ValueError(
                "callbacks.codebook_alarm needs 0 < perplexity_fraction < 1 and patience >= 1, got "
                f"{perplexity_fraction} and {patience}."
            )
        self.perplexity_fraction = perplexity_fraction
        self.patience = patience
        self.alarms: list[str] = []
        self._num_low = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the histogram of codes, where there are codes."""
        report: Any = pl_module.report
        if trainer.sanity_checking or report is None:
            return
        histogram: Tensor | None = report.codebook_histogram
        if histogram is None or not histogram.sum():  # no codes, or not quantizing yet
            return
        counts = histogram.detach().double().cpu()
        fractions = counts / counts.sum()
        perplexity = fractions.xlogy(fractions).sum().neg().exp().item()
        num_codes, num_positions = len(counts), int(counts.sum())
        num_reachable = min(num_codes, num_positions)  # few images reach few codes
        threshold = self.perplexity_fraction * num_reachable
        if perplexity >= threshold:
            self._num_low = 0
            return
        self._num_low += 1
        if self._num_low % self.patience:
            return
        num_dead = int((counts == 0).sum())
        message = (
            f"Update {trainer.global_step}: the codebook has collapsed. Its perplexity is "
            f"{perplexity:.1f} of {num_codes} codes (alarm below {threshold:.1f}), "
            f"{1 - num_dead / num_codes:.1%} are used, {num_dead} are dead; measured over "
            f"{report.num_images} validation images ({num_positions} latent positions) in "
            f"{self._num_low} validations in a row."
        )
        self.alarms.append(message)
        logger.warning("%s What to try: %s.", message, "; ".join(REMEDIES))

    def state_dict(self) -> dict[str, Any]:
        """Warnings so far."""
        return {"alarms": list(self.alarms), "num_low": self._num_low}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self.alarms = list(state_dict["alarms"])
        self._num_low = state_dict["num_low"]
