"""Dropout on a CPU, from a faster source of random bits.

PyTorch draws a CPU's random numbers one after the other, some 8 ns for each element that dropout may drop: a sixth of
the time of a small BERT. Here 16 bits of numpy's SFC64 decide about an element, 0.5 ns.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel

_OF_OTHER_HEADS = ("summary_", "classifier_")
"""How settings begin that are of heads which a language model has not."""
LEVELS = 2**16
"""A probability is a multiple of one of so many: 0.1 is 0.100006. What is kept is scaled by just that."""
_PLAIN_DROPOUT, _PLAIN_ATTENTION = functional.dropout, functional.scaled_dot_product_attention


def drops(model: PreTrainedModel) -> bool:
    """Whether the configuration asks for dropout anywhere in a language model."""
    settings = _settings(model.config.to_dict())
    return any("drop" in name and _positive(value) for name, value in settings if not name.startswith(_OF_OTHER_HEADS))


def faster_dropout() -> list[tuple[Any, str, Any]]:
    """Of torch.nn.functional, what dropout and an attention that drops are replaced by, for `Replaced`.

    What is dropped follows from the state of PyTorch's own generator, so that whoever sets or keeps that has the same
    again.
    """
    return [(functional, "dropout", dropout), (functional, "scaled_dot_product_attention", attention)]


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As torch.nn.functional.dropout: each element is 0 with probability `p`, or else 1 / (1 - p) times what it was."""
    dropped = round(p * LEVELS)
    if not training or isinstance(input, DTensor) or not input.numel() or not 0 < dropped < LEVELS:
        return _PLAIN_DROPOUT(input, p, training, inplace)
    kept = kept_or_dropped(input, dropped)
    return input.mul_(kept) if inplace else input * kept


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch.nn.functional.scaled_dot_product_attention, whose kernel for a CPU knows no dropout either.

    query [..., heads, queries, width], key and value [..., heads, keys, width]; a mask is True where a query sees a
    key. Masks that are added are left to PyTorch.
    """
    other_mask = attn_mask is not None and (is_causal or attn_mask.dtype != torch.bool)
    if dropout_p == 0 or other_mask or isinstance(query, DTensor):
        return _PLAIN_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if dtype != torch.float32:  # as PyTorch's: what comes in and goes out is rounded, not what is in between
        query, key, value = (each.to(dtype).float() for each in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            return attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa).to(dtype)
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if attn_mask is None:
        return dropout(scores.softmax(-1), dropout_p) @ value
    blind = ~attn_mask.any(-1, keepdim=True)  # softmax makes no numbers of such rows, and PyTorch's attention zeros
    weights = scores.masked_fill(~(attn_mask | blind), -torch.inf).softmax(-1)
    if blind.any():
        weights = weights.masked_fill(blind, 0)
    return dropout(weights, dropout_p) @ value


def keep_all(like: Tensor, dropped: int) -> Tensor:
    """As `kept_or_dropped` where it happens to drop nothing, for a proof that nothing else is different."""
    return torch.ones_like(like)


def kept_or_dropped(like: Tensor, dropped: int) -> Tensor:
    """What to multiply with: 0 with a probability of `dropped` out of LEVELS, and what makes the mean 1 otherwise."""
    seed = int(torch.randint(2**63 - 1, ()))
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-like.numel() // 4)))
    drawn = bits.view(torch.int16)[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=like.dtype)
    return torch.ge(drawn, dropped - LEVELS // 2, out=kept).mul_(LEVELS / (LEVELS - dropped))


def _settings(config: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """All names and values, of parts of the model too."""
    for name, value in config.items():
        yield str(name), value
        if isinstance(value, dict):
            yield from _settings(value)


def _positive(value: Any) -> bool:
    return isinstance(value, float | int) and value > 0
