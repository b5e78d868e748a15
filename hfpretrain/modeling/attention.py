"""Keeping attention within a document when several share a block.

Models differ in what makes them do so: positions that restart, a mask of one kind or another. Nothing is assumed
about an architecture: each way is tried on a tiny batch, and only one that is seen to isolate documents is used.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class DocumentMasking:
    """How a model is told about documents, in terms of its own forward arguments."""

    mask: Literal["none", "boolean", "additive"]
    """none: positions alone do it. boolean: 4-D, True where seen. additive: 4-D, 0 where seen, for eager attention."""
    causal: bool
    """Whether the mask also hides later tokens of the same document."""
    first_position: int | None
    """The position of a document's first token; None where the model takes no positions."""
    window: int | None = None
    """How many tokens away a layer of sliding attention sees; it then has a mask of its own."""

    def __str__(self) -> str:
        kind = {"none": "", "boolean": "a mask", "additive": "an additive mask"}[self.mask]
        if self.window is not None:
            kind += " per kind of layer"
        return " and ".join(filter(None, (kind, "" if self.first_position is None else "positions that restart")))


def document_inputs(document_ids: Tensor, how: DocumentMasking) -> dict[str, Any]:
    """The extra forward arguments that keep attention within documents.

    `document_ids` is an integer tensor of shape (batch, length): the number of each token's document, equal numbers
    standing side by side; padding has a number of its own. Positions are of shape (batch, length) and restart at
    each document; masks are of shape (batch, 1, length, length), where True or 0 means that the row's token sees
    the column's.
    """
    inputs: dict[str, Any] = {}
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    if how.first_position is not None:
        starts = torch.ones_like(document_ids, dtype=torch.bool)
        starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        inputs["position_ids"] = index - torch.where(starts, index, 0).cummax(dim=1).values + how.first_position
    if how.mask == "none":
        return inputs
    distance = index[:, None] - index[None, :]
    visible = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    if how.causal:
        visible = visible & (distance >= 0)
    masks = {"full_attention": visible}
    if how.window is not None:
        # As transformers' masking_utils counts: a causal window includes the token itself, the other is to each side.
        near = distance < how.window if how.causal else distance.abs() <= how.window
        masks["sliding_attention"] = visible & near
    if how.mask == "additive":
        masks = {kind: (~seen).float() * torch.finfo(torch.float32).min for kind, seen in masks.items()}
    inputs["attention_mask"] = masks["full_attention"] if how.window is None else masks
    return inputs


def prove_document_masking(
    model: PreTrainedModel, objective: Literal["clm", "mlm"], *, length: int = 24
) -> DocumentMasking | None:
    """Finds a way to keep attention within documents, by trying each on two rows of random tokens.

    A way is proven when every document's logits are those of the document on its own, and changing one document
    changes no logits of another. The measure is how much documents see of each other when nothing is done: a model
    where that cannot be told from rounding proves nothing. `length` tokens are in a row, more where a short sliding
    window has to be exceeded. The model is left as it was. Returns None where no way works.
    """
    ways = list(_ways(model, causal=objective == "clm"))
    tokens = _ordinary_tokens(model)
    length = _proof_length(model, length)
    if not ways or len(tokens) < 2 or length < 6:
        return None
    documents, input_ids, altered_ids, untouched = _proof_batch(tokens, length)
    with undisturbed(model), torch.no_grad():
        alone = _logits_alone(model, input_ids, documents)
        seen = (_logits(model, input_ids) - _logits(model, altered_ids)).abs()[untouched].max().item()
        scale = alone.abs().max().item()
        for way in ways:
            try:
                extra = document_inputs(documents, way)
                logits = _logits(model, input_ids, extra)
                altered = _logits(model, altered_ids, extra)
            except Exception:
                continue  # this model does not take such arguments
            error = torch.maximum((logits - alone).abs().max(), (logits - altered).abs()[untouched].max()).item()
            # Rounding is about 1e-6 of the scale; NaN and a leak too small to see fail both comparisons.
            if error <= 1e-4 * scale and error < seen / 20:
                return way
    return None


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """For a proof: evaluation mode, exact matrix products and no warnings; afterwards the model is in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")  # TF32 would round away the difference between right and wrong
        model.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module, training in modes:
            module.training = training


def proof_batch(model: PreTrainedModel, *, length: int = 24) -> tuple[Tensor, Tensor] | None:
    """Document numbers and random token ids, both int64 [2, length], to prove something on; None where none fit."""
    tokens, length = _ordinary_tokens(model), _proof_length(model, length)
    if len(tokens) < 2 or length < 6:
        return None
    return _proof_batch(tokens, length)[:2]


def _ways(model: PreTrainedModel, *, causal: bool) -> Iterator[DocumentMasking]:
    """The ways that the model's forward has arguments for, the cheapest first."""
    accepted = inspect.signature(model.forward).parameters
    window = _window(model)
    first_positions: list[int | None] = [None]
    if "position_ids" in accepted:
        first_positions = [*_first_positions(model)]
        if causal:
            # transformers' own masks read document borders from positions that restart.
            yield from (DocumentMasking(mask="none", causal=True, first_position=first) for first in first_positions)
    if "attention_mask" not in accepted:
        return
    masks: tuple[Literal["boolean", "additive"], ...] = ("boolean", "additive")
    for mask in masks:
        for first in first_positions:
            # With a sliding window there is no way with one mask for all layers: it would undo the window.
            yield DocumentMasking(mask=mask, causal=causal, first_position=first, window=window)


