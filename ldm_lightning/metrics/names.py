"""Names of the metrics, their better direction, and their meaning in one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricMeaning:
    """Direction and meaning of a metric.

    Attributes:
        meaning: One line for the table at the end of a run, with the unit.
        higher_is_better: ``None`` where neither way is better.
    """

    meaning: str
    higher_is_better: bool | None


METRICS: dict[str, MetricMeaning] = {
    "psnr": MetricMeaning("peak signal-to-noise ratio in dB, mean over images", True),
    "ssim": MetricMeaning("structural similarity, at most 1, mean over images", True),
    "high_frequency_deficit": MetricMeaning(
        "share of the images' power missing above 0.125 cycles per pixel, 0 to 1 (blur)", False
    ),
    "power_ratio_octave_1": MetricMeaning(
        "power over the images' at 0.25 to 0.5 cycles per pixel; 1: equal, below: blur", None
    ),
    "power_ratio_octave_2": MetricMeaning(
        "power over the images' at 0.125 to 0.25 cycles per pixel; 1: equal, below: blur", None
    ),
    "power_ratio_octave_3": MetricMeaning(
        "power over the images' at 0.0625 to 0.125 cycles per pixel; 1: equal, below: blur", None
    ),
    "lpips": MetricMeaning("perceptual distance, AlexNet features, mean over images", False),
    "lpips_vgg": MetricMeaning("perceptual distance, VGG features, mean over images", False),
    "perceptual_tiny": MetricMeaning(
        "perceptual distance, embedded tiny features (not LPIPS), mean over images", False
    ),
    "rfid": MetricMeaning("Fréchet distance of reconstructions to images, Inception", False),
    "rfd_tiny": MetricMeaning(
        "Fréchet distance of reconstructions to images, embedded tiny features (not FID)", False
    ),
    "fid": MetricMeaning("Fréchet distance of two sets of images, Inception", False),
    "fd_tiny": MetricMeaning(
        "Fréchet distance of two sets of images, embedded tiny features (not FID)", False
    ),
    "kid": MetricMeaning(
        "kernel distance of two sets of images, Inception; unbiased, so it may be below 0", False
    ),
    "kd_tiny": MetricMeaning(
        "kernel distance of two sets of images, embedded tiny features (not KID)", False
    ),
    "precision": MetricMeaning("share of samples among the real images, Inception, 0 to 1", True),
    "precision_tiny": MetricMeaning(
        "share of samples among the real images, embedded tiny features, 0 to 1", True
    ),
    "recall": MetricMeaning("share of real images among the samples, Inception, 0 to 1", True),
    "recall_tiny": MetricMeaning(
        "share of real images among the samples, embedded tiny features, 0 to 1", True
    ),
    "kl": MetricMeaning("information the posterior carries, in nats per image", None),
    "codebook_usage": MetricMeaning("share of codes used at least once, 0 to 1", True),
    "codebook_perplexity": MetricMeaning("effective number of codes, 1 to K", True),
    "nll": MetricMeaning("negative log-likelihood of the pixels, in nats per image", False),
    "elbo": MetricMeaning("evidence lower bound, -nll - kl, in nats per image", True),
    "compression_ratio": MetricMeaning("elements of an image over elements of its latents", None),
    "bits_per_pixel": MetricMeaning("log2(codes) / f^2; real-valued latents have none", None),
    "perf/encode_images_per_s": MetricMeaning("images encoded a second, median of batches", True),
    "perf/decode_images_per_s": MetricMeaning("images decoded a second, median of batches", True),
    "loss": MetricMeaning("diffusion loss, mean over noise levels", False),
    "latent/mean": MetricMeaning("mean of the latents before the normalizer", None),
    "latent/std": MetricMeaning("standard deviation of the latents before the normalizer", None),
}

higher_is_better: dict[str, bool] = {
    name: metric.higher_is_better
    for name, metric in METRICS.items()
    if metric.higher_is_better is not None
}
"""Direction of every metric that has one."""


def describe(name: str) -> MetricMeaning:
    """Look a metric up by its full name, such as ``val/psnr`` or ``latent/std``.

    Raises:
        KeyError: If the metric is unknown.
    """
    if name in METRICS:
        return METRICS[name]
    return METRICS[name.split("/", 1)[-1]]
