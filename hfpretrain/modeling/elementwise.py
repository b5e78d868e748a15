"""Norms and rotations for a CPU, in fewer passes over memory than transformers' own.

RMSNorm (Zhang & Sennrich 2019) and rotary positions (Su et al. 2021) are written there as half a dozen operations
each, whose results all go through memory, forward and backward; so is torch.nn.functional.rms_norm on a CPU, which
takes as long. Here their gradients are written out. They stand in for the model's own while it trains, where a tiny
batch has the same loss and gradients, as architectures differ.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROTATION = "apply_rotary_pos_emb"
"""What transformers' modules call the function that turns queries and keys."""


class RMSNorm(torch.autograd.Function):
    """`x / rms(x) * weight` for x float32 [..., width] and weight float32 [width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (x * scale).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        by_weight = slope * normed
        along = (by_weight @ weight).unsqueeze(-1).div_(x.shape[-1])
        return (slope * weight).addcmul_(normed, along, value=-1).mul_(scale), by_weight.flatten(0, -2).sum(0), None


class Rotation(torch.autograd.Function):
    """Turns the pairs of x [..., length, width] (an element and the one half a width further) by given angles.

    Cosines and sines are of shapes that go with x, and are the same in both halves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(slope, cosine, sine, -1), None, None


rms_norm: Callable[[Tensor, Tensor, float], Tensor] = RMSNorm.apply
rotated: Callable[[Tensor, Tensor, Tensor], Tensor] = Rotation.apply


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    turned = x * cosine
    turned[..., :half].addcmul_(x[..., half:], sine[..., :half], value=-direction)
    turned[..., half:].addcmul_(x[..., :half], sine[..., half:], value=direction)
    return turned


def faster_norms(model: PreTrainedModel) -> list[tuple[Any, str, Any]]:
    """What `forward` of the classes of the model's norms that are RMSNorm is replaced by, for `Replaced`."""
    norms = {type(module): module for module in model.modules() if type(module).__name__.endswith("RMSNorm")}
    ways = {kind: _way_of(norm) for kind, norm in norms.items()}
    return [(kind, "forward", _norm_forward(kind.forward, *way)) for kind, way in ways.items() if way]


def faster_rotations(model: PreTrainedModel) -> list[tuple[Any, str, Any]]:
    """What the functions that the model's attention turns queries and keys by are replaced by, for `Replaced`."""
    modules = {type(module).__module__: sys.modules[type(module).__module__] for module in model.modules()}
    owns = [(module, own) for module in modules.values() if (own := getattr(module, ROTATION, None)) is not None]
    return [(module, ROTATION, _rotation(own)) for module, own in owns if _takes_all(own)]


def _takes_all(rotation: Callable[..., Any]) -> bool:
    return list(inspect.signature(rotation).parameters) == ["q", "k", "cos", "sin", "unsqueeze_dim"]


@torch.no_grad()
def _way_of(norm: nn.Module) -> tuple[str, float] | None:
    """What a norm calls its epsilon, and what it adds to its weight, as Gemma's do 1; None if it is of another kind."""
    eps = next((name for name in ("variance_epsilon", "eps") if isinstance(getattr(norm, name, None), float)), None)
    weight = getattr(norm, "weight", None)
    if eps is None or not _plain(weight) or weight.ndim != 1:
        return None
    x = torch.randn(2, 3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    own = norm(x)
    for more in (0.0, 1.0):
        if torch.allclose(own, rms_norm(x, weight + more, getattr(norm, eps)), atol=1e-5):
            return eps, more
    return None


def _norm_forward(own: Callable[..., Tensor], eps: str, more: float) -> Callable[..., Tensor]:
    def forward(self: nn.Module, hidden_states: Tensor, *others: Any, **named: Any) -> Tensor:
        weight = getattr(self, "weight", None)
        if others or named or not _plain(hidden_states) or not _plain(weight):
            return own(self, hidden_states, *others, **named)
        return rms_norm(hidden_states, weight + more if more else weight, getattr(self, eps))

    return forward


def _rotation(own: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if not all(map(_plain, (q, k, cos, sin))) or cos.shape[-1] != q.shape[-1] or cos.requires_grad:
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        angles = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotated(q, *angles), rotated(k, *angles)

    return turn


def _plain(tensor: object) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32
