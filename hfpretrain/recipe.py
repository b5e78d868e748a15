"""The recipe: one YAML file that says what is trained, on what, and how.

Frozen dataclasses hold it (recipe_blocks.py), with every default. `load` reads a file and overrides, and says
what is wrong or means nothing in it. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hfpretrain import strict_yaml
from hfpretrain.amounts import OF_THE_MODEL, Amount, parameters_of, size_in_bytes
from hfpretrain.errors import RecipeError
from hfpretrain.recipe_blocks import (
    Averaging,
    BatchRamp,
    Checkpoints,
    Data,
    Evaluation,
    FillInTheMiddle,
    Hub,
    Masking,
    Model,
    Optimizer,
    Parallel,
    Ramp,
    Recipe,
    Schedule,
    Source,
    Stage,
    Tokenizer,
    Train,
)
from hfpretrain.recipe_contents import Keys
from hfpretrain.recipe_continuing import Base
from hfpretrain.recipe_loading import Draft, to_plain
from hfpretrain.recipe_stages import (
    amounts_of,
    batch_contradictions,
    block_sizes,
    places_of_sources,
    stage_contradictions,
    streaming_contradictions,
)
from hfpretrain.recipe_types import quoted, schema_of, shown

__all__ = [
    "Amount",
    "Averaging",
    "Base",
    "BatchRamp",
    "Checkpoints",
    "Data",
    "Evaluation",
    "FillInTheMiddle",
    "Hub",
    "Masking",
    "Model",
    "Optimizer",
    "Parallel",
    "Ramp",
    "Recipe",
    "Schedule",
    "Source",
    "Stage",
    "Tokenizer",
    "Train",
    "dump",
    "from_mapping",
    "json_schema",
    "load",
    "repo_id_problem",
    "size_in_bytes",
    "to_mapping",
]

LONGEST_NAME = 200
"""Bytes of a run's name: file systems take 255, and names with something before or behind it are made of it."""


SMALLEST_FIM_BLOCK = 16
_NOT_NOTHING = (("train", "duration"), ("evaluation", "every"), ("checkpoints", "every"))


def load(path: str | Path, overrides: Sequence[str] = (), *, base: Base | None = None) -> Recipe:
    """The recipe in a YAML file, with overrides such as `train.duration=50` and every default resolved.

    Null, or nothing after a colon, stands for the default. With `base`, model and tokenizer are that run's. Raises
    RecipeError: one line for each thing that is wrong, with file, line and dotted key.
    """
    return _recipe(Draft.from_file(Recipe, path), overrides, default_name=Path(path).stem, base=base)


