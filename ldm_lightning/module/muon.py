"""Muon: orthogonalized momentum for a network's hidden matrices, AdamW for everything else.

Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, "Muon is Scalable
for LLM Training", arXiv:2502.16982, section 2.2, for the rate that both groups share.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from ldm_lightning.module.settings import OptimizerFactory

MUON, ADAMW = "muon", "adamw"
"""Methods that a group of parameters is updated by, under its key ``method``."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration: singular values end between 0.7 and 1.2."""

NUM_ITERATIONS = 5
RMS_OF_ADAMW = 0.2
"""Root mean square of an AdamW update of rate 1, which an orthogonal matrix is scaled to."""

ADAMW_EPS = 1e-8
SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Update hidden matrices by orthogonalized momentum, other parameters by AdamW.

    Kernels [out, in, kh, kw] are matrices [out, in * kh * kw]. On matrices it equals
    ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, which takes nothing else.

    Args:
        params: Parameters, or groups of them whose ``method`` is ``muon`` or ``adamw``. Without
            one, parameters of two dimensions or more are matrices; see ``make_optimizer``.
        lr: Learning rate of both groups.
        momentum: Of the matrices.
        betas: Of AdamW.
        weight_decay: Decoupled, of both.

    Raises:
        ValueError: If a value is out of bounds, a matrix has less than two dimensions, or
            parameters are sharded.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        if min(lr, weight_decay) < 0:
            raise ValueError(f"lr and weight_decay must be at least 0, got {lr}, {weight_decay}.")
        if not all(0 <= decay < 1 for decay in (momentum, *betas)):
            raise ValueError(f"momentum and betas must lie in [0, 1), got {momentum}, {betas}.")
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        # With "fused" torch keeps the stored number of steps on the parameter's device.
        super().__init__(list(_groups(params)), {**settings, "fused": True})
        for group in self.param_groups:
            for parameter in group["params"]:
                if isinstance(parameter, DTensor):
                    raise ValueError("Muon needs whole matrices, not shards: use trainer=ddp.")
                if group["method"] == MUON and parameter.ndim < 2:
                    raise ValueError(f"Muon needs matrices, got {tuple(parameter.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["method"] == ADAMW:
                self._step_adamw(group, trained)
                continue
            for matrix in trained:
                self._step_muon(group, matrix)
        return loss

    def _step_muon(self, group: Mapping[str, Any], matrix: nn.Parameter) -> None:
        """Update one matrix along the nearest orthogonal matrix to its momentum."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        average, momentum, rate = state["momentum_buffer"], group["momentum"], group["lr"]
        average.lerp_(gradient, 1 - momentum)
        ahead = gradient.lerp(average, momentum).flatten(1)  # Nesterov's momentum
        update = orthogonalized(ahead.to(iteration_dtype(ahead)))
        scale = RMS_OF_ADAMW * math.sqrt(max(update.shape))
        matrix.mul_(1 - rate * group["weight_decay"])
        matrix.add_(update.view_as(matrix), alpha=-rate * scale)

    def _step_adamw(self, group: Mapping[str, Any], trained: list[nn.Parameter]) -> None:
        """Update parameters as ``torch.optim.AdamW(fused=True)`` does."""
        for parameter in trained:
            if not (state := self.state[parameter]):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in trained]
        adamw(
            [*trained],
            [parameter.grad for parameter in trained if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=ADAMW_EPS,
            maximize=False,
        )


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearest orthogonal matrix, roughly: five Newton-Schulz iterations; [m, n] to [m, n]."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    # The short way squares small singular values, which bfloat16 would lose.
    is_short = x.dtype != torch.bfloat16 and x.shape[1] >= 2 * x.shape[0]
    x = _iterated_short(x) if is_short else _iterated(x)
    return (x.T if is_tall else x).contiguous()


def _iterated(x: Tensor) -> Tensor:
    """Iterate as published: each time x becomes (a + b x x' + c (x x')^2) x."""
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterated_short(x: Tensor) -> Tensor:
    """The same with products of [m, m] alone in each iteration: x is multiplied once, at the end.

    All factors are polynomials in x x' and commute. On kernels of 3x3 it takes 0.4 of the
    operations.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.T
    product = None
    for _ in range(NUM_ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    assert product is not None
    return product @ x


def iteration_dtype(matrix: Tensor) -> torch.dtype:
    """Type to iterate in: bfloat16 as published, but on processors the matrix' own.

    Small products in bfloat16 take four times as long there, with AVX-512 BF16 too (measured at
    64x576 to 256x256).
    """
    return matrix.dtype if matrix.device.type == "cpu" else torch.bfloat16


def make_optimizer(
    factory: OptimizerFactory,
    parameters: Sequence[nn.Parameter],
    *,
    networks: Sequence[nn.Module],
) -> Optimizer:
    """Make an optimizer; a ``Muon`` gets the hidden matrices of networks in a group of their own.

    Args:
        factory: Makes it from parameters.
        parameters: All that it trains.
        networks: Of which hidden matrices are taken; see ``hidden_matrices``.
    """
    optimizer = factory(parameters)
    if not isinstance(optimizer, Muon):
        return optimizer
    hidden = {id(matrix) for network in networks for matrix in hidden_matrices(network)}
    matrices = [parameter for parameter in parameters if id(parameter) in hidden]
    others = [parameter for parameter in parameters if id(parameter) not in hidden]
    groups = [{"params": matrices, "method": MUON}, {"params": others, "method": ADAMW}]
    return factory([group for group in groups if group["params"]])


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Weights of linear and convolutional layers that lie neither first nor last in a network.

    Of a denoiser only those in its ``blocks``: what embeds the time and what makes its output lie
    outside. First and last are told by the order in which convolutions were added to the network.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    ends = convolutions[:1] + convolutions[-1:]
    blocks: Iterable[nn.Module] = getattr(network, "blocks", [network])
    layers = [
        module
        for block in blocks
        for module in block.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and module not in ends
    ]
    # A weight that is computed, as under spectral normalization, is no parameter.
    return [layer.weight for layer in layers if isinstance(layer.weight, nn.Parameter)]


def _groups(
    params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Groups with a method, of parameters or of groups that may lack one."""
    given: list[Any] = list(params)
    for group in given if given and isinstance(given[0], Mapping) else [{"params": given}]:
        if "method" in group:
            yield dict(group)
            continue
        parameters = list(group["params"])
        for method, is_matrix in ((MUON, True), (ADAMW, False)):
            chosen = [parameter for parameter in parameters if (parameter.ndim >= 2) == is_matrix]
            if chosen:
                yield {**group, "params": chosen, "method": method}