def _window(model: PreTrainedModel) -> int | None:
    """How many tokens away layers of sliding attention see, where the model has such layers."""
    try:
        window = model.config.sliding_window
    except Exception:  # most configurations have none; some have one per layer and refuse
        return None
    return window if isinstance(window, int) and window > 0 else None


def _first_positions(model: PreTrainedModel) -> list[int]:
    """Where positions may begin: at 0, or after the padding row in tables that have one, as RoBERTa's does."""
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return sorted({0} | {module.padding_idx + 1 for module in embeddings if module.padding_idx is not None})


def _ordinary_tokens(model: PreTrainedModel) -> Tensor:
    """Token ids without the special ones, which may mean something to the model."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    special = {getattr(model.config, name, None) for name in names if hasattr(model.config, name)}
    size: int = model.config.vocab_size
    return torch.tensor([token for token in range(min(size, 1000)) if token not in special], device=model.device)


def _proof_length(model: PreTrainedModel, length: int) -> int:
    """Tokens per row: past a sliding window where that is cheap, and within the model's positions."""
    window = _window(model)
    if window is not None and 3 * window <= 512:
        length = max(length, 3 * window)
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest > 0:
        length = min(length, longest - max(_first_positions(model)))
    return length


def _proof_batch(tokens: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two rows: three short documents, and a short one before a long one.

    Returns document numbers, token ids, token ids with a document of each row altered (the middle one and the
    first), and where the unaltered documents are; all of shape (2, length).
    """
    index = torch.arange(length, device=tokens.device)
    third = length // 3
    documents = torch.stack([(index >= third + 1).long() + (index >= 2 * third), (index >= length // 5 + 1).long()])
    generator = torch.Generator().manual_seed(0)
    choice = torch.randint(len(tokens), (2, length), generator=generator).to(tokens.device)
    altered = documents == torch.tensor([[1], [0]], device=tokens.device)
    return documents, tokens[choice], tokens[torch.where(altered, (choice + 1) % len(tokens), choice)], ~altered


def _logits(model: PreTrainedModel, input_ids: Tensor, extra: dict[str, Any] | None = None) -> Tensor:
    """Logits of shape (batch, length, vocabulary), computed as in training: without a cache."""
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = model(input_ids=input_ids, **cache, **(extra or {})).logits
    return logits


def _logits_alone(model: PreTrainedModel, input_ids: Tensor, documents: Tensor) -> Tensor:
    """Each document's logits when it is the whole input, laid side by side as in the batch."""
    rows = []
    for row_ids, row_documents in zip(input_ids, documents, strict=True):
        numbers = row_documents.unique_consecutive()
        rows.append(torch.cat([_logits(model, row_ids[row_documents == number][None])[0] for number in numbers]))
    return torch.stack(rows)
