"""A recipe for a run that starts from another run: what it says of model and tokenizer has to be what that one has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hfpretrain.amounts import parameters_of
from hfpretrain.errors import RecipeError
from hfpretrain.recipe_loading import Draft
from hfpretrain.recipe_types import shown

_OF_TRAINED = ("algorithm", "vocab_size", "lowercase")


@dataclass(frozen=True)
class Base:
    """A run, or a checkpoint of one, that another run starts from. What is not known of it is not compared."""

    place: str
    """The folder of its weights, for model.from."""
    name: str
    """What errors call it."""
    with_optimizer: bool = False
    """Start with the state of its optimizer, too."""
    objective: str | None = None
    architecture: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """What its configuration says, under every name that a recipe may use."""
    size: str | int | None = None
    """The `model.size` that it was made with; None if there was none."""
    tokenizer: dict[str, Any] | None = None
    """How its tokenizer was trained; empty if it was an existing one."""

    def settle(self, draft: Draft) -> None:
        """Notes what contradicts this run, and has model and tokenizer come from it."""
        objective = draft.values.get("objective")
        if self.objective and objective in ("clm", "mlm") and objective != self.objective:
            draft.wrong(("objective",), f"is {objective}, and {self.name} was trained with {self.objective}")
        model, tokenizer = draft.values.get("model") or {}, draft.values.get("tokenizer") or {}
        if not isinstance(model, dict) or not isinstance(tokenizer, dict):
            return  # which is an error of its own
        self._compare_model(draft, model)
        self._compare_tokenizer(draft, tokenizer)
        unknown = {key: value for key, value in model.items() if key not in ("architecture", "size", "config", "from")}
        draft.values["model"] = unknown | {"from": self.place}
        draft.values["tokenizer"] = {key: value for key, value in tokenizer.items() if key not in _OF_TRAINED}
        optimizer = draft.values.get("optimizer") or {}
        if self.with_optimizer and isinstance(optimizer, dict):
            draft.values["optimizer"] = optimizer | {"from_checkpoint": True}

    def _compare_model(self, draft: Draft, model: dict[str, Any]) -> None:
        other = model.get("from")
        if other is not None and other != self.place:
            draft.wrong(("model", "from"), f"and --from-run exclude each other: the weights are those of {self.name}")
        architecture, size, config = (model.get(key) for key in ("architecture", "size", "config"))
        if self.architecture is None:
            return
        if architecture is not None and architecture != self.architecture:
            message = f"is {shown(architecture)}, and {self.name} is a {self.architecture}"
            draft.wrong(("model", "architecture"), message)
            return
        if size is not None and not _same_size(size, self.size):
            had = "none" if self.size is None else shown(self.size)
            draft.wrong(("model", "size"), f"is {shown(size)}, and that of {self.name} was {had}")
        for key, value in config.items() if isinstance(config, dict) else ():
            if key not in self.config or self.config[key] != value:
                has = f"has {shown(self.config[key])}" if key in self.config else "has no such key"
                draft.wrong(("model", "config", str(key)), f"is {shown(value)}, and {self.name} {has}")

    def _compare_tokenizer(self, draft: Draft, tokenizer: dict[str, Any]) -> None:
        if self.tokenizer is None:
            return
        for key in _OF_TRAINED:
            value = tokenizer.get(key)
            if value is not None and value != self.tokenizer.get(key):
                has = shown(self.tokenizer[key]) if key in self.tokenizer else "a tokenizer that it did not train"
                draft.wrong(("tokenizer", key), f"is {shown(value)}, and {self.name} has {has}")


def _same_size(one: Any, other: Any) -> bool:
    """Whether two values of model.size say as many parameters: 15M, 15000k, 15000000."""
    try:
        return parameters_of(one) == parameters_of(other)
    except RecipeError:
        return False
