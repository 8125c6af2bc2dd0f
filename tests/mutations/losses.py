"""Mistakes in losses and bottlenecks."""

from tests.mutations.mistake import Mistake

ADVERSARIAL = ("loss/adversarial.py", "loss/test_adversarial.py")
PIXEL = ("loss/pixel.py", "loss/test_pixel.py")
RECONSTRUCTION = ("loss/reconstruction.py", "loss/test_reconstruction.py")
GAUSSIAN = ("bottleneck/gaussian.py", "bottleneck/test_gaussian.py")
QUANTIZER = ("bottleneck/vector_quantizer.py", "bottleneck/test_vector_quantizer.py")
CODEBOOK = "(quantized - encoded.detach()).square().flatten(1).mean(dim=1)"
COMMITMENT = "(encoded - quantized.detach()).square().flatten(1).mean(dim=1)"
KMEANS = ("bottleneck/kmeans.py", "bottleneck/test_kmeans.py")


def of(
    place: tuple[str, str], what: str, text: str, replacement: str, tests: str | None = None
) -> Mistake:
    """A mistake in a file, noticed by the tests of the file unless others are named."""
    file, tests_of_file = place
    return Mistake(what, file, text, replacement, tests or tests_of_file)


LOSSES = [
    of(
        ADVERSARIAL,
        "hinge: wrong sign on images",
        "F.relu(1 - logits_real)",
        "F.relu(1 + logits_real)",
    ),
    of(ADVERSARIAL, "hinge: the half is lost", "return 0.5 * (F.relu", "return 1.0 * (F.relu"),
    of(
        ADVERSARIAL,
        "hinge: wrong sign for the generator",
        "return -logits_fake.mean()",
        "return logits_fake.mean()",
    ),
    of(
        ADVERSARIAL,
        "non-saturating loss is the saturating one",
        "return F.softplus(-logits_fake).mean()",
        "return -F.softplus(logits_fake).mean()",
    ),
    of(
        ADVERSARIAL,
        "schedule without a ramp",
        "return (step + 1 - self.generator_start_step) / (self.ramp_steps + 1)",
        "return 1.0",
    ),
    of(
        ADVERSARIAL,
        "the discriminator has no warm-up",
        "return step >= self.generator_start_step - self.warmup_steps",
        "return step >= self.generator_start_step",
    ),
    of(
        ADVERSARIAL,
        "adaptive weight is the inverse ratio",
        "reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)",
        "adversarial_gradient.norm() / (reconstruction_gradient.norm() + 1e-4)",
    ),
    of(
        ADVERSARIAL,
        "adaptive weight is not bounded",
        "return ratio.clamp(0.0, 1e4)",
        "return ratio",
    ),
    of(ADVERSARIAL, "R1: the half is lost", "return 0.5 * gradient", "return gradient"),
    of(
        ADVERSARIAL,
        "R1: mean over pixels",
        "gradient.square().flatten(1).sum(dim=1).mean()",
        "gradient.square().mean()",
    ),
    of(
        ADVERSARIAL,
        "R1 cannot be differentiated",
        "images, create_graph=True",
        "images, retain_graph=True",
    ),
    of(
        ADVERSARIAL,
        "LeCam: mean of the wrong side",
        "F.relu(_full(logits_real) - self.mean_fake)",
        "F.relu(_full(logits_real) - self.mean_real)",
    ),
    of(
        ADVERSARIAL,
        "LeCam: decay taken for its complement",
        "self.mean_real.lerp_(real, 1 - self.decay)",
        "self.mean_real.lerp_(real, self.decay)",
    ),
    of(
        PIXEL,
        "Gaussian: wrong sign of the log-variance",
        "+ self.log_variance + math.log(2 * math.pi)",
        "- self.log_variance + math.log(2 * math.pi)",
    ),
    of(
        PIXEL,
        "Laplace: scale taken for the deviation",
        "log_scale = (self.log_variance - math.log(2)) / 2",
        "log_scale = self.log_variance / 2",
    ),
    of(PIXEL, "Bernoulli: images not brought to [0, 1]", "(images + 1) / 2", "images"),
    of(
        RECONSTRUCTION,
        "the sum over pixels is a mean",
        "elements.flatten(1).sum(1) if",
        "elements.flatten(1).mean(1) if",
    ),
    of(
        RECONSTRUCTION,
        "the perceptual weight is ignored",
        "error + self.perceptual_weight * distance[",
        "error + distance[",
    ),
    of(
        RECONSTRUCTION,
        "the perceptual distance is not in the total",
        "total = self._reduce(self.pixel.negative_log_likelihood(error))",
        "total = pixel",
    ),
    Mistake(
        "features are not normalized",
        "nn/tiny_features.py",
        "(unit_norm(a) - unit_norm(b))",
        "(a - b)",
        "nn/test_tiny_features.py",
    ),
]

BOTTLENECKS = [
    of(
        GAUSSIAN,
        "KL: mean for sum",
        "elements.flatten(1).sum(dim=1)",
        "elements.flatten(1).mean(dim=1)",
    ),
    of(GAUSSIAN, "KL: the half is lost", "return 0.5 * elements", "return elements"),
    of(
        GAUSSIAN,
        "posterior: variance taken for deviation",
        "torch.exp(0.5 * log_variance) * noise",
        "torch.exp(log_variance) * noise",
    ),
    of(GAUSSIAN, "posterior: log-variance is not bounded", ".clamp(*LOG_VARIANCE_RANGE)", ""),
    of(
        QUANTIZER,
        "no straight-through gradient",
        "latents = encoded + (quantized - encoded).detach()",
        "latents = quantized",
    ),
    of(
        QUANTIZER,
        "commitment without stop-gradient",
        "(encoded - quantized.detach())",
        "(encoded - quantized)",
    ),
    of(
        QUANTIZER,
        "codebook loss without stop-gradient",
        "(quantized - encoded.detach())",
        "(quantized - encoded)",
    ),
    of(
        QUANTIZER,
        "commitment and codebook loss are swapped",
        f'"codebook": {CODEBOOK},\n                "commitment": {COMMITMENT},',
        f'"commitment": {CODEBOOK},\n                "codebook": {COMMITMENT},',
    ),
    of(
        QUANTIZER,
        "the codes in use are restarted",
        "dead = (self.counts == 0).nonzero()",
        "dead = (self.counts > 0).nonzero()",
    ),
    of(
        QUANTIZER, "uses of codes are never forgotten", "self.counts.zero_()", "self.counts.add_(0)"
    ),
    of(
        QUANTIZER,
        "restarts one update late",
        "if (step + 1) % self.restart_every_steps == 0:",
        "if step % self.restart_every_steps == 0:",
    ),
    of(
        QUANTIZER,
        "codes are placed one update late",
        "if step + 1 >= self.quantize_start_step:",
        "if step >= self.quantize_start_step:",
    ),
    of(
        QUANTIZER,
        "codes are not normalized where they should be",
        "F.normalize(self.embedding.weight, dim=1) if self.normalize else self.embedding.weight",
        "self.embedding.weight",
    ),
    of(KMEANS, "the farthest code is chosen", "alpha=-2.0", "alpha=2.0"),
    of(
        KMEANS,
        "k-means: sums for means",
        "centers = sums / counts.clamp(min=1).unsqueeze(1)",
        "centers = sums",
    ),
    of(KMEANS, "k-means: empty centers stay", "if empty.any():", "if False:"),
]
