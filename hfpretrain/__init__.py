"""Pre-train a language model from one YAML recipe on the Hugging Face stack.

    import hfpretrain
    run = hfpretrain.train(hfpretrain.load_recipe("recipe.yaml"))
    hfpretrain.load(run.path).predict_mask("The quick [MASK] fox jumps over the lazy dog.")

Names are imported when they are first used, so that `import hfpretrain` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfpretrain.inference import CausalLM, MaskedLM, Prediction, load
    from hfpretrain.publish import push
    from hfpretrain.recipe import Recipe
    from hfpretrain.recipe import load as load_recipe
    from hfpretrain.run import Run
    from hfpretrain.training.loop import train

__version__ = "0.1.0"

_HOMES = {
    "CausalLM": ("hfpretrain.inference", "CausalLM"),
    "MaskedLM": ("hfpretrain.inference", "MaskedLM"),
    "Prediction": ("hfpretrain.inference", "Prediction"),
    "Recipe": ("hfpretrain.recipe", "Recipe"),
    "Run": ("hfpretrain.run", "Run"),
    "load": ("hfpretrain.inference", "load"),
    "load_recipe": ("hfpretrain.recipe", "load"),
    "push": ("hfpretrain.publish", "push"),
    "train": ("hfpretrain.training.loop", "train"),
}

__all__ = ["CausalLM", "MaskedLM", "Prediction", "Recipe", "Run", "load", "load_recipe", "push", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'hfpretrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
