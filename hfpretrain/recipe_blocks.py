"""The blocks of a recipe as frozen dataclasses, with every default.

The docstring under a field is its description in the JSON Schema and the reference: there is no other place for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hfpretrain.amounts import Amount
from hfpretrain.recipe_types import Range

WholeNumber = Annotated[int, Range(minimum=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(minimum=0)]
Rate = Annotated[float, Range(above=0, maximum=1)]
Share = Annotated[float, Range(minimum=0, maximum=1)]
BelowOne = Annotated[float, Range(minimum=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network: an architecture to start from scratch, or existing weights to go on from."""

    architecture: str | None = None
    """Any model type of AutoModelForMaskedLM or AutoModelForCausalLM: bert, modernbert, gpt2, llama, ..."""
    size: str | WholeNumber | None = None
    """Choose depth, width, heads and feed-forward for so many parameters, all of them, embeddings included: 15M, 350k,
    1.1B. They are in the proportions of the architecture's published models; keys under config stay as they are."""
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
    """One place that documents come from: exactly one of builtin, files, hub and tokens."""

    builtin: Literal["everyday"] | None = None
    """A corpus that ships with hfpretrain: everyday English from a grammar with known probabilities."""
    size: str | None = None
    """How much of the builtin corpus to generate, e.g. 3MB (the default)."""
    files: str | tuple[str, ...] | None = None
    """Local files: a path, a folder, a glob (`corpus/**/*.jsonl.gz`) or a list of them. Relative
    paths are taken from the working directory."""
    hub: str | None = None
    """A data set on the Hub: org/dataset, org/dataset@revision (a branch, a tag or a commit), or the folder of one."""
    tokens: str | tuple[str, ...] | None = None
    """Files of token ids that another tool made: .bin, .npy, or datatrove's .ds; a path, a folder, a glob or a list.
    tokenizer.from names the tokenizer they were made with."""
    dtype: Literal["uint16", "int32", "uint32", "int64"] | None = None
    """What the ids of .bin files are; the default is uint16."""
    subset: str | None = None
    """The Hub data set's configuration name."""
    commit: str | None = None
    """The Hub data set's commit. A run writes the one that it begins with into its recipe.yaml, and goes on with it,
    whatever the Hub has by then."""
    split: str = "train"
    """The Hub data set's split."""
    streaming: bool = False
    """Read the data while training instead of before it, in the order it is in but for a shuffle within windows
    of a million tokens. Its end is not known, so durations are in steps, tokens or time."""
    text_column: str = "text"
    """The column (or JSON key) that holds the text."""
    prompt_column: str | None = None
    """The column of prompts; together with completion_column, only the completion is learnt."""
    completion_column: str | None = None
    """The column of completions."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What a text file is: one document, or one per paragraph or line."""
    min_chars: WholeNumber | None = None
    """Leave out documents with fewer characters than this. A pair's are those of prompt and completion."""
    max_chars: WholeNumber | None = None
    """Leave out documents with more characters than this."""
    deduplicate: bool = False
    """Leave out documents whose exact text was there before, in this source or one above it that asks for the same."""
    drop_list: str | None = None
    """Leave out documents whose text has a SHA-256 in this file: in hex, one a line, as sha256sum prints them."""
    weight: Positive | None = None
    """Share of the training blocks, and so of the tokens, relative to the other sources. Without any weight
    every source is seen once an epoch."""
    repeat: bool = True
    """Begin the source anew when it is used up. false: its share goes to the others from then on."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run with data of its own, e.g. the last fifth on the best texts."""

    until: Amount | None = None
    """Where the stage ends: steps, tokens, epochs or percent of the run from its start. The last one has none."""
    sources: tuple[Source, ...] = ()
    """Default: data.sources. A source that an earlier stage had too, by itself or by weight and in blocks of
    the same size, goes on where it was: none of it is seen twice before all of it was seen."""
    block_size: Annotated[int, Range(minimum=2)] | None = None
    """Default: data.block_size, which validation keeps throughout."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, what is held out, and how documents become blocks."""

    sources: tuple[Source, ...] = ()
    """One or more sources."""
    stages: tuple[Stage, ...] = ()
    """Stages of the run with other sources or blocks, in turn. Default: the whole run is one."""
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
class Ramp:
    """A share that moves in a straight line over the run, a little with each step."""

    from_: Rate = field(metadata={"alias": "from"})
    """In the first step."""
    to: Rate
    """In the last step."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which tokens the model has to guess (mlm only)."""

    rate: Rate | Ramp = 0.15
    """Share of the tokens that are chosen as targets, or {from: 0.3, to: 0.15} for one that moves over the run."""
    mask: Share = 0.8
    """Share of the chosen ones that are replaced by the mask token."""
    random: Share = 0.1
    """Share of the chosen ones that are replaced by a random token; the rest stay as they are."""
    unit: Literal["token", "word", "span"] = "token"
    """What is chosen: single tokens, whole words, or spans of tokens that follow one another."""
    mean_span: Annotated[float, Range(above=1)] = 3.0
    """Tokens of a span on average; the lengths are geometric."""


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle:
    """Documents turned round for a next-word model to learn to fill gaps (clm only): prefix, suffix, middle."""

    rate: Share = 0.0
    """Share of the documents that are turned in training, each part of one that a block shows by itself. The
    held-out data stays as it is. A block has room for three more tokens per document, so that no token is lost."""
    spm: Share = 0.5
    """Share of the turned ones that have the suffix first: suffix, prefix, middle."""


