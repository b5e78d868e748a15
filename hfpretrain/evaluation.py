"""Evaluation: the loss over held-out blocks, every target once, with masks that never change."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hfpretrain.data.batches import Batches, open_batches
from hfpretrain.data.formats import TEXT, kind_of
from hfpretrain.errors import RunError
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.objective import IGNORED, Collator
from hfpretrain.recipe import Source, from_mapping
from hfpretrain.recipe import load as load_recipe
from hfpretrain.recipe_stages import training_sources


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to. `loss` is in nats per target."""

    loss: float
    accuracy: float
    targets: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def as_dict(self) -> dict[str, Any]:
        return {
            "validation_loss": self.loss,
            "validation_perplexity": self.perplexity,
            "validation_accuracy": self.accuracy,
            "validation_targets": self.targets,
        }


ONLY_FILES: dict[str, Any] = dict.fromkeys(
    ("builtin", "size", "tokens", "dtype", "hub", "subset", "commit", "weight", "min_chars", "max_chars", "drop_list")
) | {"deduplicate": False, "repeat": True, "streaming": False}
"""What a source has to lose to name other files, all of which count."""


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    loss: Loss,
    batches: Batches,
    collator: Collator,
    accelerator: Accelerator,
    *,
    micro_batch_size: int,
    max_tokens: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluated | None:
    """The loss on the held-out blocks (the first `max_tokens` of them in a fixed seeded order).

    Processes take turns by micro-batch, whatever divides or not; the sums are added at the end. None where `stopped`
    said so on one of them, which it is asked before each micro-batch.
    """
    assert batches.validation is not None
    count = len(batches.validation)
    if max_tokens is not None:
        count = min(count, max(1, max_tokens // batches.validation.block_size))
    was_training = model.training
    model.eval()
    found: list[torch.Tensor] = []
    given_up = False
    rank, processes = accelerator.process_index, accelerator.num_processes
    for start in range(rank * micro_batch_size, count, processes * micro_batch_size):
        if given_up := stopped():
            break
        rows = batches.validation_rows(range(start, min(start + micro_batch_size, count)))
        batch = {name: tensor.to(accelerator.device) for name, tensor in collator(rows).items()}
        with accelerator.autocast():
            summed, hits = loss(model, batch)
        targets = (batch["labels"] != IGNORED).sum()
        found.append(torch.stack([summed.float(), hits.float(), targets.float()]))  # the device is not waited for
    model.train(was_training)
    sums = torch.stack(found).cpu().double().sum(0) if found else torch.zeros(3, dtype=torch.float64)
    sums = torch.cat([sums, torch.tensor([float(given_up)], dtype=torch.float64)])
    if processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
    total, right, targets, giving_up = sums.tolist()
    if giving_up:
        return None
    return Evaluated(total / max(targets, 1), right / max(targets, 1), int(targets))


def evaluate_model(name: str, data: str | None = None, *, micro_batch_size: int = 8) -> dict[str, Any]:
    """Evaluates a run, a model folder or a Hub id on a local file or folder, or a run on what it held out.

    For next-word models and a file, `bits_per_byte` compares models whatever their tokenizers.
    """
    from hfpretrain.inference import MaskedLM, load  # training does not need it

    file = Path(name) / "recipe.yaml"
    if data is None and not file.is_file():
        raise RunError(f"{name} is not a run, so it has no held-out data of its own", hint="name a file with --data")
    llm = load(name)
    if file.is_file():
        recipe = load_recipe(file)
    else:
        positions = getattr(llm.model.config.get_text_config(), "max_position_embeddings", None) or 512
        objective = "mlm" if isinstance(llm, MaskedLM) else "clm"
        mapping = {"sources": [{"files": data}], "block_size": min(positions, 512)}
        recipe = from_mapping({"objective": objective, "data": mapping})
    if data is not None:
        seen = training_sources(recipe.data)[0][1]  # its columns are what the model knows
        plain = kind_of(Path(data)) in TEXT
        sources = (Source(files=data) if plain or not file.is_file() else replace(seen, **ONLY_FILES, files=data),)
        recipe = replace(recipe, data=replace(recipe.data, sources=sources, stages=(), validation=sources))
    batches = open_batches(recipe, llm.tokenizer, training=False)
    if batches.validation is None:
        raise RunError(f"{name} held no data out", hint="name a file with --data")
    how = None if recipe.data.packing == "concat" else prove_document_masking(llm.model, recipe.objective)
    result = evaluate(
        llm.model,
        Loss(llm.model, how),
        batches,
        Collator(recipe, llm.tokenizer, isolated=how is not None),
        Accelerator(),
        micro_batch_size=micro_batch_size,
    )
    assert result is not None
    found: dict[str, Any] = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": result.accuracy,
        "targets": result.targets,
    }
    if data is not None and recipe.objective == "clm":
        text_bytes = sum(store.text_bytes for store in batches.validation.stream.stores)
        found["bits_per_byte"] = result.loss * result.targets / math.log(2) / text_bytes
    return found
