"""Run in several processes: one step of each architecture by DeepSpeed's ZeRO, against the same step of a whole model.

Prints for each the differences of the loss, of the gradients, relative to the largest, and of the weights afterwards.
"""

import json
import sys
from typing import Any

from architectures import ARCHITECTURES, CAUSAL, MASKED, recipe_for, tokenizer_for
from sharded_architectures import ROWS, Tensors, apart, rows, stepped

from hfpretrain.hardware import Precision
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.recipe import Parallel
from hfpretrain.training.optimizer import build_optimizers
from hfpretrain.training.session import open_accelerator
from hfpretrain.training.zero import fitting, open_zero

WAYS: tuple[tuple[int, Precision], ...] = ((1, "fp32"), (2, "fp32"), (3, "fp32"), (3, "bf16"))


def stepped_by_zero(
    name: str, objective: Any, accelerator: Any, stage: int, precision: Precision
) -> tuple[float, Tensors, Tensors]:
    """As `stepped`; the gradients are what AdamW's first moments are after one step."""
    recipe = recipe_for(name, objective, (MASKED if objective == "mlm" else CAUSAL)[name])
    model = build_model(recipe, tokenizer_for(objective)).eval()
    how = prove_document_masking(model, objective)
    shortcuts = prove_shortcuts(model, how, on_targets=objective == "mlm")
    parallel = Parallel(strategy="deepspeed", zero_stage=stage)
    loss = Loss(model, how, fitting(shortcuts, model, parallel))
    (optimizer,) = build_optimizers(model, recipe.optimizer, lr=1e-3)
    zero = open_zero(model, loss, optimizer, accelerator.device, parallel, precision)
    each = ROWS // accelerator.num_processes
    total = loss(zero.engine, rows(objective, each * accelerator.process_index, each))
    zero.engine.backward(total * accelerator.num_processes)
    zero.optimizer.step()
    total = accelerator.reduce(total.detach(), reduction="sum")
    moments = {key: zero.whole(key, "exp_avg") for key in zero.shares}
    factor = 1 - recipe.optimizer.betas[0]
    gradients = {key: moment / factor for key, moment in moments.items() if moment is not None}
    return total.item(), gradients, zero.weights()


def main() -> None:
    accelerator = open_accelerator(recipe_for("llama", "clm"))
    for name, objective in ARCHITECTURES:
        plain, slopes, weights = stepped(name, objective, accelerator, None)
        largest = max(float(each.abs().max()) for each in slopes.values())
        for stage, precision in WAYS:
            total, own_slopes, own_weights = stepped_by_zero(name, objective, accelerator, stage, precision)
            if accelerator.is_main_process:
                off = [abs(total - plain) / plain, apart(slopes, own_slopes) / largest, apart(weights, own_weights)]
                sys.stdout.write(json.dumps([name, stage, precision, *off]) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    main()
