"""Run in several processes: a step of each architecture, cut among pairs, against the same step of a whole model.

Prints for each the largest of the differences of the loss, of the gradients, relative to the largest of each weight, of
the gradient's norm and of the weights afterwards; and that of loss and norm in bfloat16.
"""

import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from architectures import recipe_for, tokenizer_for
from sharded_architectures import Tensors, apart, rows

from hfpretrain.hardware import Precision
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.place import Place
from hfpretrain.recipe import Optimizer, Parallel
from hfpretrain.training.optimizer import build_optimizers
from hfpretrain.training.session import open_accelerator
from hfpretrain.training.sharding import (
    backward,
    gradients_kept,
    load_optimizers,
    save_optimizers,
    shard,
    whole,
    whole_weights,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}


PLANNED: list[tuple[str, Literal["clm", "mlm"], dict[str, Any]]] = [
    ("llama", "clm", GROUPED),
    ("qwen3", "clm", GROUPED),  # norms of each head's queries and keys
    ("gpt_neox", "clm", SIZES),  # biases
    ("olmo2", "clm", SIZES),  # norms over all heads
    ("gemma3_text", "clm", GROUPED | {"tie_word_embeddings": True}),
    ("mixtral", "clm", GROUPED),  # experts, whose two matrices are one
    ("eurobert", "mlm", GROUPED),
]
ROWS = 4


def stepped(
    name: str,
    objective: Any,
    config: dict[str, Any],
    accelerator: Any,
    optimizer: Literal["adamw", "muon"],
    settings: Parallel | None,
    precision: Precision = "fp32",
) -> tuple[float, float, Tensors, Tensors]:
    """The summed loss, the norm of its gradient, this, and the weights after a step: whole on the first process."""
    model = build_model(recipe_for(name, objective, config), tokenizer_for(objective)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms of ones, and biases of nothing, would hide what is left out of them
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    how = prove_document_masking(model, objective)
    loss = Loss(model, how, prove_shortcuts(model, how, on_targets=objective == "mlm"))
    place = Place.in_run(accelerator, settings) if settings else Place()
    if settings:
        shard(model, accelerator, settings, precision)
        assert is_sharded(model)
    optimizers = build_optimizers(model, Optimizer(name=optimizer, weight_decay=0.1, eps=1e-2), lr=1e-3)
    each = ROWS // place.of
    total = torch.zeros(())
    for number in range(each):  # accumulated
        part = loss(model, rows(objective, each * place.number + number, 1))
        with gradients_kept(model, accelerator) if settings and number < each - 1 else nullcontext():
            backward(model, accelerator, part * place.of)
        total += part.detach()
    if settings:
        total = accelerator.reduce(place.once(total), reduction="sum")
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)).item()
    gradients = {key: whole(each.grad).clone() for key, each in model.named_parameters() if each.grad is not None}
    for each_optimizer in optimizers:
        each_optimizer.step()
    if settings and name == "mixtral":
        assert comes_back(model, optimizers, accelerator)
    weights = whole_weights(model)
    return total.item(), norm, gradients, {**model.state_dict()} if weights is None else weights


def comes_back(model: Any, optimizers: list[Any], accelerator: Any) -> bool:
    """Whether the optimizers' state is the same after it was saved and read."""

    def state() -> list[torch.Tensor]:
        return [
            whole(value).clone()
            for optimizer in optimizers
            for states in optimizer.state.values()
            for _, value in sorted(states.items())
        ]

    folder: list[Any] = [tempfile.mkdtemp() if accelerator.is_main_process else None]
    torch.distributed.broadcast_object_list(folder)
    before = state()
    save_optimizers(Path(folder[0]), model, optimizers)
    for optimizer in optimizers:
        for states in optimizer.state.values():
            for value in states.values():
                value.mul_(0)
    load_optimizers(Path(folder[0]), model, optimizers)
    return all(torch.equal(one, other) for one, other in zip(before, state(), strict=True))


def main() -> None:
    strategy: Any = sys.argv[1]
    only = sys.argv[2:]
    settings = Parallel(strategy=strategy, tensor=2)
    accelerator = open_accelerator(recipe_for("llama", "clm"))
    for name, objective, config in PLANNED:
        if only and name not in only:
            continue
        off: list[float] = []
        optimizers: tuple[Literal["adamw", "muon"], ...] = ("muon", "adamw") if name == "llama" else ("adamw",)
        for optimizer in optimizers:
            made = stepped(name, objective, config, accelerator, optimizer, None)
            shared = stepped(name, objective, config, accelerator, optimizer, settings)
            if accelerator.is_main_process:
                loss, norm, slopes, weights = made
                other, other_norm, other_slopes, other_weights = shared
                worst = max(
                    float((other_slopes[key] - slopes[key]).abs().max() / slopes[key].abs().max()) for key in slopes
                )
                assert slopes.keys() == other_slopes.keys()
                off += [abs(other - loss) / loss, abs(other_norm - norm) / norm, worst, apart(weights, other_weights)]
        half = stepped(name, objective, config, accelerator, "adamw", settings, "bf16")
        if accelerator.is_main_process:
            rough = max(abs(half[0] - loss) / loss, abs(half[1] - norm) / norm)
            off = [max(off), rough]
            sys.stdout.write(json.dumps([name, *off]) + "\n")
            sys.stdout.flush()
    accelerator.end_training()


if __name__ == "__main__":
    main()
