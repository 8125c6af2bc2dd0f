"""Mistakes in schedules, parametrizations, samplers and the normalizer."""

from tests.mutations.losses import of

BETAS = ("diffusion/betas.py", "diffusion/test_betas.py")
SCHEDULE = ("diffusion/schedule.py", "diffusion/test_schedule.py")
FLOW_SCHEDULE = ("diffusion/flow.py", "diffusion/test_schedule.py")
EDM_SCHEDULE = ("diffusion/edm.py", "diffusion/test_schedule.py")
PARAMETRIZATION = ("diffusion/parametrization.py", "diffusion/test_parametrization.py")
PROCESS = ("diffusion/process.py", "diffusion/test_process.py")
TIMES = ("diffusion/times.py", "diffusion/test_times.py")
WEIGHTING = ("diffusion/weighting.py", "diffusion/test_weighting.py")
STEPS = ("sampler/steps.py", "sampler/test_steps.py")
HEUN = ("sampler/heun.py", "sampler/test_gaussian_data.py")
DPM_SOLVER = ("sampler/dpm_solver.py", "sampler/test_gaussian_data.py")
DDPM = ("sampler/ddpm.py", "sampler/test_against_diffusers.py")
DDIM = ("sampler/ddim.py", "sampler/test_sampler.py sampler/test_against_diffusers.py")
GUIDANCE = ("sampler/guidance.py", "sampler/test_guidance.py")
GRID = ("sampler/grid.py", "sampler/test_grid.py")
NORMALIZER = ("autoencoder/normalizer.py", "autoencoder/test_normalizer.py")
FROZEN = ("autoencoder/frozen.py", "autoencoder/test_frozen.py")

PROCESSES = [
    of(BETAS, "betas linear, not of linear roots", "float64).square()", "float64)"),
    of(BETAS, "cosine: no offset", "(share + COSINE_OFFSET) / (1 + COSINE_OFFSET)", "share"),
    of(
        BETAS,
        "zero terminal SNR: stretched the wrong way",
        "first / (first - last)",
        "(first - last) / first",
    ),
    of(SCHEDULE, "the shift divides", "shift * (1 - signal).sqrt()", "(1 - signal).sqrt() / shift"),
    of(SCHEDULE, "the network's time is one too late", "return (steps - 1)", "return (steps)"),
    of(
        FLOW_SCHEDULE,
        "flow: the shift is ignored",
        "self.shift * time.double(), 1 - time.double()",
        "time.double(), 1 - time.double()",
    ),
    of(
        EDM_SCHEDULE,
        "EDM: the exponent is inverted",
        "time.double().pow(self.rho)",
        "time.double().pow(1 / self.rho)",
    ),
    of(
        PARAMETRIZATION,
        "noise: the estimate is not divided by the signal",
        "skip=1 / alpha",
        "skip=alpha",
    ),
    of(
        PARAMETRIZATION,
        "velocity: wrong sign",
        "clean_weight=-sigma * scale",
        "clean_weight=sigma * scale",
    ),
    of(
        PARAMETRIZATION,
        "flow: wrong sign",
        "clean_weight=-ones,\n            noise_weight=ones",
        "clean_weight=ones,\n            noise_weight=-ones",
    ),
    of(
        PARAMETRIZATION,
        "EDM: c_skip without the data's deviation",
        "skip=data * self.sigma_data * scale.square()",
        "skip=data * scale.square()",
    ),
    of(
        PARAMETRIZATION,
        "EDM: c_out is that of the noise",
        "output_scale=sigma * self.sigma_data * scale",
        "output_scale=sigma * scale",
    ),
    of(
        PROCESS,
        "weights of noise levels are ignored",
        "return self.weighting(*level, output_scale).to(distance.dtype) * distance",
        "return distance",
    ),
    of(
        PROCESS,
        "L1 is L2",
        'error.abs() if self.distance == "l1" else error.square()',
        "error.square()",
    ),
    of(
        PROCESS,
        "signal and noise are swapped in noising",
        "_expand(level.alpha, wide) * clean.to(wide) + _expand(level.sigma, wide) * noise",
        "_expand(level.sigma, wide) * clean.to(wide) + _expand(level.alpha, wide) * noise",
    ),
    of(TIMES, "the table's last place is never trained", ".floor() + 1).clamp", ".floor()).clamp"),
    of(
        TIMES,
        "log-normal: the deviation is ignored",
        "(self.mean + self.std * _normal_quantile(uniform)).exp()",
        "(self.mean + _normal_quantile(uniform)).exp()",
    ),
    of(WEIGHTING, "min-SNR is max-SNR", ".clamp(max=self.gamma)", ".clamp(min=self.gamma)"),
    of(
        WEIGHTING,
        "EDM: weight of the wrong deviation",
        "add(self.sigma_data**-2)",
        "add(self.sigma_data**2)",
    ),
]

