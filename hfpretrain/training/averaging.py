"""An average of the weights over the run, kept beside the model: of every step (EMA), or of the last checkpoints."""

import logging
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hfpretrain.errors import CheckpointError
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.recipe import Recipe
from hfpretrain.training.schedule import Plan
from hfpretrain.training.sharding import own_share, own_weights, settle, weights_written, whole_weights

log = logging.getLogger(__name__)

FILE = "average.safetensors"
"""In a checkpoint: the average so far, how many steps' weights it is of, and the first step that counts."""


@dataclass
class Average:
    """The average of a model's weights, in their own precision: float32.

    What a step adds follows from its number, so a run that goes on averages the same: an EMA as in `ema`, or the plain
    mean over the steps from `first` on after which a checkpoint is due, as many as averaging.last.
    """

    recipe: Recipe
    plan: Plan
    first: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    """By the parameters' names, of a sharded model this process's shares; empty before the first are added."""
    steps: int = 0
    """Whose weights were added."""

    @staticmethod
    def of(recipe: Recipe, plan: Plan) -> "Average | None":
        """What the recipe asks for, with nothing added yet."""
        settings, first = recipe.averaging, 0
        if settings.method == "none":
            return None
        if settings.method == "checkpoints":
            assert plan.steps is not None
            first = first_of_last(plan, recipe, settings.last)
        return Average(recipe, plan, first)

    @torch.no_grad()
    def add(self, model: nn.Module, step: int) -> None:
        """Adds the weights that the model has after so many steps, if they are to be."""
        settings = self.recipe.averaging
        if settings.method == "ema":
            added = 1 - min(settings.decay, (1 + step) / (10 + step))
        elif step >= self.first and due(self.plan, self.recipe, step):
            added = 1 / (self.steps + 1)
        else:
            return
        named = own_weights(model)
        if self.weights:
            torch._foreach_lerp_(list(self.weights.values()), [named[name] for name in self.weights], added)
        else:
            self.weights = {name: share.clone() for name, share in named.items()}
        self.steps += 1

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model has the average as its weights meanwhile."""
        named = own_weights(model)
        own = {name: named[name].clone() for name in self.weights}
        with torch.no_grad():
            for name, tensor in self.weights.items():
                named[name].copy_(tensor)
        weights_written(model)
        try:
            yield
        finally:
            settle(model)
            with torch.no_grad():
                for name, tensor in own.items():
                    named[name].copy_(tensor)
            weights_written(model)

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        """The average by the parameters' names; of a sharded model all of its state with the average in it, on the
        first process alone, and all have to ask."""
        if not is_sharded(model):
            return self.weights
        with self.in_place(model):
            return whole_weights(model) or {}

    def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes FILE into a checkpoint, with the whole weights of the average."""
        tensors = {name: weights[name].contiguous() for name in self.weights}
        save_file(tensors, folder / FILE, {"steps": str(self.steps), "first": str(self.first)})

    def load(self, folder: Path, model: nn.Module) -> None:
        """Reads what `save` wrote; CheckpointError where a checkpoint has none."""
        file = folder / FILE
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no {FILE}, the average of the weights so far")
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
            if int(told["first"]) != self.first and int(told["steps"]):
                log.warning("other checkpoints are the last ones now: their average begins anew")
                return
            self.weights = {
                name: own_share(model, name, opened.get_tensor(name))
                for name in opened.keys()  # noqa: SIM118 - no mapping
            }
            self.steps = int(told["steps"])


def due(plan: Plan, recipe: Recipe, step: int) -> bool:
    """Whether a checkpoint is due after a step of a run whose length is known in steps."""
    return step == plan.steps or plan.due(recipe.checkpoints.every, step, 0, 0)


def first_of_last(plan: Plan, recipe: Recipe, last: int) -> int:
    """The step after which the first of the `last` due checkpoints of a run is; of fewer the very first."""
    assert plan.steps is not None
    first = plan.steps
    for _ in range(last - 1):
        wanted = plan.passed(recipe.checkpoints.every, first - 1)
        if not wanted:
            break
        first = bisect_left(range(first), wanted, key=lambda step: plan.passed(recipe.checkpoints.every, step) or 0)
    return first
