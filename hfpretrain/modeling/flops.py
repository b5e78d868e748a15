"""Floating point operations of a training step, counted from what the model really multiplies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.objective import MicroBatch

log = logging.getLogger(__name__)


@torch.no_grad()
def flops_per_token(model: PreTrainedModel, loss: Loss, batch: MicroBatch, *, numbers: bool = True) -> float:
    """Operations per token of forward and backward: three times those of a forward of `batch`, counted by PyTorch.

    Matrix products only, two for each multiplication and addition, attention in full squares: what is called 6N plus
    attention, with the head where it runs (of masked language modeling on the targets, if that is proven). A model
    that the counter cannot follow is taken for one whose every weight but the embeddings multiplies every token.
    Without `numbers` nothing is computed, where that goes: the model may be large, and not on its device yet.
    """
    if not numbers:
        with suppress(Exception), _unheard(), FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(model, loss, batch)
    try:
        return _counted(model, loss, batch)
    except Exception:
        log.debug("the counter cannot follow the model", exc_info=True)
        return estimated_flops_per_token(model, block_size=batch["input_ids"].shape[1])


def _counted(model: PreTrainedModel, loss: Loss, batch: MicroBatch) -> float:
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # its products are counted
            loss(model, batch)
    finally:
        model.train(training)
    operations: int = counter.get_total_flops()
    return 3 * operations / batch["input_ids"].numel()


@contextmanager
def _unheard() -> Iterator[None]:
    """torch logs a trace of what cannot be followed without numbers."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def estimated_flops_per_token(model: PreTrainedModel, *, block_size: int) -> float:
    """6 for each weight of a matrix product, the head among them, and what attention takes."""
    tables = {id(each.weight): each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        tables.pop(id(output.weight), None)
    weights: int = sum(parameter.numel() for parameter in model.parameters()) - sum(tables.values())
    return 6 * weights + attention_flops_per_token(model, block_size=block_size)


def attention_flops_per_token(model: PreTrainedModel, *, block_size: int) -> float:
    """12 per layer, unit and position: the products of queries with keys and of these with values, in full squares."""
    config = model.config.get_text_config()
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    if head_dim := getattr(config, "head_dim", None):
        width = head_dim * getattr(config, "num_attention_heads", 0)
    return float(12 * layers * width * block_size)
