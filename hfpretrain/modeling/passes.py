"""What forward and backward passes on a CPU run in to be faster."""

from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from hfpretrain.modeling import dropout
from hfpretrain.modeling.elementwise import faster_norms, faster_rotations
from hfpretrain.modeling.loss import Shortcuts


class Replaced(AbstractContextManager[None]):
    """Inside a with statement, modules and classes have other attributes: (whose, its name, what stands in for it).

    A backward pass belongs inside as its forward pass does: layers that keep no activations run again in it.
    """

    def __init__(self, attributes: list[tuple[Any, str, Any]]) -> None:
        self.attributes = attributes
        self._own: list[list[Any]] = []

    def __enter__(self) -> None:
        self._own.append([getattr(owner, name) for owner, name, _ in self.attributes])
        for owner, name, other in self.attributes:
            setattr(owner, name, other)

    def __exit__(self, *_: object) -> None:
        for (owner, name, _), own in zip(self.attributes, self._own.pop(), strict=True):
            setattr(owner, name, own)


def faster_passes(model: PreTrainedModel, shortcuts: Shortcuts) -> Replaced:
    """What stands in for the model's dropout, norms and rotations, as far as that is proven."""
    drops = dropout.faster_dropout() if shortcuts.dropout else []
    norms = faster_norms(model) if shortcuts.norms else []
    rotations = faster_rotations(model) if shortcuts.rotations else []
    return Replaced(drops + norms + rotations)


def nothing_dropped() -> Replaced:
    """Inside, our dropout happens to keep everything."""
    return Replaced([(dropout, "kept_or_dropped", dropout.keep_all)])
