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
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfpretrain.errors import HFPretrainError, ModelError
from hfpretrain.hub import explain, locate, quiet
from hfpretrain.modeling.architecture import (
    MODEL_NAMES,
    TOKEN_IDS,
    WORDS,
    Objective,
    build_error,
    check_architecture,
    complete_settings,
    declared_keys,
    sentence,
    vocabulary_size,
)
from hfpretrain.recipe import Recipe
from hfpretrain.recipe_stages import longest_block

log = logging.getLogger(__name__)

_SMALLER = "make it smaller under model.config: keys that are left out have the architecture's own sizes"
_AUTO_MODEL = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}


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
            _check_memory(_outline(config, objective), hint="take a smaller model, or check its config.json")
            model, loading = _AUTO_MODEL[objective].from_pretrained(
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


def count_parameters(model: nn.Module) -> int:
    """Numbers that the model learns, each once: tied weights are not counted twice."""
    return sum(parameter.numel() for parameter in model.parameters())


# From scratch


def _from_scratch(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    architecture, given = recipe.model.architecture, recipe.model.config
    if architecture is None:
        raise ModelError(
            "model.architecture is not set", hint="for example bert (mlm) or gpt2 (clm); or set model.from"
        )
    check_architecture(architecture, recipe.objective)
    config_class = CONFIG_MAPPING[architecture]
    declared = declared_keys(config_class)
    if "vocab_size" not in declared and config_class.sub_configs:
        text = f"{architecture}_text"
        raise ModelError(
            f"model.architecture: {architecture} is not a model of text alone",
            hint=f"take its text part, {text}" if text in MODEL_NAMES[recipe.objective] else None,
        )
    settings = complete_settings(config_class, given)
    if "num_key_value_heads" in settings.keys() - given.keys():
        log.info("num_key_value_heads is %d, as many as there are heads", settings["num_key_value_heads"])
    settings["vocab_size"] = vocabulary_size(given.get("vocab_size"), _token_count(tokenizer))
    for key in TOKEN_IDS:
        token = getattr(tokenizer, key, None)
        if token is not None and (key in declared or key in ("bos_token_id", "eos_token_id", "pad_token_id")):
            settings[key] = token
    if "is_decoder" in declared:
        # Without it BERT's kind attends to later words even as a causal language model.
        settings["is_decoder"] = recipe.objective == "clm"
    auto_model = _AUTO_MODEL[recipe.objective]
    try:
        with quiet():
            config = AutoConfig.for_model(architecture, **settings)
            _drop_other_ids(config, tokenizer)
            outline = _outline(config, recipe.objective)
            _fit_positions(config, outline, recipe, given_by_user=_position_key(config_class) in settings)
            _check_memory(outline, hint=_SMALLER)
            model: PreTrainedModel = auto_model.from_config(config, dtype=torch.float32)
    except HFPretrainError:
        raise
    except Exception as error:
        raise build_error(error, architecture, given) from error
    return model


def _position_key(config_class: type[PreTrainedConfig]) -> str:
    return str(config_class.attribute_map.get("max_position_embeddings", "max_position_embeddings"))


def _drop_other_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes away ids by default, which mean some other token, or none, where the tokenizer has no such token."""
    known = [token for key in TOKEN_IDS if (token := getattr(tokenizer, key, None)) is not None]
    for key in TOKEN_IDS:
        if hasattr(config, key) and getattr(tokenizer, key, None) is None:
            try:
                setattr(config, key, None)
            except StrictDataclassError:  # some architectures insist on a number
                setattr(config, key, known[0] if known else 0)


def _fit_positions(config: PreTrainedConfig, model: PreTrainedModel, recipe: Recipe, *, given_by_user: bool) -> None:
    """Raises the default number of positions to what a block needs; the user's own has to suffice."""
    length = getattr(config, "max_position_embeddings", None)
    size = longest_block(recipe.data)[1]
    needed = size + _rows_before_positions(model)
    if not isinstance(length, int) or length >= needed or length < 0:
        return
    key = _position_key(type(config))
    if given_by_user:
        raise ModelError(
            f"model.config.{key} is {length}, and a block of {size} tokens needs {needed}",
            hint=f"set it to {needed} or more, or leave it out",
        )
    log.info("%s is %d instead of %d, so that a block fits", key, needed, length)
    config.max_position_embeddings = needed


def _rows_before_positions(model: nn.Module) -> int:
    """How many rows of the position table are no positions: RoBERTa's kind begins after its padding row."""
    tables = [m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and "position" in name]
    return max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


def _outline(config: PreTrainedConfig, objective: Objective) -> nn.Module:
    """The model without numbers, which takes no memory whatever its sizes."""
    with torch.device("meta"):
        outline: nn.Module = _AUTO_MODEL[objective].from_config(config)
    return outline


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
    if isinstance(positions, int) and 0 < positions - _rows_before_positions(model) < size:
        longest = positions - _rows_before_positions(model)
        raise ModelError(
            f"{block} is {size}, and {name} has {longest} positions",
            hint=f"set {block} to {longest} or less",
        )
    size = model.get_input_embeddings().weight.shape[0]
    needed = _token_count(tokenizer)
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


def _token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings the tokenizer needs; its ids may have holes, so the largest counts too."""
    largest: int = max(tokenizer.get_vocab().values(), default=0)
    return max(len(tokenizer), largest + 1)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
