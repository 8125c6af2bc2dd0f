"""A dashboard that remembers what it is asked to show."""

from lightning.pytorch.loggers.logger import Logger


class Recorder(Logger):
    def __init__(self):
        super().__init__()
        self.config = {}
        self.scalars = {}  # by step
        self.pictures = []
        self.histograms = []

    @property
    def name(self):
        return "recorder"

    @property
    def version(self):
        return ""

    def log_hyperparams(self, params, *args, **kwargs):
        self.config |= params

    def log_metrics(self, metrics, step=None):
        self.scalars.setdefault(step, {}).update(metrics)

    def log_picture(self, name, path, *, step):
        self.pictures.append((name, path.name, step))

    def log_histogram(self, name, heights, edges, *, step):
        self.histograms.append((name, heights, edges, step))
