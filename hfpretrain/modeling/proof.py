"""Which shortcuts hold for a model: those that give the loss and the gradients of the plain way on a tiny batch."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfpretrain.modeling.attention import DocumentMasking, proof_batch, undisturbed
from hfpretrain.modeling.dropout import drops
from hfpretrain.modeling.elementwise import faster_norms, faster_rotations
from hfpretrain.modeling.last_layer import has_last_layer
from hfpretrain.modeling.loss import Loss, Shortcuts
from hfpretrain.modeling.objective import IGNORED, MicroBatch, target_places
from hfpretrain.modeling.passes import faster_passes, nothing_dropped

LARGE_LOGIT = 40.0

Outcome = tuple[float, list[Tensor | None]]
"""A loss, and its gradient for each parameter that is trained; None where it does not depend on one."""


def prove_shortcuts(
    model: PreTrainedModel,
    how: DocumentMasking | None,
    *,
    on_targets: bool,
    z_loss: float = 0.0,
    elementwise: bool = False,
) -> Shortcuts:
    """The shortcuts that give the loss and the gradients of the plain way, seen on two rows of random tokens.

    `on_targets` and `elementwise` say whether these are worth it: whether many positions are no targets, and whether
    the model trains on a CPU, without a compiler. The model is left as it was.
    """
    batch = proof_batch(model)
    if batch is None:
        return Shortcuts()
    documents, input_ids = batch
    labels = input_ids.roll(1, 1)
    labels[:, ::3] = IGNORED
    if len(places := target_places(labels)) % 2 == 0:  # some feed-forward parts want to divide the positions they get
        labels.view(-1)[places[0]] = IGNORED
    micro_batch = {"input_ids": input_ids, "labels": labels, "document_ids": documents}
    micro_batch["targets"] = target_places(labels)
    wanted = [Shortcuts(fused=True)]
    if on_targets:
        ways = [(last_layer, fused) for fused in (True, False) for last_layer in (True, False)]
        wanted = [Shortcuts(True, fused, last_layer) for last_layer, fused in ways] + wanted
    with undisturbed(model), torch.enable_grad(), _large_logits(model, input_ids):
        plain = _loss_and_gradients(model, Loss(model, how, z_loss=z_loss), micro_batch)

        def holds(shortcuts: Shortcuts) -> bool:
            return _fits(model, shortcuts) and _same(
                plain, _tried(model, how, shortcuts, micro_batch, z_loss), len(micro_batch["targets"])
            )

        found = next((shortcuts for shortcuts in wanted if holds(shortcuts)), Shortcuts())
        if elementwise:
            norms, rotations = bool(faster_norms(model)), bool(faster_rotations(model))
            ways = [(norms, rotations), (norms, False), (False, rotations)]
            more = [replace(found, norms=one, rotations=other) for one, other in dict.fromkeys(ways) if one or other]
            found = next((shortcuts for shortcuts in more if holds(shortcuts)), found)
            if drops(model) and holds(replace(found, dropout=True)):
                found = replace(found, dropout=True)
    return found


@contextmanager
def _large_logits(model: PreTrainedModel, input_ids: Tensor) -> Iterator[None]:
    """Makes logits as large as those of a trained model while the proof goes on.

    A cap on logits, as Gemma's, does next to nothing to those of a new model. The factor is a power of two, so that
    taking it back gives the very weights.
    """
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        yield
        return
    with torch.no_grad():
        largest = float(model(input_ids=input_ids).logits.abs().max())
    factor = 2.0 ** round(math.log2(LARGE_LOGIT / largest)) if 0 < largest < LARGE_LOGIT else 1.0
    with torch.no_grad():
        weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.mul_(1 / factor)


def _fits(model: PreTrainedModel, shortcuts: Shortcuts) -> bool:
    """Whether the model has the parts that hooks are hung on."""
    output = model.get_output_embeddings()
    return (
        (not shortcuts.on_targets or model.base_model is not model)
        and (not shortcuts.last_layer or has_last_layer(model))
        and (not shortcuts.fused or isinstance(getattr(output, "weight", None), Tensor))
    )


def _tried(
    model: PreTrainedModel, how: DocumentMasking | None, shortcuts: Shortcuts, batch: MicroBatch, z_loss: float
) -> Outcome | None:
    try:
        model.train(shortcuts.dropout)
        with nothing_dropped(), faster_passes(model, shortcuts), closing(Loss(model, how, shortcuts, z_loss)) as loss:
            outcome = _loss_and_gradients(model, loss, batch)
            return outcome if loss.has_cut() == shortcuts.last_layer else None
    except Exception:
        return None  # the model is built in another way
    finally:
        model.eval()


def _loss_and_gradients(model: PreTrainedModel, loss: Loss, batch: MicroBatch) -> Outcome:
    total = loss(model, batch)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return total.item(), list(torch.autograd.grad(total, learnt, allow_unused=True))


def _same(plain: Outcome, other: Outcome | None, targets: int) -> bool:
    """Equal up to rounding: losses to 1e-5 of their size, gradients to 1e-4 of the largest of each tensor.

    A loss is a difference of logits as large as LARGE_LOGIT, which are known to some 1e-6.
    """
    if other is None or not abs(plain[0] - other[0]) <= 1e-5 * abs(plain[0]) + 1e-6 * targets:
        return False
    largest = max((float(gradient.abs().max()) for gradient in plain[1] if gradient is not None), default=0.0)
    for one, two in zip(plain[1], other[1], strict=True):
        if one is None or two is None:
            if any(float(gradient.abs().max()) > 0 for gradient in (one, two) if gradient is not None):
                return False
            continue
        bound = 1e-4 * float(one.abs().max()) + 1e-6 * largest
        if not float((one - two).abs().max()) <= bound:
            return False
    return True
