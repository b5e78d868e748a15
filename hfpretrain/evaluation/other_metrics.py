"""Any metric of the evaluate library, by name, fed with the likeliest and the right token of each target."""

import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hfpretrain.errors import RecipeError
from hfpretrain.files import cache_folder
from hfpretrain.hub import first_line
from hfpretrain.modeling.loss import Scores
from hfpretrain.modeling.objective import IGNORED
from hfpretrain.place import Place

log = logging.getLogger(__name__)

MOST_TARGETS = 1_000_000
"""A metric has all of them in memory at once, as Python numbers when it computes: about 100 bytes a target."""
TRIED = [1, 2, 3, 2], [1, 2, 2, 3]
"""Predictions and references that a metric is tried with before training."""


class OtherMetrics:
    """Metrics of the evaluate library, each under its own name; RecipeError where one is of no use here.

    They are kept in memory, so that processes share no file, and all compute the same of what all have found.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.metrics: dict[str, Any] = {}
        self.found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for name in names:
            key = Path(name).stem
            if key in self.metrics:
                raise RecipeError(f"evaluation.metrics: two metrics are called {key}", hint="name each one once")
            self.metrics[key] = _loaded(name)

    def take(self, first_block: int, scores: Scores, block_size: int) -> None:
        """Keeps the likeliest and the right token of each target, of the blocks that are not beyond the limit."""
        if not self.metrics or first_block * block_size >= MOST_TARGETS:
            return
        blocks = first_block + scores.places // block_size
        kept = (scores.labels != IGNORED) & (blocks < MOST_TARGETS // block_size)
        pair = torch.stack([scores.best[kept, 0], scores.labels[kept]]).to(torch.int32).cpu()
        self.found.append((first_block, pair[0], pair[1]))

    def compute(self, accelerator: Accelerator, place: Place) -> dict[str, float]:
        """What each came to, as metric.value; nothing where there was no target.

        RecipeError where one fails, on all processes alike.
        """
        if not self.metrics:
            return {}
        own, self.found = [] if place.member else self.found, []
        everything = sorted(gather_object(own) if accelerator.num_processes > 1 else own, key=lambda each: each[0])
        predictions, references = (
            torch.cat([each[number] for each in everything] or [torch.zeros(0)]).tolist() for number in (1, 2)
        )
        if not references:
            return {}
        computed = {key: _computed(key, metric, predictions, references) for key, metric in self.metrics.items()}
        return {f"{key}.{name}": value for key, values in computed.items() for name, value in values.items()}


def _loaded(name: str) -> Any:
    """The metric, tried on some tokens. RecipeError in a sentence, before anything is trained."""
    library = importlib.import_module("evaluate")
    try:
        metric = library.load(name, keep_in_memory=True, cache_dir=str(cache_folder() / "evaluate"))
    except Exception as error:
        hint = "give the path of its script, or its name on the Hub, and install what it needs"
        raise RecipeError(f"evaluation.metrics: {name} cannot be loaded ({_reason(error)})", hint=hint) from error
    features = metric.features if isinstance(metric.features, list) else [metric.features]
    if not any(set(each) == {"predictions", "references"} for each in features):
        wanted = " and ".join(features[0])
        raise RecipeError(f"evaluation.metrics: {name} wants {wanted}, and gets predictions and references")
    if not _computed(name, metric, *TRIED):
        raise RecipeError(f"evaluation.metrics: {name} gives no numbers")
    return metric


def _computed(name: str, metric: Any, predictions: list[int], references: list[int]) -> dict[str, float]:
    """The numbers that the metric gives."""
    try:
        found = metric.compute(predictions=predictions, references=references)
    except Exception as error:
        said = f"evaluation.metrics: {name} cannot be computed of token ids ({_reason(error)})"
        raise RecipeError(said, hint="leave it out, or write a metric that takes them") from error
    values = found if isinstance(found, dict) else {}
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    return {key: float(value) for key, value in plain.items() if isinstance(value, int | float)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
