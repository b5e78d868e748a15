"""The network of a recipe: built from scratch for its tokenizer, or loaded from existing weights.

Transformers accepts much in silence: a configuration key that nobody reads, ids beyond the vocabulary, a block
longer than the position table, a "causal" model that sees later words. Here each of these is settled or said.
"""

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain.errors import HFPretrainError, ModelError
from hfpretrain.hub import explain, locate, quiet
from hfpretrain.modeling.architecture import MODEL_NAMES, TOKEN_IDS, WORDS, Objective, build_error, sentence
from hfpretrain.modeling.configuration import AUTO_MODEL, new_config, outline_of, rows_before_positions, token_count
from hfpretrain.modeling.parameters import count_parameters as count_parameters
from hfpretrain.recipe import Recipe
from hfpretrain.recipe_stages import longest_block

log = logging.getLogger(__name__)

_SMALLER = "make it smaller under model.config: keys that are left out have the architecture's own sizes"


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of a recipe on the CPU in float32, in training mode, ready for the tokenizer and the block size.

    From scratch, the weights follow from `recipe.seed` alone; torch's global generator is left as it was. Raises
    ModelError, naming the key, where the recipe cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        build = _from_scratch if recipe.model.from_ is None else _continue
        model = build(recipe, tokenizer)
        _try_out(model, recipe)
    return model.train()


def outline_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """What `build_model` builds, without numbers: its sizes can be counted before there is memory for it."""
    name = recipe.model.from_
    if name is None:
        config = new_config(recipe, tokenizer, say=False)
    else:
        config = _load_config(locate(name, kind="model"), name)
        _check_objective(config, name, recipe.objective)
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, token_count(tokenizer))
    try:
        with quiet():
            return outline_of(config, recipe.objective)
    except Exception as error:
        raise ModelError(f"{name or recipe.model.architecture} cannot be built: {sentence(error)}") from error


