"""From ``metrics`` to the user's own metrics of reconstructions, by name."""

from hydra.utils import instantiate
from omegaconf import DictConfig
from torchmetrics import Metric

from ldm_lightning.metrics.names import MetricMeaning, register


def build_image_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """Build the entries of ``metrics`` that are not null, and make known how to read them.

    Args:
        cfg: The composed configuration; without ``metrics`` there are none.

    Raises:
        ValueError: If an entry is no metric, does not say how it is read, or has a name that is
            taken.
    """
    metrics: dict[str, Metric] = {}
    for name, node in (cfg.get("metrics") or {}).items():
        if node is None:
            continue
        metric = instantiate(node)
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics.{name} must be a torchmetrics.Metric, got {type(metric)}.")
        meaning = getattr(metric, "meaning", None)
        if not isinstance(meaning, str) or metric.higher_is_better not in (True, False, None):
            raise ValueError(
                f"metrics.{name} needs a text `meaning`, and `higher_is_better` true, false or "
                "null."
            )
        register(str(name), MetricMeaning(meaning, metric.higher_is_better))
        metrics[str(name)] = metric
    return metrics
