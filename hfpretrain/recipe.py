"""The recipe: one YAML file that says what is trained, on what, and how.

Frozen dataclasses hold it, with every default. `load` reads a file and overrides; field docstrings are
the descriptions in the JSON Schema and the reference. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hfpretrain import strict_yaml
from hfpretrain.amounts import Amount as Amount
from hfpretrain.amounts import size_in_bytes as size_in_bytes
from hfpretrain.errors import RecipeError
from hfpretrain.recipe_loading import Draft, Keys, to_plain
from hfpretrain.recipe_types import Range, schema_of

WholeNumber = Annotated[int, Range(minimum=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(minimum=0)]
Share = Annotated[float, Range(minimum=0, maximum=1)]
BelowOne = Annotated[float, Range(minimum=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network: an architecture to start from scratch, or existing weights to go on from."""

    architecture: str | None = None
    """Any model type of AutoModelForMaskedLM or AutoModelForCausalLM: bert, modernbert, gpt2, llama, ..."""
    config: dict[str, Any] = field(default_factory=dict)
    """Given to that architecture's configuration as it is, e.g. {hidden_size: 256, num_hidden_layers: 4}."""
    from_: str | None = field(default=None, metadata={"alias": "from"})
    """Go on from these weights instead: a folder, a run, or org/name on the Hub."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """How text becomes tokens: trained on the data, or an existing one."""

    algorithm: Literal["bpe", "wordpiece", "unigram", "char", "byte"] | None = None
    """What to train on the data. Default: wordpiece for mlm, bpe for clm."""
    vocab_size: Annotated[int, Range(minimum=8)] = 4096
    """Words of the trained vocabulary at most, special tokens included (char and byte need no size)."""
    lowercase: bool = False
    """Fold the text to lower case before splitting it."""
    from_: str | None = field(default=None, metadata={"alias": "from"})
    """An existing tokenizer instead: a folder or org/name. The default with model.from is the model's own."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that documents come from: exactly one of builtin, files and hub."""

    builtin: Literal["everyday"] | None = None
    """A corpus that ships with hfpretrain: everyday English from a grammar with known probabilities."""
    size: str | None = None
    """How much of the builtin corpus to generate, e.g. 3MB (the default)."""
    files: str | tuple[str, ...] | None = None
    """Local files: a path, a folder, a glob (`corpus/**/*.jsonl.gz`) or a list of them. Relative
    paths are taken from the working directory."""
    hub: str | None = None
    """A data set on the Hub: org/dataset."""
    subset: str | None = None
    """The Hub data set's configuration name."""
    split: str = "train"
    """The Hub data set's split."""
    streaming: bool = False
    """Read the Hub data set while training instead of before it."""
    text_column: str = "text"
    """The column (or JSON key) that holds the text."""
    prompt_column: str | None = None
    """The column of prompts; together with completion_column, only the completion is learnt."""
    completion_column: str | None = None
    """The column of completions."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What a text file is: one document, or one per paragraph or line."""
    weight: Positive | None = None
    """Share of the training tokens, relative to the other sources. Without any weight every source is
    seen once an epoch."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, what is held out, and how documents become blocks."""

    sources: tuple[Source, ...] = ()
    """One or more sources."""
    validation: Amount | tuple[Source, ...] = Amount.percent(1)
    """Held out for evaluation: a share of whole documents, chosen by the seed (of a single document its
    tail), 0% for none, or a list of sources of its own."""
    block_size: Annotated[int, Range(minimum=2)] = 128
    """Tokens per block, the unit of shuffling and the model's context in training."""
    packing: Literal["auto", "documents", "concat"] = "auto"
    """documents: attention stays within a document. concat: it does not. auto: documents where that is
    proven to work for the model, else concat, and a line says so."""
    on_bad_rows: Literal["error", "skip"] = "error"
    """What to do with a row that cannot be read: stop, or skip it, counted and reported."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which tokens the model has to guess (mlm only)."""

    rate: Annotated[float, Range(above=0, maximum=1)] = 0.15
    """Share of the tokens that are chosen as targets."""
    mask: Share = 0.8
    """Share of the chosen ones that are replaced by the mask token."""
    random: Share = 0.1
    """Share of the chosen ones that are replaced by a random token; the rest stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how large a step, and in which arithmetic."""

    duration: Amount = Amount.steps(1000)
    """How long to train: steps, tokens, epochs or minutes."""
    batch_size: WholeNumber = 64
    """Blocks per step, over all processes and micro-batches."""
    micro_batch_size: WholeNumber | Literal["auto"] = "auto"
    """Blocks that a device sees at once; a step accumulates as many as it takes."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights stay in fp32."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; auto compiles on CUDA."""
    gradient_clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    log_every: WholeNumber = 10
    """Steps between two lines of metrics."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What turns gradients into new weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """The method."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 0.1
    """Decay of the weight matrices; norms, biases and embeddings have none."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Adam's epsilon."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves over a run."""

    name: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """wsd: warm-up, stable, decay. cosine, linear: down over the whole run. constant: warm-up only."""
    warmup: Amount = Amount.percent(5)
    """Rises from zero over this much of the run."""
    decay: Amount = Amount.percent(20)
    """wsd only: falls over this much of the run at its end."""
    final: Share = 0.0
    """Share of the peak learning rate that is left at the end."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When the held-out data is looked at. The end of a run always is."""

    every: Amount = Amount.percent(10)
    """Steps, tokens, epochs, minutes or percent of the run between two evaluations."""
    max_tokens: WholeNumber | None = None
    """Evaluate on this many held-out tokens at most while training; the last evaluation takes them all."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the run is saved, so that it can go on."""

    every: Amount = Amount.percent(20)
    """Steps, tokens, epochs, minutes or percent of the run between two checkpoints."""
    keep: WholeNumber = 2
    """How many of the newest checkpoints stay."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where the model is pushed to."""

    repo_id: str | None = None
    """org/name; null pushes nothing."""
    private: bool = True
    """Create the repository as a private one."""
    push: Literal["final", "checkpoints"] = "final"
    """Push the finished model, or every checkpoint as well."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run is made from."""

    objective: Literal["clm", "mlm"]
    """clm: next-word prediction. mlm: masked language modeling."""
    data: Data
    name: str = ""
    """What the run is called. Default: the file's stem."""
    seed: Annotated[int, Range(minimum=0, below=2**63)] = 0
    """Order, masks, initial weights and held-out documents follow from it."""
    output_dir: str = ""
    """The run directory. Default: runs/<name>."""
    model: Model = Model()
    tokenizer: Tokenizer = Tokenizer()
    masking: Masking = Masking()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    trackers: tuple[str, ...] = ()
    """Accelerate's names of experiment trackers: tensorboard, wandb, trackio, ..."""
    hub: Hub = Hub()


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with overrides such as `train.duration=50` and every default resolved.

    Null, or nothing after a colon, stands for the default. Raises RecipeError: one line for each thing
    that is wrong, with file, line and dotted key.
    """
    return _recipe(Draft.from_file(Recipe, path), overrides, default_name=Path(path).stem)


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
    """The resolved recipe as YAML; `load` of it gives the same recipe."""
    return strict_yaml.write(to_mapping(recipe))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, for editors."""
    return schema_of(Recipe)