@dataclass(frozen=True, kw_only=True)
class BatchRamp:
    """A batch that grows with the run, by its first size at a time."""

    from_: WholeNumber = field(metadata={"alias": "from"})
    """Blocks of the first step."""
    to: WholeNumber
    """Blocks of a step from then on: a multiple of the first size."""
    over: Amount = Amount.percent(20)
    """When it has grown to that: steps, tokens or percent of the steps of the run from its start."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how large a step, and in which arithmetic."""

    duration: Amount = Amount.steps(1000)
    """How long to train: steps, tokens, epochs or minutes; 20 tokens per parameter, of which all count; or a budget,
    such as 1e18 FLOPs, per token 6 for each weight that multiplies, the head among them, and what attention takes."""
    batch_size: WholeNumber | BatchRamp = 64
    """Blocks per step, over all processes and micro-batches, or {from: 16, to: 128, over: 20%} for one that grows. The
    learning rate does not follow it."""
    micro_batch_size: WholeNumber | Literal["auto"] = "auto"
    """Blocks that a device sees at once; a step accumulates as many as it takes."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights stay in fp32."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; auto compiles on CUDA."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Keep less for the backward pass and compute it again: slower, in less memory. auto: where it would not fit."""
    shortcuts: Literal["auto", "none"] = "auto"
    """auto: the loss is found in a faster way where that is proven to give what the plain model gives, and on a CPU
    dropout is drawn from a faster source. none: the plain model, and PyTorch's dropout."""
    gradient_clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    z_loss: NotNegative = 0.0
    """So much times the squared log of the softmax's denominator is added to what is learnt, which keeps logits small;
    1e-4 is usual. The losses that are shown are without it."""
    max_time: Amount | None = None
    """Stop after this much time (e.g. 11.5 hours), saved and ready for --resume, before a job's own limit does."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is no finite number, its update is not made, and the run stops; or the step is passed
    over, at most 3 in a row."""
    skip_spikes: bool = False
    """Leave out the update of a step whose loss is 6 deviations, and at least 3 %, above the mean of 128 steps; such
    steps are said anyway."""
    log_every: WholeNumber = 10
    """Steps between two lines of metrics."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What turns gradients into new weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: orthogonal updates for the hidden matrices, AdamW for the rest."""
    lr: Positive | Literal["auto"] = "auto"
    """Peak learning rate. auto: chosen by the compute of the run and the targets of a step (DeepSeek-AI 2024), between
    1e-5 and what the kind of network bears, at most 5e-3, and a tenth of that with model.from."""
    weight_decay: NotNegative = 0.1
    """Decay of the weight matrices; norms, biases and embeddings have none."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    lr_factors: dict[str, Any] = field(default_factory=dict)
    """Learning rates of parts of the model, as factors of lr: {embeddings: 2, output: 0.5, "*.layers.0.*": 0.1}. A part
    is embeddings, output (where it is not the embeddings), matrices, vectors (norms and biases), or a pattern of
    parameters' names; the first that a parameter is in counts. 0 leaves it as it is."""
    from_checkpoint: bool = False
    """Start with the optimizer's state that model.from, a checkpoint of a run, holds: its moments, and how many steps
    they are of. Without it they start from nothing."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves over a run."""

    name: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """wsd: warm-up, stable, decay. cosine, linear: down over the whole run. constant: warm-up only."""
    warmup: Amount = Amount.percent(5)
    """Rises from zero over this much of the run."""
    decay: Amount = Amount.percent(20)
    """wsd only: falls over this much of the run at its end."""
    shape: Literal["sqrt", "linear"] = "sqrt"
    """wsd only: how it falls, with 1 - sqrt or in a straight line."""
    final: Share = 0.0
    """Share of the peak learning rate that is left at the end."""


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """A second model whose weights are an average over the run, saved as averaged/ beside the model."""

    method: Literal["none", "ema", "checkpoints"] = "none"
    """ema: an exponential moving average over every step. checkpoints: the mean of the weights at the last checkpoints
    that are due, the end among them."""
    decay: BelowOne = 0.999
    """ema only: the share of the average that stays at a step. In the first steps it is less, (1 + step) / (10 + step),
    so that the initial weights are soon forgotten."""
    last: Annotated[int, Range(minimum=2)] = 5
    """checkpoints only: of how many."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When the held-out data is looked at, and what for. It always is at the end of a run."""

    every: Amount = Amount.percent(10)
    """Steps, tokens, epochs, minutes or percent of the run between two evaluations."""
    max_tokens: WholeNumber | None = None
    """Evaluate on this many held-out tokens at most while training; the last evaluation takes them all."""
    prompts: tuple[str, ...] | None = None
    """Texts that the model is shown on each time: to continue, or with [MASK] in them. Default: hub.examples, or how
    held-out documents begin; an empty list shows none."""
    masking_rate: Rate = 0.15
    """Share of the held-out tokens that are guessed (mlm only), whatever masking.rate is, so that runs compare."""
    pseudo_perplexity: bool = False
    """Also mask each held-out token by itself (mlm only): a forward pass per token, so set max_tokens."""
    metrics: tuple[str, ...] = ()
    """More metrics of the evaluate library, by the path of a script or a name on the Hub; a metric is code, and runs
    with your rights. They see the likeliest and the right token id of targets, of the first million held-out tokens."""
    pairs: str | None = None
    """Minimal pairs to look at too: a .jsonl with sentence_good and sentence_bad, as BLiMP has them."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the run is saved, so that it can go on."""

    every: Amount = Amount.percent(20)
    """Steps, tokens, epochs, minutes or percent of the run between two checkpoints."""
    keep: Annotated[int, Range(minimum=2)] = 2
    """How many of the newest checkpoints stay; one alone may be damaged."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How several processes train one model. What is learnt is the same, but for rounding and, in bf16, for the
    arithmetic of all but plain ddp."""

    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """ddp: each process holds the whole model. fsdp: weights, gradients and the optimizer's state are shared out among
    the processes (FSDP2), for models that one device cannot hold; in bf16 everything is computed in it. deepspeed: what
    zero_stage says is shared out, by DeepSpeed's ZeRO, which `pip install "hfpretrain[deepspeed]"` brings. One process
    alone has nothing to share out. auto: ddp, or what `accelerate launch` was configured for."""
    shard_within: Annotated[int, Range(minimum=2)] | None = None
    """fsdp only: processes that hold the model together, e.g. those of one machine; groups of them are replicas (HSDP).
    Default: all processes are one group."""
    reshard_after_forward: bool = True
    """fsdp only: let go of a layer's weights after its forward pass and gather them again for the backward pass. false
    takes more memory and gathers once."""
    zero_stage: Annotated[int, Range(minimum=1, maximum=3)] = 2
    """deepspeed only: what is shared out. 1: the optimizer's state; 2: gradients as well; 3: weights as well."""
    tensor: Annotated[int, Range(minimum=1)] = 1
    """Neighbouring processes that hold the matrices of every layer together and see the same rows (tensor parallelism),
    for architectures that transformers has a plan for; best within a machine, and a divisor of the heads. Groups of
    them are replicas, or with fsdp share the rest out."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where the model is pushed to, and what its card says there."""

    repo_id: str | None = None
    """org/name; null pushes nothing."""
    private: bool = True
    """Create the repository as a private one."""
    push: Literal["final", "checkpoints"] = "final"
    """Push the finished model, or every checkpoint as well, each to a branch of its own."""
    name_by: Literal["step", "words"] = "step"
    """How those branches are called: step-400, or by the words seen so far as BabyLM asks, chck_10M."""
    license: str | None = None
    """The model's licence on its card, as the Hub writes it: mit, apache-2.0, cc-by-4.0, ..."""
    language: str | tuple[str, ...] | None = None
    """The text's language or languages on the card, as ISO 639 codes: en, or [en, de]."""
    examples: tuple[str, ...] = ()
    """Texts to show the model on, in its card: to continue, or with [MASK]. Default: how documents of the
    data begin, if all of it is public (builtin or on the Hub); of local files nothing is shown."""


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
    fim: FillInTheMiddle = FillInTheMiddle()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging = Averaging()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    parallel: Parallel = Parallel()
    trackers: tuple[str, ...] = ()
    """Accelerate's names of experiment trackers: tensorboard, wandb, trackio, mlflow, ... They are told the recipe,
    every line of metrics and the samples; one that fails never stops a run. Each reads its own environment, such as
    WANDB_MODE=offline. What tensorboard and wandb write here is in logs/ of the run."""
    hub: Hub = Hub()