def from_mapping(mapping: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a mapping from Python says, checked like a file. Without a name it is called unnamed."""
    return _recipe(Draft.from_mapping(Recipe, mapping), overrides, default_name="unnamed")


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Every key that means something in this recipe, defaults too, as `from_mapping` takes it."""
    mapping: dict[str, Any] = to_plain(recipe)
    for (*section, key), _ in _idle_keys(recipe):
        place: Any = mapping
        for step in section:
            place = place[step]
        place.pop(key)
    return mapping


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load` of it gives the same recipe. RecipeError if it is too large for that."""
    text = strict_yaml.write(to_mapping(recipe))
    if len(text.encode()) > strict_yaml.LARGEST_BYTES:
        raise RecipeError(f"the recipe with every default written out is larger than {strict_yaml.LARGEST}")
    return text


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, for editors."""
    return schema_of(Recipe)


def _recipe(draft: Draft, overrides: Sequence[str], *, default_name: str, base: Base | None = None) -> Recipe:
    for text in overrides:
        draft.override(text)
    if base is not None:
        base.settle(draft)
    recipe = _resolved(draft.build(), default_name)
    for keys, message in _contradictions(recipe, draft):
        if not draft.doubtful(keys):
            draft.wrong(keys, message)
    for keys, message in _idle_keys(recipe):
        if draft.given(keys) and not draft.doubtful(keys):
            draft.wrong(keys, message)
    draft.raise_problems()
    return recipe


def _resolved(recipe: Recipe, default_name: str) -> Recipe:
    """With the defaults that depend on other keys."""
    name, model, tokenizer, data = recipe.name or default_name, recipe.model, recipe.tokenizer, recipe.data
    masked = recipe.objective == "mlm"
    if not model.architecture and not model.from_:
        architecture, width = ("modernbert", 384) if masked else ("llama", 688)
        shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": width}
        config = model.config or ({} if model.size else shape)
        model = dataclasses.replace(model, architecture=architecture, config=config)
    if not tokenizer.algorithm and not tokenizer.from_ and not model.from_:
        tokenizer = dataclasses.replace(tokenizer, algorithm="wordpiece" if masked else "bpe")
    if isinstance(data.validation, Amount) and data.validation.value == 0:
        data = dataclasses.replace(data, validation=Amount.percent(0))
    output_dir = recipe.output_dir or f"runs/{name}"
    return dataclasses.replace(recipe, name=name, output_dir=output_dir, model=model, tokenizer=tokenizer, data=data)


def _contradictions(recipe: Recipe, draft: Draft) -> Iterator[tuple[Keys, str]]:
    """Keys that are right in themselves but not in this recipe, each with a sentence."""
    data, train, masking, schedule = recipe.data, recipe.train, recipe.masking, recipe.schedule
    if recipe.name in (".", "..") or re.search(r"[/\\\x00-\x1f]", recipe.name):
        said = "cannot name a folder; leave out slashes (output_dir says where a run goes)"
        yield ("name",), f"{quoted(recipe.name)} {said}"
    elif (size := len(recipe.name.encode(errors="replace"))) > LONGEST_NAME:
        yield ("name",), f"is {size} bytes long; a folder's name has {LONGEST_NAME} at most"
    if not data.sources and not _all_stages_have_sources(data):
        yield ("data", "sources"), "missing; give one source or more, for example [{builtin: everyday}]"
    if data.validation == ():
        yield ("data", "validation"), "is an empty list; write 0% for no validation"
    if isinstance(data.validation, Amount) and (data.validation.unit != "percent" or data.validation.value >= 100):
        said = f"expects a share below 100% such as 1%, or a list of sources, not {data.validation}"
        yield ("data", "validation"), said
    for keys, source in _sources(recipe):
        yield from ((keys + rest, message) for rest, message in _source_contradictions(source))
    if not draft.doubtful(("train", "duration")):
        yield from stage_contradictions(data, train)
    yield from streaming_contradictions(recipe, _sources(recipe))
    if not (recipe.tokenizer.from_ or recipe.model.from_):
        for keys, source in _sources(recipe):
            if source.tokens:
                yield (*keys, "tokens"), "needs the tokenizer that made them; set tokenizer.from"
    if train.duration.unit == "percent":
        yield ("train", "duration"), f"expects steps, tokens, epochs or minutes, not {train.duration}"
    for keys, amount in amounts_of(recipe):
        if amount.value == 0 and keys in _NOT_NOTHING:
            yield keys, "must be more than nothing"
        if amount.unit in OF_THE_MODEL and keys != ("train", "duration"):
            yield keys, f"{amount.unit} are for train.duration; give a share of the run such as 10%, or steps or tokens"
    if recipe.model.size is not None:
        try:
            parameters_of(recipe.model.size)
        except RecipeError as error:
            yield ("model", "size"), error.message
    if train.max_time is not None and (train.max_time.unit != "seconds" or train.max_time.value == 0):
        yield ("train", "max_time"), f"expects minutes, hours or days, not {train.max_time}"
    if not draft.doubtful(("train", "batch_size")):
        yield from batch_contradictions(train)
    if masking.mask + masking.random > 1 + 1e-9 and not draft.doubtful(("masking", "mask")):
        yield ("masking", "random"), f"mask and random together are {masking.mask + masking.random:g}, more than 1"
    if isinstance(masking.rate, Ramp) and train.duration.unit == "seconds":
        said = "moves with the steps of the run, and a train.duration in minutes does not say how many there are"
        yield ("masking", "rate"), f"{said}; give one number, or a duration in steps, tokens or epochs"
    if recipe.fim.rate and not draft.doubtful(("fim",)):
        if any(source.prompt_column for _, source, _ in places_of_sources(data)):
            yield ("fim", "rate"), "a prompt goes before its completion, so that pairs and fim exclude each other"
        for where, block_size in block_sizes(data):
            if block_size < SMALLEST_FIM_BLOCK and not draft.doubtful(where):
                said = f"{block_size} is too small for fim, which takes room for sentinels"
                yield where, f"{said}; set at least {SMALLEST_FIM_BLOCK}"
    if masking.unit == "span" and not draft.doubtful(("masking", "rate")):
        rate = max(masking.rate.from_, masking.rate.to) if isinstance(masking.rate, Ramp) else masking.rate
        if rate > 1 - 1 / masking.mean_span:
            shorter = f"spans of {masking.mean_span:g} tokens are shorter than what single tokens at that rate make"
            yield ("masking", "mean_span"), f"masking.rate is {rate:g}, and {shorter}; set unit: token, or longer spans"
        elif (held_out := recipe.evaluation.masking_rate) > 1 - 1 / masking.mean_span:
            said = f"{held_out:g} is more than spans of {masking.mean_span:g} tokens can make"
            yield ("evaluation", "masking_rate"), f"{said}; set at most {1 - 1 / masking.mean_span:.3g}"
    if schedule.name == "wsd" and schedule.warmup.unit == schedule.decay.unit == "percent":
        total = schedule.warmup.value + schedule.decay.value
        if total > 100 and not draft.doubtful(("schedule", "warmup")):
            yield ("schedule", "decay"), f"warmup and decay together are {total:g}%, more than the run"
    for number, text in enumerate(recipe.evaluation.prompts or ()):
        if recipe.objective == "mlm" and "[MASK]" not in text and "<mask>" not in text:
            yield ("evaluation", "prompts", number), f"there is no [MASK] to fill in {quoted(text)}"
    for part, factor in recipe.optimizer.lr_factors.items():
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 <= factor < math.inf:
            yield ("optimizer", "lr_factors", part), f"expects a number, at least 0, not {shown(factor)}"
    if recipe.averaging.method == "checkpoints" and "seconds" in (train.duration.unit, recipe.checkpoints.every.unit):
        said = "which checkpoints are the last is not known beforehand where durations are times"
        yield ("averaging", "method"), f"{said}; give steps, tokens or epochs, or take ema"
    parallel = recipe.parallel
    if parallel.strategy in ("fsdp", "deepspeed") and train.precision == "fp16":
        said = f"fp16's loss scaling does not go with parallel.strategy: {parallel.strategy}; set bf16"
        yield ("train", "precision"), said
    if parallel.strategy == "deepspeed" and recipe.optimizer.name == "muon":
        said = "muon needs whole matrices, and parallel.strategy: deepspeed gives it shares of flattened ones"
        yield ("optimizer", "name"), f"{said}; set parallel.strategy: fsdp"
    if parallel.strategy == "deepspeed" and train.compile is True:
        yield ("train", "compile"), "true does not go with parallel.strategy: deepspeed; set auto, which leaves it out"
    if parallel.tensor > 1 and parallel.strategy == "deepspeed":
        yield ("parallel", "tensor"), "does not go with strategy: deepspeed; set strategy: fsdp"
    if parallel.tensor > 1 and train.precision == "fp16":
        yield ("train", "precision"), "fp16's loss scaling does not go with parallel.tensor; set bf16"
    if parallel.tensor > 1 and parallel.shard_within:
        said = "with parallel.tensor all its groups share out the rest; leave one of them out"
        yield ("parallel", "shard_within"), said
    if recipe.hub.push == "checkpoints" and not recipe.hub.repo_id:
        yield ("hub", "push"), "checkpoints goes with hub.repo_id, which is missing"
    if recipe.hub.repo_id and (problem := repo_id_problem(recipe.hub.repo_id)):
        yield ("hub", "repo_id"), f"{quoted(recipe.hub.repo_id)} {problem}"


def repo_id_problem(name: str) -> str | None:
    """Why the Hub could have no repository of that name, or None if it could."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return f"cannot name a repository (write org/name): {str(error).split(': ')[0].rstrip('.')}"
    return None


def _sources(recipe: Recipe) -> Iterator[tuple[Keys, Source]]:
    """Every source, with the way to it."""
    yield from ((keys, source) for keys, source, _ in places_of_sources(recipe.data))
    if not isinstance(recipe.data.validation, Amount):
        yield from ((("data", "validation", index), source) for index, source in enumerate(recipe.data.validation))


def _all_stages_have_sources(data: Data) -> bool:
    return bool(data.stages) and all(stage.sources for stage in data.stages)


def _source_contradictions(source: Source) -> Iterator[tuple[Keys, str]]:
    kinds = [kind for kind in _KEYS_OF_KIND if getattr(source, kind) is not None]
    if len(kinds) != 1:
        yield (), f"expects exactly one of builtin, files, hub and tokens, not {' and '.join(kinds) or 'none of them'}"
    for key in ("files", "tokens"):
        if getattr(source, key) == ():
            yield (key,), "is an empty list"
    if (source.prompt_column is None) != (source.completion_column is None):
        given, other = ("prompt", "completion") if source.prompt_column else ("completion", "prompt")
        yield (f"{given}_column",), f"goes together with {other}_column, which is missing"
    if source.min_chars and source.max_chars is not None and source.min_chars > source.max_chars:
        yield ("max_chars",), f"{source.max_chars} is less than min_chars, {source.min_chars}: nothing would be left"
    if source.commit is not None and not re.fullmatch("[0-9a-f]{40}", source.commit):
        yield ("commit",), f"{quoted(source.commit)} is no commit, 40 hex digits; write a branch as hub: org/dataset@it"
    if source.size is not None:
        try:
            size_in_bytes(source.size)
        except RecipeError as error:
            yield ("size",), error.message


_COLUMNS = ("text_column", "prompt_column", "completion_column")
_FILTERS = ("min_chars", "max_chars", "deduplicate", "drop_list")
_KEYS_OF_KIND = {
    "builtin": ("size", *_FILTERS),
    "files": ("documents", "streaming", *_COLUMNS, *_FILTERS),
    "tokens": ("dtype",),
    "hub": ("subset", "split", "commit", "streaming", *_COLUMNS, *_FILTERS),
}
"""The keys of a source that go with each kind of it; weight and repeat go with all."""


def _idle_keys(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Keys that say nothing in this recipe, and why: given, they are errors; written out, they are left out."""
    if recipe.objective == "clm":
        yield ("masking",), "masking is for mlm, and the objective is clm"
        for key in ("masking_rate", "pseudo_perplexity"):
            yield ("evaluation", key), f"{key} is for mlm, and the objective is clm"
        if not recipe.fim.rate:
            yield ("fim", "spm"), "spm is for documents that are turned, and fim.rate is 0"
    else:
        yield ("fim",), "fim is for clm, and the objective is mlm"
    if recipe.objective == "mlm" and recipe.masking.unit != "span":
        yield ("masking", "mean_span"), f"mean_span is for unit: span, and the unit is {recipe.masking.unit}"
    if recipe.hub.push == "final":
        yield ("hub", "name_by"), "name_by names the branches of checkpoints, and hub.push is final"
    if recipe.schedule.name != "wsd":
        for key in ("decay", "shape"):
            yield ("schedule", key), f"{key} is for wsd, and the schedule is {recipe.schedule.name}"
    for key, strategy in (("shard_within", "fsdp"), ("reshard_after_forward", "fsdp"), ("zero_stage", "deepspeed")):
        if recipe.parallel.strategy != strategy:
            yield ("parallel", key), f"{key} is for {strategy}, and the strategy is {recipe.parallel.strategy}"
    for key, method in (("decay", "ema"), ("last", "checkpoints")):
        if recipe.averaging.method != method:
            said = f"{key} is for method: {method}, and the method is {recipe.averaging.method}"
            yield ("averaging", key), said
    if recipe.model.from_:
        yield ("model", "architecture"), "architecture and from exclude each other: model.from brings its own"
        for key in ("config", "size"):
            yield ("model", key), f"{key} is for a new model: model.from brings its own"
    else:
        yield ("optimizer", "from_checkpoint"), "from_checkpoint is for model.from, which is missing"
    tokenizer = recipe.tokenizer
    if tokenizer.from_ or recipe.model.from_:
        owner = "tokenizer.from" if tokenizer.from_ else "model.from"
        for key in ("algorithm", "vocab_size", "lowercase"):
            yield ("tokenizer", key), f"{key} is for a tokenizer to train: {owner} brings an existing one"
    if _all_stages_have_sources(recipe.data):
        yield ("data", "sources"), "every stage has sources of its own, so that none of these would be read"
    for keys, source in _sources(recipe):
        if keys[1] == "validation":
            yield (*keys, "repeat"), "repeat is for training, and this is held out"
        kinds = [kind for kind in _KEYS_OF_KIND if getattr(source, kind) is not None]
        if len(kinds) != 1:
            continue
        pairs = source.prompt_column is not None and source.completion_column is not None
        for field_ in dataclasses.fields(source):
            key = field_.name
            if key not in (*kinds, "weight", "repeat", *_KEYS_OF_KIND[kinds[0]]):
                owners = " or ".join(kind for kind, own in _KEYS_OF_KIND.items() if key in own)
                yield (*keys, key), f"goes with {owners}, and the source is {kinds[0]}"
            elif key in _COLUMNS and pairs == (key == "text_column"):
                yield (*keys, key), "text_column and prompt_column exclude each other"
