"""The optimizers, with the field's rule for weight decay: none on norms, biases and embeddings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Optimizer
from hfpretrain.training.sharding import joined, local, shared_like

PARTS = ("embeddings", "output", "matrices", "vectors")
"""Of a model: tables of embeddings; the output embedding, where it is not tied to one; other weights of two or more
dimensions; norms, biases and the like."""

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al. 2024: after five steps singular values are near 1, whatever they were."""


def build_optimizers(
    model: PreTrainedModel, settings: Optimizer, *, lr: float, fast_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), fused into one kernel; for muon one beside it for the hidden matrices.

    `lr` is the peak learning rate, which the settings may leave to be chosen. `fast_dtype` is what the hardware
    multiplies fast, for Muon's iteration. Each group of parameters has an `lr_factor`
    for `set_learning_rate`. Raises RecipeError where optimizer.lr_factors names a part that the model does not have.
    """
    sorted_: dict[str, list[tuple[str, Parameter]]] = {"muon": [], "decayed": [], "plain": []}
    whole: set[str] = set()
    for name, parameter, part in parts_of(model):
        decays = part != "vectors" and part != "embeddings" and not getattr(parameter, "_no_weight_decay", False)
        way = "decayed" if decays else "plain"  # Mamba marks its A and D by that attribute
        if settings.name == "muon" and part == "matrices" and decays and parameter.ndim == 2:
            way = "muon"
        sorted_[way].append((name, parameter))
        whole |= {name} if part == "matrices" and parameter.ndim == 2 else set()
    sorted_["decayed"].sort(key=lambda each: each[0] not in whole)  # the order that earlier checkpoints have
    factors = _factors(model, settings)
    optimizers: list[torch.optim.Optimizer] = []
    if groups := _groups(sorted_["muon"], factors, settings.weight_decay):
        optimizers.append(Muon(groups, lr=lr, dtype=fast_dtype))
    groups = _groups(sorted_["decayed"], factors, settings.weight_decay) + _groups(sorted_["plain"], factors, 0.0)
    if groups:
        adamw = torch.optim.AdamW(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=True)
        optimizers.append(adamw)
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Gives every group its learning rate: `rate` times its factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]


@contextmanager
def settings_kept(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """What the recipe says of decay, betas and the like counts, whatever a state that is loaded inside holds."""
    groups = [[dict(group) for group in optimizer.param_groups] for optimizer in optimizers]
    yield
    for optimizer, before in zip(optimizers, groups, strict=True):
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group |= {key: value for key, value in settings.items() if key != "params"}


def parts_of(model: PreTrainedModel) -> Iterator[tuple[str, Parameter, str]]:
    """Every parameter that is trained, with its name and the part of the model that it is of, one of PARTS."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings = {id(parameter) for module in tables for parameter in module.parameters(recurse=False)}
    output = model.get_output_embeddings()
    outputs = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            yield name, parameter, "embeddings"
        elif parameter.ndim < 2:
            yield name, parameter, "vectors"
        else:
            yield name, parameter, "output" if id(parameter) in outputs else "matrices"


def _factors(model: PreTrainedModel, settings: Optimizer) -> dict[str, float]:
    """The factor of each parameter, by its name."""
    named = {name: part for name, _, part in parts_of(model)}
    found: dict[str, float] = {}
    for key, factor in settings.lr_factors.items():
        belongs = [name for name, part in named.items() if part == key or fnmatchcase(name, key)]
        if not belongs:
            known = ", ".join(part for part in PARTS if part in named.values())
            raise RecipeError(
                f"optimizer.lr_factors: the model has no part {key!r}",
                hint=f"name one of {known}, or a pattern of names such as {max(named, key=len)}",
            )
        found |= {name: float(factor) for name in belongs if name not in found}
    return found


def _groups(
    named: Sequence[tuple[str, Parameter]], factors: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of parameters that have a factor in common."""
    of_factor: dict[float, list[Parameter]] = {}
    for name, parameter in named:
        of_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_factor": factor}
        for factor, parameters in of_factor.items()
    ]


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal (Jordan et al. 2024), for 2-D weights.

    Scaled by 0.2 sqrt(max(rows, columns)), so that updates are as large as AdamW's and its learning rates and weight
    decay serve (Liu et al. 2025). torch.optim.Muon does the same but iterates in bfloat16 only, which some processors
    have no units for.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
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
                # An update needs the whole matrix: of a sharded model every process makes it, and takes its share.
                momenta = torch.stack([joined(self._momentum(each, left_out), each) for each in parameters])
                updates = orthogonal(momenta, self.dtype)
                scale = 0.2 * max(shape) ** 0.5
                kept: float | Tensor = 1 - group["lr"] * group["weight_decay"]
                if left_out is not None:
                    updates *= 1 - left_out
                    kept = torch.where(left_out > 0, 1.0, kept)
                own = [local(each) for each in parameters]
                of_own = [local(shared_like(one, each)) for one, each in zip(updates.unbind(), parameters, strict=True)]
                torch._foreach_mul_(own, kept)
                torch._foreach_add_(own, of_own, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, left_out: Tensor | None) -> Tensor:
        """Nesterov's: the gradient, averaged and looked ahead. A step that is left out is none here either.

        Of a sharded parameter this process's share.
        """
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        gradient, momentum = local(parameter.grad), local(state["momentum"])
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
