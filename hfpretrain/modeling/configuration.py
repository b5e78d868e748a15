"""The configuration of a new model: the recipe's keys, the tokenizer's numbers, room for a block, and chosen sizes."""

import logging
from collections.abc import Mapping
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

from hfpretrain.amounts import parameters_of
from hfpretrain.errors import HFPretrainError, ModelError
from hfpretrain.hub import quiet
from hfpretrain.modeling.architecture import (
    MODEL_NAMES,
    TOKEN_IDS,
    Objective,
    build_error,
    check_architecture,
    checked_keys,
    complete_settings,
    declared_keys,
    vocabulary_size,
)
from hfpretrain.modeling.parameters import count_parameters
from hfpretrain.modeling.sizing import choose_sizes
from hfpretrain.recipe import Recipe
from hfpretrain.recipe_stages import longest_block

log = logging.getLogger(__name__)

AUTO_MODEL = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}


def new_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, say: bool = True) -> PreTrainedConfig:
    """The configuration of a recipe's new model; with `model.size`, its sizes are chosen for the tokenizer.

    What is set that the recipe does not say is said, unless `say` is false.
    Raises ModelError, naming the key, where the recipe cannot be built.
    """
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
    if recipe.model.size is None:
        settings = complete_settings(config_class, given)
        if say and "num_key_value_heads" in settings.keys() - given.keys():
            log.info("num_key_value_heads is %d, as many as there are heads", settings["num_key_value_heads"])
    else:
        settings = checked_keys(config_class, given, "model.config")
    settings["vocab_size"] = vocabulary_size(given.get("vocab_size"), token_count(tokenizer))
    for key in TOKEN_IDS:
        token = getattr(tokenizer, key, None)
        if token is not None and (key in declared or key in ("bos_token_id", "eos_token_id", "pad_token_id")):
            settings[key] = token
    if "is_decoder" in declared:
        # Without it BERT's kind attends to later words even as a causal language model.
        settings["is_decoder"] = recipe.objective == "clm"
    try:
        with quiet():
            if recipe.model.size is not None:
                settings |= _chosen(recipe, architecture, settings, tokenizer)
            config = AutoConfig.for_model(architecture, **settings)
            _drop_other_ids(config, tokenizer)
            outline = outline_of(config, recipe.objective)
            _fit_positions(config, outline, recipe, given_by_user=_position_key(config_class) in settings, say=say)
    except HFPretrainError:
        raise
    except Exception as error:
        raise build_error(error, architecture, given) from error
    return config


def outline_of(config: PreTrainedConfig, objective: Objective) -> PreTrainedModel:
    """The model without numbers, which takes no memory whatever its sizes."""
    with torch.device("meta"):
        outline: PreTrainedModel = AUTO_MODEL[objective].from_config(config)
    return outline


def rows_before_positions(model: nn.Module) -> int:
    """How many rows of the position table are no positions: RoBERTa's kind begins after its padding row."""
    tables = [m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and "position" in name]
    return max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings the tokenizer needs; its ids may have holes, so the largest counts too."""
    largest: int = max(tokenizer.get_vocab().values(), default=0)
    return max(len(tokenizer), largest + 1)


def _chosen(
    recipe: Recipe, architecture: str, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The settings that give the model the parameters of `model.size`, its table of positions as it will be."""
    assert recipe.model.size is not None
    config_class = CONFIG_MAPPING[architecture]
    own: dict[str, str] = config_class.attribute_map
    general = {name: key for key, name in own.items()}

    def counted(sizes: Mapping[str, Any]) -> int:
        config = AutoConfig.for_model(architecture, **{**settings, **{own.get(key, key): sizes[key] for key in sizes}})
        _drop_other_ids(config, tokenizer)
        outline = outline_of(config, recipe.objective)
        if _fit_positions(config, outline, recipe, given_by_user=_position_key(config_class) in settings, say=False):
            outline = outline_of(config, recipe.objective)
        return count_parameters(outline)

    chosen = choose_sizes(
        architecture,
        parameters_of(recipe.model.size),
        {general.get(key, key): value for key, value in settings.items()},
        {general.get(key, key): value for key, value in declared_keys(config_class).items()},
        counted,
    )
    return {own.get(key, key): value for key, value in chosen.items()}


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


def _fit_positions(
    config: PreTrainedConfig, model: PreTrainedModel, recipe: Recipe, *, given_by_user: bool, say: bool
) -> bool:
    """Raises the default number of positions to what a block needs, returns whether it did; the user's must suffice."""
    length = getattr(config, "max_position_embeddings", None)
    size = longest_block(recipe.data)[1]
    needed = size + rows_before_positions(model)
    if not isinstance(length, int) or length >= needed or length < 0:
        return False
    key = _position_key(type(config))
    if given_by_user:
        raise ModelError(
            f"model.config.{key} is {length}, and a block of {size} tokens needs {needed}",
            hint=f"set it to {needed} or more, or leave it out",
        )
    if say:
        log.info("%s is %d instead of %d, so that a block fits", key, needed, length)
    config.max_position_embeddings = needed
    return True