def load_model(name: str, objective: Objective, **kwargs: Any) -> PreTrainedModel:
    """Existing weights as a model of the objective, in float32 on the CPU: a folder, a run, or org/name on the Hub.

    Only safetensors are read and no code from the repository is run. `kwargs` go to `from_pretrained`. A tensor
    that the weights lack is initialised and said. Raises ModelError where the name, the weights or the objective
    does not fit.
    """
    place = locate(name, kind="model")
    config = _load_config(place, name)
    _check_objective(config, name, objective)
    try:
        with quiet():
            _check_memory(outline_of(config, objective), hint="take a smaller model, or check its config.json")
            model, loading = AUTO_MODEL[objective].from_pretrained(
                place,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below, in one sentence
                **{"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False, **kwargs},
            )
    except HFPretrainError:
        raise
    except Exception as error:
        if Path(place).is_dir() and not any(Path(place).glob("*.safetensors")):
            raise ModelError(
                f"{name} holds no weights: there is no .safetensors file in it",
                hint="give the folder of a finished run or of a saved model",
            ) from error
        if Path(place).is_dir():
            raise ModelError(f"the weights of {name} cannot be loaded: {sentence(error)}") from error
        raise explain(error, name, kind="model") from error
    if mismatched := sorted(key for key, *_ in loading["mismatched_keys"]):
        raise ModelError(f"the weights of {name} have other shapes than its config.json says: {_some(mismatched)}")
    missing, parameters = sorted(loading["missing_keys"]), sum(1 for _ in model.named_parameters())
    if len(missing) >= parameters:
        raise ModelError(f"{name}: none of its weights belong to a {type(model).__name__}")
    if missing:
        log.warning("%s lacks %d of %d tensors, which start new: %s", name, len(missing), parameters, _some(missing))
    if unused := sorted(loading["unexpected_keys"]):
        log.info("%s has %d tensors that %s does not use: %s", name, len(unused), type(model).__name__, _some(unused))
    loaded: PreTrainedModel = model
    return loaded


# From scratch


def _from_scratch(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = new_config(recipe, tokenizer)
    _check_memory(outline_of(config, recipe.objective), hint=_SMALLER)
    try:
        with quiet():
            model: PreTrainedModel = AUTO_MODEL[recipe.objective].from_config(config, dtype=torch.float32)
    except Exception as error:
        assert recipe.model.architecture is not None
        raise build_error(error, recipe.model.architecture, recipe.model.config) from error
    return model


def _check_memory(outline: nn.Module, *, hint: str) -> None:
    """Says what would otherwise end in the system killing the process."""
    parameters = count_parameters(outline)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if parameters * 4 > memory:
        raise ModelError(
            f"the model has {parameters / 1e9:.1f}B parameters, {parameters * 4 / 1e9:.0f} GB in float32,"
            f" and this machine has {memory / 1e9:.0f} GB of memory",
            hint=hint,
        )


# From existing weights


def _continue(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    name = recipe.model.from_
    assert name is not None
    if recipe.model.config:
        raise ModelError(
            f"model.config has no use with model.from: {name} has a configuration",
            hint="remove model.config, or model.from to start from scratch",
        )
    model = load_model(name, recipe.objective)
    positions = getattr(model.config, "max_position_embeddings", None)
    block, size = longest_block(recipe.data)
    if isinstance(positions, int) and 0 < positions - rows_before_positions(model) < size:
        longest = positions - rows_before_positions(model)
        raise ModelError(
            f"{block} is {size}, and {name} has {longest} positions",
            hint=f"set {block} to {longest} or less",
        )
    size = model.get_input_embeddings().weight.shape[0]
    needed = token_count(tokenizer)
    if needed > size:
        log.info("the vocabulary of %s grows from %d to %d tokens for the tokenizer", name, size, needed)
        with quiet():
            model.resize_token_embeddings(needed)
    for settings in filter(None, (model.config, getattr(model, "generation_config", None))):
        for key in TOKEN_IDS:
            token, had = getattr(tokenizer, key, None), getattr(settings, key, None)
            if hasattr(settings, key) and token is not None and token not in (had if isinstance(had, list) else [had]):
                setattr(settings, key, token)
    return model


def _load_config(place: str, name: str) -> PreTrainedConfig:
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is not the folder of a model: there is no config.json in it",
            hint="give the folder of a finished run or of a saved model",
        )
    try:
        with quiet():
            return AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        if folder.is_dir():
            raise ModelError(f"{name}/config.json cannot be read: {sentence(error)}") from error
        raise explain(error, name, kind="model") from error


def _check_objective(config: PreTrainedConfig, name: str, objective: Objective) -> None:
    """Refuses a model of the other objective: its weights would load, and its predictions mean nothing."""
    other: Objective = "mlm" if objective == "clm" else "clm"
    for written in config.architectures or ():
        if written in MODEL_NAMES[other].values() and written not in MODEL_NAMES[objective].values():
            raise ModelError(
                f"{name} is a model for {WORDS[other]} ({written}), not for {WORDS[objective]}",
                hint=f"take a model for {objective}, or the objective {other}",
            )
    if config.model_type not in MODEL_NAMES[objective]:
        raise ModelError(f"{name} is a {config.model_type} model, which does not do {WORDS[objective]}")


# Both


def _try_out(model: PreTrainedModel, recipe: Recipe) -> None:
    """Runs a few tokens through the model: what builds may still not compute, or see what it must not.

    A causal language model whose predictions depend on later words would learn to copy them.
    """
    vocabulary = model.config.vocab_size
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    first = torch.arange(max(2, min(8, recipe.data.block_size))) % vocabulary
    second = first.clone()
    second[-1] = (second[-1] + 1) % vocabulary
    model.eval()
    try:
        with torch.no_grad(), quiet():
            logits = model(input_ids=torch.stack([first, second]), **cache).logits
    except Exception as error:
        if recipe.model.architecture is not None and recipe.model.from_ is None:
            raise build_error(error, recipe.model.architecture, recipe.model.config) from error
        raise ModelError(f"{recipe.model.from_} cannot be used: {sentence(error)}") from error
    name = type(model).__name__
    if logits.shape[:2] != (2, len(first)):
        raise ModelError(f"{name} does not predict each token of its input and cannot be pre-trained here")
    if not logits.isfinite().all():
        raise ModelError(f"{name} gives predictions that are not finite numbers")
    difference = (logits[0] - logits[1])[:-1].abs().max().item()
    if recipe.objective == "clm" and difference > 1e-4 * logits.abs().max().item():
        raise ModelError(
            f"{name} is not causal: its predictions depend on later words",
            hint="take another architecture, or objective: mlm",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
