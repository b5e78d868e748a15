"""Run in several processes: one step of each architecture, sharded, against the same step of a whole one.

Prints for each the differences of the loss, of the gradients, relative to the largest, and of the weights afterwards.
"""

import json
import sys
from typing import Any

import torch
from architectures import ARCHITECTURES, CAUSAL, MASKED, recipe_for, tokenizer_for

from hfpretrain.hardware import Precision
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import IGNORED, MicroBatch, target_places
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.recipe import Parallel
from hfpretrain.training.optimizer import build_optimizers
from hfpretrain.training.session import open_accelerator
from hfpretrain.training.sharding import shard, whole, whole_weights

ROWS, LENGTH = 4, 16
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def rows(objective: str, first: int, count: int) -> MicroBatch:
    """Some rows of a fixed batch, each of two documents."""
    ids = torch.randint(6, 100, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))[first : first + count]
    labels = ids.clone() if objective == "mlm" else ids.roll(-1, 1)
    labels[:, ::3] = IGNORED
    documents = (torch.arange(LENGTH) >= LENGTH // 2).long().expand(count, LENGTH).contiguous()
    return {"input_ids": ids, "labels": labels, "document_ids": documents, "targets": target_places(labels)}


Tensors = dict[str, torch.Tensor]


def stepped(name: str, objective: Any, accelerator: Any, sharded: Precision | None) -> tuple[float, Tensors, Tensors]:
    """The summed loss, its gradients, and the weights after a step of AdamW: whole on the first process."""
    config = (MASKED if objective == "mlm" else CAUSAL)[name]
    recipe = recipe_for(name, objective, config)
    model = build_model(recipe, tokenizer_for(objective)).eval()
    how = prove_document_masking(model, objective)
    loss = Loss(model, how, prove_shortcuts(model, how, on_targets=objective == "mlm"))
    each = ROWS
    if sharded:
        shard(model, accelerator, Parallel(strategy="fsdp"), sharded)
        assert is_sharded(model)
        each //= accelerator.num_processes
    optimizers = build_optimizers(model, recipe.optimizer, lr=1e-3)
    total = loss(model, rows(objective, each * accelerator.process_index if sharded else 0, each))
    # The processes' gradients are averaged.
    (total * (accelerator.num_processes if sharded else 1)).backward()  # type: ignore[no-untyped-call]
    if sharded:
        total = accelerator.reduce(total.detach(), reduction="sum")
    gradients = {key: whole(each.grad).clone() for key, each in model.named_parameters() if each.grad is not None}
    for optimizer in optimizers:
        optimizer.step()
    weights = whole_weights(model)
    return total.item(), gradients, {**model.state_dict()} if weights is None else weights


def apart(one: Tensors, other: Tensors) -> float:
    """The largest difference of two numbers."""
    assert one.keys() == other.keys()
    return max(float((other[key] - one[key]).abs().max()) for key in one)


def main() -> None:
    accelerator = open_accelerator(recipe_for("llama", "clm"))
    for name, objective in ARCHITECTURES:
        plain, slopes, weights = stepped(name, objective, accelerator, None)
        for precision in PRECISIONS:
            shared, own_slopes, own_weights = stepped(name, objective, accelerator, precision)
            if accelerator.is_main_process:
                largest = max(float(each.abs().max()) for each in slopes.values())
                off = [abs(shared - plain) / plain, apart(slopes, own_slopes) / largest, apart(weights, own_weights)]
                sys.stdout.write(json.dumps([name, precision, *off]) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    main()
