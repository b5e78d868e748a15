"""What a recipe may say about a network: the architecture's name and the keys under model.config, checked.

Transformers takes any key in silence and reports sizes that do not fit in words of its own; here both become a
sentence with the recipe's key.
"""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hfpretrain.errors import ModelError, nearest
from hfpretrain.model_files import MOST_LAYERS, NUMBER_OF_PARTS

Objective = Literal["clm", "mlm"]

MODEL_NAMES = {"clm": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "mlm": MODEL_FOR_MASKED_LM_MAPPING_NAMES}
_OTHER: dict[Objective, Objective] = {"clm": "mlm", "mlm": "clm"}
# What a hint names when nothing is near.
_COMMON = {"clm": "gpt2, llama, qwen3 and gemma3_text", "mlm": "bert, roberta, modernbert and deberta-v2"}
WORDS = {"clm": "next-word prediction (clm)", "mlm": "masked language modeling (mlm)"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")

_TYPES = {"int": "a whole number", "str": "a text", "bool": "true or false", "float": "a number"}
# Keys that transformers knows and a recipe must not set, and why.
_REFUSED = {
    **dict.fromkeys((*TOKEN_IDS, "mask_token_id", "unk_token_id"), "the tokenizer gives it"),
    **dict.fromkeys(("is_decoder", "is_encoder_decoder", "add_cross_attention", "is_causal"), "the objective decides"),
    **dict.fromkeys(("auto_map", "trust_remote_code"), "code from elsewhere is never run"),
    **dict.fromkeys(("attn_implementation", "experts_implementation"), "the best that the machine has is taken"),
    **dict.fromkeys(("architectures", "model_type"), "model.architecture decides it"),
    **dict.fromkeys(("dtype", "torch_dtype"), "weights are float32; train.precision sets the arithmetic"),
    **dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type"), "a language model has no labels"),
    **dict.fromkeys(("output_hidden_states", "output_attentions", "return_dict"), "it changes what the model returns"),
    **dict.fromkeys(("name_or_path", "transformers_version"), "transformers writes it when the model is saved"),
}


def check_architecture(architecture: str, objective: Objective) -> None:
    """Raises ModelError with the nearest names unless transformers has that architecture for the objective."""
    known = MODEL_NAMES[objective]
    if architecture in known:
        return
    other = _OTHER[objective]
    if architecture in MODEL_NAMES[other]:
        raise ModelError(
            f"model.architecture: {architecture} does {WORDS[other]}, and the objective is {objective}",
            hint=f"set objective: {other}, or another architecture",
        )
    similar = nearest(architecture.lower(), known, count=3)
    raise ModelError(
        f"model.architecture: {architecture} is no architecture for {WORDS[objective]}",
        hint=f"did you mean {similar}?" if similar else f"there are {_COMMON[objective]} among {len(known)}",
    )


def declared_keys(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """What an architecture's configuration declares itself, with the defaults."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    fields = {field.name: field.default for field in dataclasses.fields(config_class) if field.name not in inherited}
    for cls in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
            fields |= {p.name: p.default for p in named if p.name not in fields and p.name not in inherited}
    return fields


def _older_keys(config_class: type[PreTrainedConfig]) -> set[str]:
    """Keys that are declared nowhere but still read, such as gemma3's sliding_window_pattern, from the source."""
    classes = config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]
    keys = {"chunk_size_feed_forward"}
    if "rope_parameters" in declared_keys(config_class):
        keys |= {"rope_theta", "rope_scaling"}
    for cls in classes:
        keys |= set(re.findall(r"kwargs\.(?:get|pop)\(\s*[\"'](\w+)[\"']", inspect.getsource(cls)))
    return keys


def checked_keys(config_class: type[PreTrainedConfig], given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The user's keys under the names that the architecture itself uses; all wrong ones are said at once."""
    aliases: dict[str, str] = config_class.attribute_map
    valid = (declared_keys(config_class).keys() | aliases.keys() | _older_keys(config_class)) - _REFUSED.keys()
    problems, settings, used = [], {}, dict[str, str]()
    for key, value in given.items():
        if key in _REFUSED or key.startswith("_"):
            problems.append(f"{prefix}.{key} is not set in a recipe: {_REFUSED.get(key, 'it is internal')}")
            continue
        if key not in valid:
            similar = nearest(key, valid)
            suggestion = f"did you mean {similar}?" if similar else f"there are {', '.join(sorted(valid))}"
            problems.append(f"{prefix}.{key}: {config_class.model_type} has no such key; {suggestion}")
            continue
        if isinstance(value, int) and value < 0 and re.search(r"^(num|n)_|_(size|dim|embeddings)$", key):
            problems.append(f"{prefix}.{key} is {value}, and cannot be negative")
            continue
        if isinstance(value, int) and value > MOST_LAYERS and NUMBER_OF_PARTS.fullmatch(key):
            problems.append(f"{prefix}.{key} is {value}, and no model has more than {MOST_LAYERS}")
            continue
        name = aliases.get(key, key)
        if name in settings:
            problems.append(f"{prefix}.{key} is the same as {prefix}.{used[name]}; keep one of them")
            continue
        settings[name], used[name] = value, key
        inner = config_class.sub_configs.get(key)
        if isinstance(value, Mapping) and inspect.isclass(inner) and issubclass(inner, PreTrainedConfig):
            settings[name] = checked_keys(inner, value, f"{prefix}.{key}")
    if problems:
        raise ModelError("\n".join(problems))
    return settings


def vocabulary_size(given: Any, needed: int) -> int:
    """The number of embeddings: what the tokenizer needs, or more where the user says so."""
    if given is None:
        return needed
    if not isinstance(given, int) or isinstance(given, bool):
        raise ModelError(f"model.config.vocab_size is {given!r}, not a whole number")
    if given < needed:
        raise ModelError(
            f"model.config.vocab_size is {given}, and the tokenizer has {needed} tokens",
            hint="leave it out: it follows from the tokenizer",
        )
    return given


def complete_settings(config_class: type[PreTrainedConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of model.config under the architecture's own names, checked, with key-value heads that fit the heads."""
    settings = checked_keys(config_class, given, "model.config")
    heads = settings.get(config_class.attribute_map.get("num_attention_heads", "num_attention_heads"))
    groups = declared_keys(config_class).get("num_key_value_heads")
    if isinstance(heads, int) and heads > 0 and isinstance(groups, int) and heads % groups:
        # The architecture's default belongs to its own, larger number of heads.
        settings.setdefault("num_key_value_heads", heads)
    return settings


def build_error(error: Exception, architecture: str, given: Mapping[str, Any]) -> ModelError:
    """What made transformers fail with the keys of model.config, in the recipe's words where it is known."""
    config_class = CONFIG_MAPPING[architecture]
    aliases: dict[str, str] = config_class.attribute_map
    written = {aliases.get(key, key): key for key in given}
    wrong = re.search(r"[Ff]ield '(\w+)' expected (.+?), got (\w+)", str(error))
    if wrong and wrong[1] in written:
        key = written[wrong[1]]
        return ModelError(f"model.config.{key} is {given[key]!r}, and has to be {_TYPES.get(wrong[2], wrong[2])}")
    for key, value in given.items():
        if isinstance(error, KeyError) and error.args == (value,):
            return ModelError(f"model.config.{key}: {architecture} does not know {value!r}")
        if isinstance(value, int) and value <= 0 and not isinstance(value, bool):
            return ModelError(f"{architecture} cannot be built with model.config.{key} {value}: {sentence(error)}")

    values = declared_keys(config_class) | complete_settings(config_class, given)

    def setting(key: str) -> tuple[str, int]:
        """A size with its name, as the user wrote it or as the architecture has it; 0 where there is none."""
        name = aliases.get(key, key)
        value = values.get(name)
        return written.get(name, f"{name}, by default"), value if isinstance(value, int) and value > 0 else 0

    (width_key, width), (heads_key, heads) = setting("hidden_size"), setting("num_attention_heads")
    groups_key, groups = setting("num_key_value_heads")
    if heads and width % heads and (not setting("head_dim")[1] or "head" in str(error)):
        return ModelError(f"model.config: {heads} heads ({heads_key}) do not divide the width {width} ({width_key})")
    if groups and heads % groups:
        return ModelError(
            f"model.config: {groups} key-value heads ({groups_key}) do not divide {heads} heads ({heads_key})",
            hint=f"set model.config.num_key_value_heads to {heads} or a divisor of it",
        )
    chosen_key, chosen = setting("num_experts_per_tok")
    for experts_key, experts in map(setting, ("num_local_experts", "num_experts", "n_routed_experts")):
        if experts and chosen > experts:
            return ModelError(f"model.config: {chosen} experts per token ({chosen_key}) of {experts} ({experts_key})")
    return ModelError(f"{architecture} cannot be built with this model.config: {sentence(error)}")


def sentence(error: BaseException) -> str:
    """The library's message on one line."""
    text = re.sub(r"^Class validation error for validator '\w+': \w+: ", "", " ".join(str(error).split()).rstrip("."))
    return (text if len(text) <= 300 else text[:297] + "...") or type(error).__name__