def _recipe(draft: Draft, overrides: Sequence[str], *, default_name: str) -> Recipe:
    for text in overrides:
        draft.override(text)
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
        model = dataclasses.replace(model, architecture=architecture, config=model.config or shape)
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
        yield ("name",), f"{recipe.name!r} cannot name a folder; leave out slashes (output_dir says where a run goes)"
    if not data.sources:
        yield ("data", "sources"), "missing; give one source or more, for example [{builtin: everyday}]"
    if data.validation == ():
        yield ("data", "validation"), "is an empty list; write 0% for no validation"
    if isinstance(data.validation, Amount) and (data.validation.unit != "percent" or data.validation.value >= 100):
        said = f"expects a share below 100% such as 1%, or a list of sources, not {data.validation}"
        yield ("data", "validation"), said
    for keys, source in _sources(recipe):
        yield from ((keys + rest, message) for rest, message in _source_contradictions(source))
    if train.duration.unit == "percent":
        yield ("train", "duration"), f"expects steps, tokens, epochs or minutes, not {train.duration}"
    for keys, amount in {
        ("train", "duration"): train.duration,
        ("evaluation", "every"): recipe.evaluation.every,
        ("checkpoints", "every"): recipe.checkpoints.every,
    }.items():
        if amount.value == 0:
            yield keys, "must be more than nothing"
    micro = train.micro_batch_size
    if micro != "auto" and train.batch_size % micro and not draft.doubtful(("train", "batch_size")):
        relation = "is larger than" if micro > train.batch_size else "does not divide"
        yield ("train", "micro_batch_size"), f"{micro} {relation} train.batch_size, {train.batch_size}"
    if masking.mask + masking.random > 1 + 1e-9 and not draft.doubtful(("masking", "mask")):
        yield ("masking", "random"), f"mask and random together are {masking.mask + masking.random:g}, more than 1"
    if schedule.name == "wsd" and schedule.warmup.unit == schedule.decay.unit == "percent":
        total = schedule.warmup.value + schedule.decay.value
        if total > 100 and not draft.doubtful(("schedule", "warmup")):
            yield ("schedule", "decay"), f"warmup and decay together are {total:g}%, more than the run"
    yield from _not_there_yet(recipe)


