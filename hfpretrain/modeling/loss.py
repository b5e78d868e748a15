"""The loss of a micro-batch, summed over its targets, and shortcuts to it that are proven before they are used.

On targets: the model's head, and what is behind the last layer's attention, run on the positions that are targets only
(of masked language modeling, a seventh of them). Fused: output embedding and cross-entropy are one operation that works
row by row and leaves no logits behind. Both hang on the model as hooks, so that they work with any architecture whose
parts are where they are expected; where a tiny batch shows another loss or another gradient (modeling/proof.py), the
plain way is taken.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hfpretrain.data.blocks import PADDING
from hfpretrain.modeling.attention import DocumentMasking, document_inputs
from hfpretrain.modeling.last_layer import LastLayer
from hfpretrain.modeling.objective import IGNORED, MicroBatch

CHUNK_NUMBERS, CHUNK_ROWS = 2**24, 256
"""Logits of a chunk: so many numbers (64 MB in fp32), but no fewer rows. Fewer make slow matrix products."""
CERTAIN_NATS = 60.0
"""Up to here a negative log-likelihood is found from the probability, which float32 has down to 1e-38, 87 nats."""
BEST = 5
"""So many of the likeliest tokens are told of each place."""


@dataclass(frozen=True)
class Shortcuts:
    """Which ways to the loss are taken."""

    on_targets: bool = False
    fused: bool = False
    last_layer: bool = False
    """Behind its attention on targets only, beside the head."""
    dropout: bool = False
    norms: bool = False
    rotations: bool = False

    def __str__(self) -> str:
        names = {
            "last layer and head on targets" if self.last_layer else "head on targets": self.on_targets,
            "fused cross-entropy": self.fused,
            "fast dropout": self.dropout,
            "fused norms": self.norms,
            "fused rotary positions": self.rotations,
        }
        return ", ".join(name for name, used in names.items() if used) or "none"


@dataclass(frozen=True)
class Scores:
    """What a model made of some places of a micro-batch; all arrays are [places], but for the best tokens."""

    places: Tensor
    """Where they are in the flattened labels, int64."""
    labels: Tensor
    """The right token, int64, or IGNORED where the place is no target."""
    nats: Tensor
    """Its negative log-likelihood, float32; 0 where there is none."""
    best: Tensor
    """The likeliest tokens, the likeliest first, int64 [places, 5], or as many as there are."""


class Loss:
    """The summed cross-entropy of a micro-batch under a model, in nats. `close` takes its hooks off the model.

    With `z_loss` the gradient is that of the cross-entropy and of so much times the squared log of the softmax's
    denominator (Chowdhery et al. 2022); the value stays the cross-entropy's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        how: DocumentMasking | None,
        shortcuts: Shortcuts = Shortcuts(),
        z_loss: float = 0.0,
    ) -> None:
        self.how, self.shortcuts, self.z_loss = how, shortcuts, z_loss
        self.bidirectional = not getattr(model.config, "is_decoder", False) and not model.can_generate()
        accepted = inspect.signature(model.forward).parameters
        self.fixed = {"use_cache": False} if "use_cache" in accepted else {}
        self._kept: Tensor | None = None
        self._taken: Tensor | None = None
        self._active = False
        self._hooks = []
        if shortcuts.on_targets:
            self._hooks.append(model.base_model.register_forward_hook(self._keep_targets))
        self._layer = LastLayer(model) if shortcuts.last_layer else None
        if shortcuts.fused:
            self.output = model.get_output_embeddings()
            self._hooks.append(self.output.register_forward_pre_hook(self._take))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._layer is not None:
            self._layer.close()

    def has_cut(self) -> bool:
        """Whether the latest pass ran the last layer on targets only; where a model pads inside, say, it does not."""
        return self._layer is not None and self._layer.done

    def without_last_layer(self) -> None:
        """From now on the last layer runs on all positions."""
        if self._layer is not None:
            self._layer.close()
        self._layer, self.shortcuts = None, replace(self.shortcuts, last_layer=False)

    def kept_bytes(self) -> int:
        """Bytes that the fused cross-entropy keeps between forward and backward beside hidden states: its gradient."""
        return 4 * int(self.output.weight.numel()) if self.shortcuts.fused else 0

    def inputs(self, batch: MicroBatch) -> dict[str, Any]:
        """What the model is called with."""
        inputs = {"input_ids": batch["input_ids"], **self.fixed}
        documents = batch["document_ids"]
        if self.how is not None:
            inputs |= document_inputs(documents, self.how)
        elif self.bidirectional and bool((documents == PADDING).any()):
            # A causal model never looks at padding, which comes last.
            inputs["attention_mask"] = (documents != PADDING).long()
        return inputs

    def __call__(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """The sum over targets, float32 []."""
        _, labels, logits, taken = self._forward(model, batch)
        if taken is not None:
            weight, bias = _plain(self.output.weight), getattr(self.output, "bias", None)
            bias = None if bias is None else _plain(bias)
            learns = torch.is_grad_enabled()
            return fused_cross_entropy(taken, weight, bias, labels, learns, self.z_loss)
        total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED)
        if self.z_loss and torch.is_grad_enabled():
            more = self.z_loss * (logits.float().logsumexp(-1).square() * (labels != IGNORED)).sum()
            total = total + (more - more.detach())
        return total

    @torch.no_grad()
    def scores(self, model: nn.Module, batch: MicroBatch) -> Scores:
        """What the model makes of each target, in the same way as the loss is found; for evaluations."""
        places, labels, logits, taken = self._forward(model, batch)
        found: list[tuple[Tensor, Tensor]] = []
        weight = self.output.weight if taken is not None else None
        rows = _chunk_rows(len(labels), logits.shape[-1] if weight is None else len(weight))
        for start in range(0, len(labels), rows):
            here = slice(start, start + rows)
            chunk = logits[here] if taken is None else self.output(taken[here])
            found.append(_scored(chunk, labels[here]))
        nats, best = (torch.cat(each) for each in zip(*found, strict=True))
        return Scores(places, labels, nats, best)

    def _forward(self, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The places that were looked at, their labels, and their logits, or if fused the states that make them."""
        labels = batch["labels"].flatten()
        if self.shortcuts.on_targets:
            places = self._kept = batch["targets"]
            labels = labels[places]
            if self._layer is not None:
                self._layer.begin(places, batch["labels"].shape)
        else:
            places = torch.arange(len(labels), device=labels.device)
        self._active = True
        try:
            logits = model(**self.inputs(batch)).logits
            taken, self._taken = self._taken, None
        finally:
            self._kept, self._taken, self._active = None, None, False
            if self._layer is not None:
                self._layer.end()
        return places, labels, logits.flatten(0, -2), None if taken is None else taken.flatten(0, -2)

    def _keep_targets(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Leaves only the hidden states at targets, as one row: [1, targets, width]."""
        if self._kept is None or self.has_cut():
            return output
        kept = output[0].flatten(0, 1)[self._kept][None]
        if isinstance(output, tuple):
            return (kept, *output[1:])
        output.last_hidden_state = kept
        return output

    def _take(self, module: nn.Module, inputs: Any) -> Any:
        """Takes what the output embedding should have seen, and has it see one position."""
        if not self._active:
            return None
        self._taken = inputs[0]
        return (inputs[0][:, :1], *inputs[1:])


class FusedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T + bias` summed over labels; the gradient is made while the logits are there.

    The same three matrix products as the plain way; what it saves are logits and their gradient in memory, and the
    passes over them. As Liger-Kernel's fused linear cross-entropy does (Hsu et al. 2024), in plain PyTorch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        learns: bool,
        z_loss: float = 0.0,
    ) -> Tensor:
        """hidden [n, width], weight [vocabulary, width], bias [vocabulary], labels [n] int64; the sum, [].

        `learns` says whether gradients are recorded: in here they never are.
        """
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden, dtype=dtype) if learns else None
        weight_gradient: Tensor | None = None
        bias_gradient: Tensor | None = None
        rows = _chunk_rows(len(labels), len(weight))
        room = torch.empty(rows, len(weight), dtype=dtype, device=hidden.device)
        with torch.autocast(kind, enabled=False):
            states, matrix = hidden.to(dtype), weight.to(dtype)
            for start in range(0, len(labels), rows):
                chunk, wanted = states[start : start + rows], labels[start : start + rows, None]
                counted = wanted != IGNORED
                place = wanted.clamp(min=0)
                logits = _logits(chunk, matrix, bias, out=room[: len(chunk)])
                right = logits.gather(1, place).float() if z_loss else 0
                numbers = type(logits) is Tensor  # and not shapes alone, of which nothing can be asked
                if numbers and kind == "cpu" and dtype == torch.float32:
                    slopes = torch.softmax(logits, -1, out=logits)  # fewer passes over memory than by way of logs
                    nats = -slopes.gather(1, place).log()
                    if (far := nats[:, 0] > CERTAIN_NATS).any():  # its probability is hardly a number any more
                        again = _logits(chunk[far], matrix, bias)
                        nats[far] = nn.functional.cross_entropy(again, place[far, 0], reduction="none")[:, None]
                else:
                    logs = torch.log_softmax(logits, -1, dtype=torch.float32)
                    nats, slopes = -logs.gather(1, place), logs.exp_()
                total += torch.where(counted, nats, 0).sum()
                if hidden_gradient is None:
                    continue
                if z_loss:
                    slopes *= 1 + 2 * z_loss * (nats + right)
                slopes.scatter_add_(1, place, torch.full_like(place, -1, dtype=torch.float32))
                if bias is not None:
                    bias_gradient = _added(bias_gradient, (counted.to(slopes.dtype).T @ slopes)[0])
                slopes = slopes.to(dtype)
                # What does not count is left out of the small factor of each product, not of the slopes.
                torch.mm(slopes, matrix, out=hidden_gradient[start : start + rows]).mul_(counted)
                chunk = chunk * counted
                if weight_gradient is not None and dtype == torch.float32:
                    weight_gradient.addmm_(slopes.T, chunk)
                else:
                    weight_gradient = _added(weight_gradient, (slopes.T @ chunk).float())
        ctx.gradients = (hidden_gradient, weight_gradient, bias_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.gradients
        ctx.gradients = None  # used once, like every graph here
        scaled = [None if gradient is None else gradient.mul_(scale) for gradient in (hidden, weight, bias)]
        return (*scaled, None, None, None)


fused_cross_entropy: Callable[[Tensor, Tensor, Tensor | None, Tensor, bool, float], Tensor] = FusedCrossEntropy.apply


def _logits(states: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    logits = torch.mm(states, matrix.T, out=out)
    return logits if bias is None else logits.add_(bias)


def _chunk_rows(count: int, vocabulary: int) -> int:
    """Rows of a chunk of logits, of so many in all.

    Chunks are of equal size: a small rest would cost nearly as much, as the gradient of all words is added to.
    """
    fitting = max(CHUNK_ROWS, CHUNK_NUMBERS // vocabulary)
    return -(-count // max(1, round(count / fitting)))


def _scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`nats` and `best` of Scores from logits [n, vocabulary] and labels [n]."""
    nats = nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    return nats, logits.topk(min(BEST, logits.shape[1])).indices


def _plain(weight: Tensor) -> Tensor:
    """A weight as a plain tensor: with tensor parallelism it is one of the group's, and whole on each process."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)
