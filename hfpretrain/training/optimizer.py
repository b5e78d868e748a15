"""The optimizers, with the field's rule for weight decay: none on norms, biases and embeddings."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfpretrain.recipe import Optimizer

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al. 2024: after five steps singular values are near 1, whatever they were."""


def build_optimizers(
    model: PreTrainedModel, settings: Optimizer, *, lr: float, fast_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), fused into one kernel; for muon one beside it for the hidden matrices.

    `lr` is the peak learning rate, which the settings may leave to be chosen. `fast_dtype` is what the hardware
    multiplies fast, for Muon's iteration.
    """
    matrices, decayed, plain = _sorted_parameters(model)
    optimizers: list[torch.optim.Optimizer] = []
    if settings.name == "muon" and matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=settings.weight_decay, dtype=fast_dtype))
        matrices = []
    groups = [
        {"params": matrices + decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )
    return [*optimizers, adamw]


def _sorted_parameters(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Hidden matrices (2-D weights between the embeddings), other weights with decay, and what has none."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings = {id(parameter) for module in tables for parameter in module.parameters(recurse=False)}
    output = model.get_output_embeddings()
    outputs = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    matrices: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        # Mamba marks its A and D by that attribute.
        if parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "_no_weight_decay", False):
            plain.append(parameter)
        elif parameter.ndim == 2 and id(parameter) not in outputs:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return matrices, decayed, plain


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal (Jordan et al. 2024), for 2-D weights.

    Scaled by 0.2 sqrt(max(rows, columns)), so that updates are as large as AdamW's and its learning rates and weight
    decay serve (Liu et al. 2025). torch.optim.Muon does the same but iterates in bfloat16 only, which some processors
    have no units for.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        left_out = getattr(self, "found_inf", None)  # as torch's fused optimizers are told
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in of_shape.items():
                momenta = torch.stack([self._momentum(each, left_out) for each in parameters])
                updates = orthogonal(momenta, self.dtype)
                scale = 0.2 * max(shape) ** 0.5
                kept: float | Tensor = 1 - group["lr"] * group["weight_decay"]
                if left_out is not None:
                    updates *= 1 - left_out
                    kept = torch.where(left_out > 0, 1.0, kept)
                torch._foreach_mul_(parameters, kept)
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, left_out: Tensor | None) -> Tensor:
        """Nesterov's: the gradient, averaged and looked ahead. A step that is left out is none here either."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient, momentum = parameter.grad, state["momentum"]
        assert gradient is not None
        if left_out is not None:
            gradient = torch.where(left_out > 0, momentum, gradient)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonal(matrices: Tensor, dtype: torch.dtype, *, steps: int = 5) -> Tensor:
    """The nearest matrices with singular values near 1, by Newton-Schulz iteration in `dtype`; [n, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return found