def _sources(recipe: Recipe) -> Iterator[tuple[Keys, Source]]:
    """Every source, with the way to it."""
    for key, sources in (("sources", recipe.data.sources), ("validation", recipe.data.validation)):
        if not isinstance(sources, Amount):
            yield from ((("data", key, index), source) for index, source in enumerate(sources))


def _source_contradictions(source: Source) -> Iterator[tuple[Keys, str]]:
    kinds = [kind for kind in _KEYS_OF_KIND if getattr(source, kind) is not None]
    if len(kinds) != 1:
        yield (), f"expects exactly one of builtin, files and hub, not {' and '.join(kinds) or 'none of them'}"
    if source.files == ():
        yield ("files",), "is an empty list"
    if (source.prompt_column is None) != (source.completion_column is None):
        given, other = ("prompt", "completion") if source.prompt_column else ("completion", "prompt")
        yield (f"{given}_column",), f"goes together with {other}_column, which is missing"
    if source.size is not None:
        try:
            size_in_bytes(source.size)
        except RecipeError as error:
            yield ("size",), error.message


def _not_there_yet(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Keys of the recipe whose machinery does not exist; a line goes away with each that is built."""
    if recipe.trackers:
        yield ("trackers",), "experiment trackers are not there yet; remove the key"
    if recipe.hub.repo_id:
        yield ("hub", "repo_id"), "pushing is not there yet; remove the key"
    if recipe.optimizer.name == "muon":
        yield ("optimizer", "name"), "muon is not there yet; use adamw"
    for keys, source in _sources(recipe):
        if source.streaming:
            yield (*keys, "streaming"), "streaming is not there yet; remove the key"


_COLUMNS = ("text_column", "prompt_column", "completion_column")
_KEYS_OF_KIND = {
    "builtin": ("size",),
    "files": ("documents", *_COLUMNS),
    "hub": ("subset", "split", "streaming", *_COLUMNS),
}
"""The keys of a source that go with each kind of it; weight goes with all."""


def _idle_keys(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Keys that say nothing in this recipe, and why: given, they are errors; written out, they are left out."""
    if recipe.objective == "clm":
        yield ("masking",), "masking is for mlm, and the objective is clm"
    if recipe.schedule.name != "wsd":
        yield ("schedule", "decay"), f"decay is for wsd, and the schedule is {recipe.schedule.name}"
    if recipe.model.from_:
        yield ("model", "architecture"), "architecture and from exclude each other: model.from brings its own"
        yield ("model", "config"), "config is for a new model: model.from brings its own"
    tokenizer = recipe.tokenizer
    if tokenizer.from_ or recipe.model.from_:
        owner = "tokenizer.from" if tokenizer.from_ else "model.from"
        for key in ("algorithm", "vocab_size", "lowercase"):
            yield ("tokenizer", key), f"{key} is for a tokenizer to train: {owner} brings an existing one"
    for keys, source in _sources(recipe):
        kinds = [kind for kind in _KEYS_OF_KIND if getattr(source, kind) is not None]
        if len(kinds) != 1:
            continue
        pairs = source.prompt_column is not None and source.completion_column is not None
        for field_ in dataclasses.fields(source):
            key = field_.name
            if key not in (*kinds, "weight", *_KEYS_OF_KIND[kinds[0]]):
                owners = " or ".join(kind for kind, own in _KEYS_OF_KIND.items() if key in own)
                yield (*keys, key), f"goes with {owners}, and the source is {kinds[0]}"
            elif key in _COLUMNS and pairs == (key == "text_column"):
                yield (*keys, key), "text_column and prompt_column exclude each other"
