"""The last layer on targets: behind its attention, nobody looks at the other positions any more.

Queries, keys, values and attention need all positions; what follows in that layer (the output projection, the
feed-forward part, norms, dropout) works on each position by itself, so it runs on the positions that are targets. Hooks
do it, for any layer that is made of an attention and what comes behind; whether a model is, is proven like the rest.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfpretrain.modeling.parameters import layers_of

_BEHIND = ("output", "o_proj", "out_proj", "out_lin", "Wo", "dense", "c_proj")
"""What modules are called that an attention's result goes through."""


class LastLayer:
    """Hooks on a model's last layer, which do nothing but between `begin` and `end`. `close` takes them off.

    For a model that `has_last_layer`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._places: Tensor | None = None
        self._shape = torch.Size()
        self.done = False
        """Whether the layer has run in the latest pass and given the targets' states; it may be left out at random."""
        self._whole: Tensor | None = None
        self._cut: Tensor | None = None
        layers = layers_of(model.base_model)
        attention = _attention_of(layers[-1])
        assert attention is not None
        behind = next((child for name, child in attention.named_children() if name in _BEHIND), None)
        self._hooks = [layers[-1].register_forward_pre_hook(self._enter, with_kwargs=True)]
        self._hooks += [
            child.register_forward_pre_hook(self._give_whole, with_kwargs=True) for child in layers[-1].children()
        ]
        if behind is not None:
            self._hooks.append(behind.register_forward_pre_hook(self._leave_before, with_kwargs=True))
        else:
            self._hooks.append(attention.register_forward_hook(self._leave_after))

    def begin(self, places: Tensor, shape: torch.Size) -> None:
        """Before a pass: the targets' places in the flattened positions, int64 [targets], and the shape of those."""
        self._places, self._shape, self.done = places, shape, False

    def end(self) -> None:
        """After a pass, also one that failed."""
        self._places = self._whole = self._cut = None

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Lets the layer's own sums see targets only."""
        if self._places is None:
            return None
        states = next((each for each in (*inputs, *named.values()) if isinstance(each, Tensor)), None)
        if states is None or states.shape[:2] != self._shape:  # padded inside, say
            return None
        self._whole, self._cut = states, self._at_targets(states)
        return _replaced(inputs, named, self._whole, self._cut)

    def _give_whole(self, child: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Lets attention, and what comes before it, see all positions."""
        return None if self._cut is None else _replaced(inputs, named, self._cut, self._whole)

    def _leave_before(self, behind: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._whole is None:
            return None
        self._left()

        def cut(value: Any) -> Any:
            return self._at_targets(value) if isinstance(value, Tensor) and value.shape[:2] == self._shape else value

        return tuple(map(cut, inputs)), {name: cut(value) for name, value in named.items()}

    def _leave_after(self, attention: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self._whole is None:
            return None
        self._left()
        return (self._at_targets(output[0]), *output[1:]) if isinstance(output, tuple) else self._at_targets(output)

    def _left(self) -> None:
        self._whole = self._cut = None
        self.done = True

    def _at_targets(self, states: Tensor) -> Tensor:
        return states.flatten(0, 1)[self._places][None]


def has_last_layer(model: PreTrainedModel) -> bool:
    """Whether the model has layers, the last of them with an attention. One layer alone may run many times."""
    layers = layers_of(model.base_model)
    return len(layers) > 1 and _attention_of(layers[-1]) is not None


def _attention_of(layer: nn.Module) -> nn.Module | None:
    for name, child in layer.named_children():
        if "att" in name.lower() and "norm" not in type(child).__name__.lower():
            return child
    return None


def _replaced(inputs: tuple[Any, ...], named: dict[str, Any], old: Any, new: Any) -> Any:
    return tuple(new if each is old else each for each in inputs), {
        name: new if each is old else each for name, each in named.items()
    }
