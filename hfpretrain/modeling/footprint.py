"""What a model takes, counted on an outline of it: nothing is computed, and no memory is taken, whatever its size.

Its own forward pass runs on tensors that have shapes and no numbers (torch's FakeTensorMode), and what that keeps for
the backward pass is added up. So an architecture's own ways count: key-value heads, gated feed-forwards, eager
attention, masks, the copies that autocast makes. Where that does not work, a formula stands in for it, and says so.
"""

import copy
import dataclasses
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from hfpretrain.modeling.attention import DocumentMasking, document_inputs
from hfpretrain.modeling.flops import estimated_flops_per_token, flops_per_token
from hfpretrain.modeling.last_layer import has_last_layer
from hfpretrain.modeling.loss import CHUNK_NUMBERS, CHUNK_ROWS, Loss, Shortcuts
from hfpretrain.modeling.objective import MicroBatch
from hfpretrain.modeling.parameters import count_parameters, layers_of, shape_of

log = logging.getLogger(__name__)

MOST_KEPT = 20_000
"""Tensors that a pass may keep for it to be followed: 500 layers of an attention model, and no recurrence written as a
loop over positions, which would take an hour."""
_ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "attn_dropout")


@dataclass(frozen=True)
class Footprint:
    """Numbers and bytes of a model and of a block of tokens; what is per block grows in proportion with blocks."""

    parameters: int
    """All of them, tied ones once."""
    matrices: int
    """Those in 2-D weights of the layers, which Muon takes."""
    largest_group: int
    """Those in the matrices of one shape that are most together: Muon works on them at once."""
    layers: int
    largest_layer: int
    """Parameters of the largest layer."""
    outside: int
    """Parameters that are in no layer: embeddings, head, last norm."""
    flops_per_token: float
    """Of forward and backward, nothing computed twice."""
    in_layers: float
    """The share of these in the layers, not in the head."""
    copies: int
    """Bytes of the weights' copies in half precision, which autocast keeps from a layer's forward to its backward."""
    kept: int
    """Bytes that a block keeps for its backward pass."""
    kept_in_layers: int
    """Of these, what is kept within layers."""
    borders: int
    """Bytes of the layers' inputs for a block: what is left of the former with activation checkpointing."""
    loss: int
    """Bytes that the fused loss takes whatever the number of blocks: the output embedding's gradient, a chunk of
    logits."""
    can_checkpoint: bool
    """Whether the architecture can compute its layers again."""
    counted: bool = True
    """Whether activations were counted on the model, or else are 34 bytes per token, unit and layer, for models of
    GPT's kind with fused attention (Korthikanti et al. 2022, arXiv 2205.05198, equation 1 without its last term)."""

    throughout: tuple[int, int, int] | None = None
    """`kept`, `kept_in_layers` and `borders` where all is computed in half precision, as sharded models are, and not by
    autocast; None where that is no other."""

    orthogonal: float = 0.0
    """FLOPs of an update of all `matrices` by Muon, which makes each orthogonal, by five steps of Newton-Schulz."""

    def activations(self, blocks: int, *, checkpointing: bool, sharded: bool = False) -> int:
        """Bytes at the peak for so many blocks: what is kept, and the layer that is at work in the backward pass."""
        kept, within, borders = self.kept, self.kept_in_layers, self.borders
        if sharded and self.throughout is not None:
            kept, within, borders = self.throughout
        return blocks * ((kept - within + borders if checkpointing else kept) + within // self.layers)


def footprint(
    model: PreTrainedModel,
    *,
    block_size: int,
    half: bool = True,
    targets: float = 1.0,
    documents: bool = False,
    shortcuts: bool = True,
    fused_attention: bool = True,
) -> Footprint:
    """The footprint of a model of which there is an outline (on the meta device).

    `half` says whether matrices are multiplied in half precision, `targets` which share of the positions the loss
    counts, `documents` whether a mask keeps attention within documents, `shortcuts` whether the loss takes them, as far
    as the model has the parts for it. With `fused_attention` dropout of attention takes no memory, as in CUDA's
    kernels; on a CPU it takes whole squares.
    """
    outline, model = model, _copy_of(model, attention_dropout=not fused_attention)
    with _followed(model, shortcuts=shortcuts, few_targets=targets < 1, documents=documents) as loss:
        try:
            found = _counted(model, loss, block_size, half, targets)
        except Exception:
            log.debug("the forward pass cannot be followed without numbers", exc_info=True)
            found = None
        if found is None:
            flops = estimated_flops_per_token(model, block_size=block_size)
        else:
            flops = flops_per_token(model, loss, _batch(1, block_size, targets))
        told = _put_together(model, loss, block_size, half, targets, flops, found)
    if found is None or not half:
        return told
    model = _copy_of(outline, attention_dropout=not fused_attention).to(torch.bfloat16)
    with _followed(model, shortcuts=shortcuts, few_targets=targets < 1, documents=documents) as loss:
        try:
            one, two = _counted(model, loss, block_size, False, targets)
        except Exception:
            log.debug("the forward pass cannot be followed in half precision", exc_info=True)
            return told
        more = told.kept - (found[1].all - found[0].all)  # of the loss
        kept = (two.all - one.all + more, two.within - one.within, two.borders - one.borders)
        return dataclasses.replace(told, throughout=kept)


class _Kept:
    """What a pass keeps for its backward, in bytes, each piece of memory once, without the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = _several_layers(model)
        self.known = {_identity(parameter) for parameter in model.parameters()}
        self.all = self.within = self.borders = 0
        self.deep = False
        self.tensors = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        hooks = [layer.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True) for layer in self.layers]
        hooks += [layer.register_forward_hook(self._leave) for layer in self.layers]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next((each for each in (*arguments, *named.values()) if isinstance(each, Tensor)), None)
        self.borders += first.numel() * first.element_size() if first is not None else 0
        self.deep = True

    def _leave(self, *_: Any) -> None:
        self.deep = False

    def _pack(self, tensor: Tensor) -> Tensor:
        self.tensors += 1
        if self.tensors > MOST_KEPT:
            raise RuntimeError(f"it keeps more than {MOST_KEPT} tensors")
        if (place := _identity(tensor)) not in self.known:
            self.known.add(place)
            size = tensor.untyped_storage().nbytes()
            self.all += size
            self.within += size if self.deep else 0
        return tensor.detach()  # with its graph, it would keep itself for ever


class _OfShapes(Loss):
    """The loss as it is in training, its shortcuts taken for proven, asking nothing about the numbers."""

    def __init__(self, model: PreTrainedModel, *, shortcuts: bool, few_targets: bool, documents: bool) -> None:
        on_targets = shortcuts and few_targets and model.base_model is not model
        last_layer = on_targets and has_last_layer(model)
        fused = shortcuts and isinstance(getattr(model.get_output_embeddings(), "weight", None), Tensor)
        super().__init__(model, None, Shortcuts(on_targets=on_targets, fused=fused, last_layer=last_layer))
        window = getattr(model.config, "sliding_window", None)
        window = window if isinstance(window, int) and window > 0 else None
        causal = not self.bidirectional
        self.masking = DocumentMasking(mask="boolean", causal=causal, first_position=None, window=window)
        self.documents = documents

    def inputs(self, batch: MicroBatch) -> dict[str, Any]:
        masks = document_inputs(batch["document_ids"], self.masking) if self.documents else {}
        return {"input_ids": batch["input_ids"], **self.fixed, **masks}


def _several_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers; none where it has one, which may run many times, so that a run of it is no layer's share."""
    layers = layers_of(model)
    return layers if len(layers) > 1 else []


def _identity(tensor: Tensor) -> int:
    """Of the memory that a tensor is in, as long as that is held."""
    return int(tensor.untyped_storage()._cdata)


def _batch(blocks: int, block_size: int, targets: float) -> MicroBatch:
    batch = {name: torch.zeros(blocks, block_size, dtype=torch.int64) for name in ("input_ids", "labels")}
    batch["document_ids"] = torch.zeros(blocks, block_size, dtype=torch.int64)
    batch["targets"] = torch.zeros(max(1, round(targets * blocks * block_size)), dtype=torch.int64)
    return batch


def _counted(
    model: PreTrainedModel, loss: _OfShapes, block_size: int, half: bool, targets: float
) -> tuple[_Kept, _Kept]:
    """What one block keeps, and what two keep: the difference is a block's, the rest the weights' copies."""

    def once(blocks: int) -> _Kept:
        kept = _Kept(model)
        with kept.watched(), torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            loss(model, _batch(blocks, block_size, targets))
        return kept

    documents = loss.documents
    while True:
        try:
            return once(1), once(2)
        except Exception:
            if loss.documents:
                loss.documents = False  # the model may take no such mask
            elif loss.shortcuts.last_layer:
                loss.without_last_layer()  # it may be built in another way
                loss.documents = documents
            else:
                raise


def _put_together(
    model: PreTrainedModel,
    loss: _OfShapes,
    block_size: int,
    half: bool,
    targets: float,
    flops: float,
    found: tuple[_Kept, _Kept] | None,
) -> Footprint:
    layers, parameters = _several_layers(model), count_parameters(model)
    each = [count_parameters(layer) for layer in layers] or [parameters]
    matrices: Counter[torch.Size] = Counter()
    orthogonal = 0.0
    for layer in layers:
        matrices.update({p.shape: 0 for p in layer.parameters()})
        for p in layer.parameters():
            if p.ndim == 2:
                matrices[p.shape] += p.numel()
                short, long = sorted(p.shape)
                # A step (training/optimizer.py): the gram matrix, its square, and what both make of the matrix.
                orthogonal += 5 * (4 * short**2 * long + 2 * short**3)
    output = getattr(model.get_output_embeddings(), "weight", None)
    words, width = output.shape if isinstance(output, Tensor) else (0, 0)
    places, number = targets * block_size, 2 if half else 4
    if found is not None:
        one, two = found
        kept, within, borders = two.all - one.all, two.within - one.within, two.borders - one.borders
        copies = max(0, 2 * one.all - two.all)
    else:
        shape = shape_of(model.config)
        borders = number * block_size * shape.get("width", 0) * shape.get("layers", 0)
        kept = within = 34 * number // 2 * block_size * shape.get("width", 0) * shape.get("layers", 0)
        copies = number * parameters if half else 0
    fixed = 0
    if loss.shortcuts.fused:
        kept += round(number * places * width)  # the gradient of the hidden states, which is made in the forward pass
        # Of a chunk: logits and slopes in the precision of the arithmetic, logarithms in fp32. Of the output embedding:
        # its gradient in fp32, and in half precision a copy, and a chunk's part of the gradient in both.
        fixed = (12 if half else 4) * words * width + (4 + 2 * number) * max(CHUNK_NUMBERS, CHUNK_ROWS * words)
    return Footprint(
        parameters=parameters,
        matrices=sum(matrices.values()),
        largest_group=max(matrices.values(), default=0),
        layers=max(1, len(layers)),
        largest_layer=max(each),
        outside=parameters - sum(each),
        flops_per_token=flops,
        in_layers=1 - min(1.0, 6 * words * width * targets / flops) if flops else 1.0,
        copies=copies,
        kept=kept,
        kept_in_layers=within,
        borders=borders,
        loss=fixed,
        can_checkpoint=bool(layers) and bool(model.supports_gradient_checkpointing),
        counted=found is not None,
        orthogonal=orthogonal,
    )


@contextmanager
def _followed(model: PreTrainedModel, *, shortcuts: bool, few_targets: bool, documents: bool) -> Iterator["_OfShapes"]:
    """An outline becomes a model of tensors that have shapes and no numbers, in training; and its loss."""
    with FakeTensorMode(allow_non_fake_inputs=True), _silence():
        model.to_empty(device="cpu")
        model.tie_weights()
        model.train()
        yield _OfShapes(model, shortcuts=shortcuts, few_targets=few_targets, documents=documents)


@contextmanager
def _silence() -> Iterator[None]:
    """Without what torch says of operations that it cannot follow, which is dealt with here."""
    said = logging.getLogger("torch._subclasses.fake_tensor")
    before, said.disabled = said.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        said.disabled = before


def _copy_of(model: PreTrainedModel, *, attention_dropout: bool) -> PreTrainedModel:
    """Another outline of the same model, if need be without dropout of attention."""
    config = copy.deepcopy(model.config)
    for name in () if attention_dropout else _ATTENTION_DROPOUT:
        if isinstance(getattr(config.get_text_config(), name, None), float):
            setattr(config.get_text_config(), name, 0.0)
    with torch.device("meta"):
        made: PreTrainedModel = type(model)(config)
    return made