SAMPLERS = [
    of(
        STEPS,
        "DDIM: the estimate takes the noise along",
        "move = self.alpha[step + 1] - keep * self.alpha[step]",
        "move = self.alpha[step + 1]",
    ),
    of(
        STEPS,
        "DDIM: noise is kept at the old level",
        "keep = kept_noise / self.sigma[step]\n",
        "keep = kept_noise / (self.sigma[step] + self.sigma[step + 1])\n",
    ),
    of(
        STEPS,
        "the walk begins at the noise alone",
        "return noise * (self.alpha[0] ** 2 + self.sigma[0] ** 2) ** 0.5",
        "return noise * self.sigma[0] * 0.9",
    ),
    of(
        STEPS,
        "posterior variance without its share",
        "return self.transition_variance(step) * share",
        "return self.transition_variance(step)",
    ),
    of(DDIM, "eta is not squared", "variance=eta**2 *", "variance=eta *"),
    of(
        DDPM,
        "small and large variance are swapped",
        'if variance == "small" else added',
        'if variance == "large" else added',
    ),
    of(HEUN, "Heun: the slopes are summed", "alpha=(there - here) / 2", "alpha=(there - here)"),
    of(
        HEUN,
        "Heun: second slope at the first noise level",
        "(predicted - estimate) / there",
        "(predicted - estimate) / here",
    ),
    of(
        DPM_SOLVER,
        "DPM-Solver: the ratio is inverted",
        "lengths[step] / (2 * lengths[step - 1])",
        "lengths[step - 1] / (2 * lengths[step])",
    ),
    of(
        DPM_SOLVER,
        "DPM-Solver: no second order",
        "return [0.0, *inner, 0.0][: levels.num_steps]",
        "return [0.0] * levels.num_steps",
    ),
    of(
        GUIDANCE,
        "guidance away from the condition",
        "torch.lerp(null_output, output, self._scale)",
        "torch.lerp(output, null_output, self._scale)",
    ),
    of(
        GUIDANCE,
        "guidance adds its scale to one",
        "torch.lerp(null_output, output, self._scale)",
        "torch.lerp(null_output, output, 1 + self._scale)",
    ),
    of(
        GUIDANCE,
        "guidance: conditions in the wrong order",
        "stack(null_condition, condition)",
        "stack(condition, null_condition)",
    ),
    of(
        GUIDANCE,
        "guidance: the interval is ignored",
        "self.scale != 1 and self.interval[0] <= time <= self.interval[1]",
        "self.scale != 1",
    ),
    of(GRID, "leading: no offset", "offset = 1 if", "offset = 0 if"),
    of(
        GRID,
        "trailing: begins one stride late",
        "(table - steps * (table / num_steps))",
        "(table - (steps + 0.5) * (table / num_steps))",
    ),
]

NORMALIZERS = [
    of(
        NORMALIZER,
        "the inverse multiplies",
        "return normalized / scale + shift",
        "return normalized * scale + shift",
    ),
    of(
        NORMALIZER,
        "the inverse shifts first",
        "return normalized / scale + shift",
        "return (normalized + shift) / scale",
    ),
    of(
        NORMALIZER,
        "scaled by the deviation, not by its inverse",
        "scales = 1 / torch.tensor(stds",
        "scales = torch.tensor(stds",
    ),
    of(
        NORMALIZER,
        "channels are not shifted",
        "shifts, stds = list(statistics.channel_means), list(statistics.channel_stds)",
        "stds = list(statistics.channel_stds)",
    ),
    of(
        FROZEN,
        "posterior: variance taken for deviation",
        "moments.variance.sqrt() * noise",
        "moments.variance * noise",
    ),
    of(
        FROZEN,
        "decoded without quantizing",
        "if self.autoencoder.bottleneck.num_codes is not None:",
        "if False:",
    ),
    of(
        FROZEN,
        "decoded without undoing the normalization",
        "latents = self.normalizer.denormalize(normalized)",
        "latents = normalized",
    ),
]
