"""Floating point operations of a training step, counted from what the model really multiplies."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.objective import MicroBatch


@torch.no_grad()
def flops_per_token(model: torch.nn.Module, loss: Loss, batch: MicroBatch) -> float:
    """Operations per token of forward and backward: three times those of a forward of `batch`, counted by PyTorch.

    Matrix products only, two for each multiplication and addition, attention in full squares: what is called 6N plus
    attention, with the head where it runs (of masked language modeling on the targets, if that is proven).
    """
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # its products are counted
            loss(model, batch)
    finally:
        model.train(training)
    operations: int = counter.get_total_flops()
    return 3 * operations / batch["input_ids"].numel()
