"""`hfpretrain check --gpus`: a run planned for machines that are not at hand, without data, weights or a GPU."""

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfpretrain.amounts import OF_THE_MODEL, count, span
from hfpretrain.chips import chip_called
from hfpretrain.modeling.flops import estimated_flops_per_token
from hfpretrain.modeling.footprint import Footprint, footprint
from hfpretrain.modeling.model import outline_model
from hfpretrain.modeling.parameters import in_words, shape_of
from hfpretrain.modeling.tokenizer import load_tokenizer
from hfpretrain.place import bytes_each
from hfpretrain.recipe import Parallel, Ramp, Recipe
from hfpretrain.recipe_stages import batch_sizes, longest_block
from hfpretrain.scaling import (
    LIBRARIES,
    ROOM,
    Cluster,
    Job,
    Memory,
    Plan,
    Seconds,
    best,
    multiple,
    plans,
    require_whole,
)

_SPECIAL = {
    "mlm": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "clm": {"pad": "<pad>", "bos": "<s>", "eos": "</s>"},
}
_BYTE_WORDS = 256
"""Of the byte tokenizer, and what is taken for one of characters, which only the data could tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A recipe's plan for a cluster."""

    recipe: Recipe
    shape: dict[str, int]
    words: int
    model: Footprint
    job: Job
    cluster: Cluster
    plans: list[Plan]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Everything, in bytes and seconds."""
        taken = best(self.plans)
        return {
            "name": self.recipe.name,
            "vocabulary": self.words,
            "model": dataclasses.asdict(self.model),
            "job": dataclasses.asdict(self.job),
            "cluster": dataclasses.asdict(self.cluster) | {"nodes": self.cluster.nodes},
            "plans": [_plan_json(plan, self.recipe) for plan in self.plans],
            "take": None if taken is None else _plan_json(taken, self.recipe),
            "notes": self.notes,
        }

    def __str__(self) -> str:
        return "\n".join([*self._heading(), "", *self._memory(), "", *self._time(), "", *self._end()])

    def _heading(self) -> Iterator[str]:
        model, job, cluster, chip = self.model, self.job, self.cluster, self.cluster.chip
        rate = chip.bf16 if job.half else chip.fp32
        tokens = job.batch_size * job.block_size
        nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''} of {cluster.per_node}"
        network = f", network {cluster.network:g} Gb/s for each" if cluster.nodes > 1 else ""
        of_run = ""
        if job.tokens is not None:
            of_run = f"; the run {count(job.tokens)} tokens, {count(job.tokens / tokens)} steps"
        name = self.recipe.model.architecture or self.recipe.model.from_
        facts = {
            "recipe": f"{self.recipe.name}: valid",
            "model": f"{name}, {count(model.parameters)} parameters ({model.parameters}); {in_words(self.shape)}; "
            f"{self.words} words",
            "step": f"{job.batch_size} blocks of {job.block_size}, {count(tokens)} tokens{of_run}",
            "compute": f"{count(model.flops_per_token)} FLOPs per token"
            + ("" if job.tokens is None else f", {model.flops_per_token * job.tokens:.3g} in all"),
            "cluster": f"{cluster.gpus} x {chip.name}, {nodes}: each {rate:g} TFLOP/s "
            f"{'bf16' if job.half else 'fp32'}, {chip.memory:g} GB at {chip.bandwidth:g} TB/s; {chip.link_name} "
            f"{chip.link:g} GB/s{network}",
            "assumed": f"{cluster.mfu:.0%} of that rate (MFU); {ROOM:.0%} of the memory is used, of it "
            f"{LIBRARIES / 1e9:g} GB by libraries",
        }
        yield from (f"{name:<10} {value}" for name, value in facts.items())

    def _memory(self) -> list[str]:
        names = [field.name for field in dataclasses.fields(Memory)]
        rows = [["GB on each GPU", "blocks", *names, "total", ""]]
        for plan in self.plans:
            parts = dataclasses.astuple(plan.memory)
            room = f"of {self.cluster.chip.memory:g}: " + ("fits" if plan.fits else "does not fit")
            rows.append([plan.name, str(plan.micro_batch_size), *map(_gigabytes, (*parts, plan.memory.total)), room])
        return _table(rows)

    def _time(self) -> list[str]:
        fitting = [plan for plan in self.plans if plan.fits]
        names = [field.name for field in dataclasses.fields(Seconds)]
        rows = [["seconds a step", *names, "step", "tokens/s", "days", "bound by"]]
        for plan in fitting:
            parts = [f"{value:.3g}" for value in (*dataclasses.astuple(plan.seconds), plan.seconds.step)]
            days = "?" if plan.days is None else f"{plan.days:.3g}"
            rows.append([plan.name, *parts, count(plan.tokens_per_second), days, plan.seconds.bound])
        return _table(rows) if fitting else []

    def _end(self) -> Iterator[str]:
        yield from (f"{'note':<10} {note}" for note in self.notes)
        taken = best(self.plans)
        if taken is None:
            yield f"{'take':<10} nothing fits: more GPUs to shard over, more memory, or a smaller model or block"
            return
        days = ""
        if taken.days is not None:
            days = f", about {f'{taken.days:.1f} days' if taken.days >= 2 else span(86400 * taken.days)}"
        settings = " ".join(map(shlex.quote, _overrides(taken, self.recipe)))
        yield f"{'take':<10} {taken.name}: {settings}{days}"


def plan_on(
    recipe: Recipe,
    *,
    gpu: str,
    gpus: int,
    per_node: int | None = None,
    network: float | None = None,
    mfu: float | None = None,
) -> Planned:
    """What the recipe takes on so many GPUs of a kind, by strategy.

    Neither data nor weights are read, nor is a tokenizer trained: its words are as many as the recipe asks for. A
    tokenizer or a model that the recipe names is looked up. Raises UserError where a name is unknown or numbers do not
    go together.
    """
    chip = chip_called(gpu)
    cluster = Cluster(chip=chip, gpus=gpus, per_node=per_node or min(8, gpus), network=network or chip.network)
    cluster = dataclasses.replace(cluster, mfu=mfu) if mfu else cluster
    setting = recipe.train.activation_checkpointing
    given = recipe.train.micro_batch_size
    job = Job(
        batch_size=batch_sizes(recipe.train)[1],
        block_size=longest_block(recipe.data)[1],
        micro_batch_size=None if given == "auto" else given,
        checkpointing=None if setting == "auto" else setting,
        optimizer=recipe.optimizer.name,
        half=recipe.train.precision != "fp32",
        average=recipe.averaging.method != "none",
    )
    first, largest = batch_sizes(recipe.train)  # the largest is a multiple of the first
    key = "train.batch_size" if first == largest else "train.batch_size.from"
    require_whole(first, cluster, recipe.parallel, key=key)  # before what takes seconds
    tokenizer, notes = _words(recipe)
    outline = outline_model(recipe, tokenizer)
    rate = recipe.masking.rate
    share = 1.0 if recipe.objective == "clm" else (max(rate.from_, rate.to) if isinstance(rate, Ramp) else rate)
    model = footprint(
        outline,
        block_size=job.block_size,
        half=job.half,
        targets=share,
        documents=recipe.data.packing != "concat",
        shortcuts=recipe.train.shortcuts == "auto",
    )
    if not model.counted:
        notes.append(
            "this architecture cannot be followed without numbers: activations are taken for 34 bytes per token, unit "
            "and layer, and every weight, also of each expert, for one that multiplies every token"
        )
    if recipe.optimizer.name == "muon" and gpus > 1:
        notes.append(
            "Muon works on whole matrices, each GPU on all of them: gathering those that are sharded is not counted"
        )
    tokens = _tokens(recipe, model, job, estimated_flops_per_token(outline, block_size=job.block_size))
    if tokens is None:
        notes.append(f"a duration of {recipe.train.duration} is not known as tokens without the data, or the speed")
    if not isinstance(recipe.train.batch_size, int) or recipe.data.stages:
        notes.append("batches or blocks change over the run: the largest are counted")
    job = dataclasses.replace(job, tokens=tokens)
    if recipe.parallel.tensor > 1 and gpus > 1:
        said = f"parallel.tensor {recipe.parallel.tensor} is not planned: all else here is without it"
        if job.batch_size % gpus:
            job = dataclasses.replace(job, batch_size=multiple(job.batch_size, gpus))
            said += f", and for steps of {job.batch_size} blocks instead of {largest}, which do not divide by {gpus}"
        notes.append(said)
    if recipe.parallel.strategy == "deepspeed" and gpus > 1:
        notes.append(_of_deepspeed(recipe.parallel, model, job, gpus))
    return Planned(
        recipe=recipe,
        shape=shape_of(outline.config),
        words=outline.get_input_embeddings().weight.shape[0],
        model=model,
        job=job,
        cluster=cluster,
        plans=plans(model, job, cluster, hybrid=recipe.parallel.tensor == 1),
        notes=notes,
    )


def _words(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer of the recipe, or a stand-in with as many words where it would be trained; and what to say."""
    existing = recipe.tokenizer.from_ or recipe.model.from_
    if existing:
        return load_tokenizer(existing, recipe.objective), []
    special = _SPECIAL[recipe.objective]
    size, notes = recipe.tokenizer.vocab_size, []
    if recipe.tokenizer.algorithm in ("byte", "char"):
        size = _BYTE_WORDS + len(special)
        if recipe.tokenizer.algorithm == "char":
            notes = [f"which characters there are only the data would tell: taken for {size} words"]
    names = [*special.values(), *map(str, range(size))][:size]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, special.get("unk", "<s>")))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, **{f"{role}_token": name for role, name in special.items()}
    ), notes


def _tokens(recipe: Recipe, model: Footprint, job: Job, flops_per_token: float) -> float | None:
    """Tokens of the run, where they follow from the recipe alone."""
    duration = recipe.train.duration
    if duration.unit == "steps":
        return duration.value * job.batch_size * job.block_size
    if duration.unit == "tokens":
        return duration.value
    if duration.unit in OF_THE_MODEL:
        return duration.value / flops_per_token if duration.unit == "FLOPs" else duration.value * model.parameters
    return None


def _of_deepspeed(settings: Parallel, model: Footprint, job: Job, gpus: int) -> str:
    """What is known of a strategy that is not planned."""
    # Stage 3 has bfloat16 weights beside the masters, where it computes in them.
    each = bytes_each(settings, gpus) if settings.zero_stage < 3 or job.half else 16 / gpus
    return (
        f"parallel.strategy deepspeed is not planned: of each parameter a process of {gpus} keeps {each:.3g} bytes at "
        f"zero_stage {settings.zero_stage}, {_gigabytes(each * model.parameters)} GB of weights, gradients and "
        "optimizer; activations, and what is gathered or copied meanwhile, come on top"
    )


def _overrides(plan: Plan, recipe: Recipe) -> list[str]:
    """What to set in the recipe; where that says how to be parallel, this as a whole, so that no key contradicts."""
    own = recipe.parallel
    found = plan.overrides()
    if own == Parallel():
        return found
    block = {"strategy": "ddp" if plan.shards == 1 else "fsdp"}
    if plan.strategy == "hybrid":
        block["shard_within"] = str(plan.shards)
    if own.tensor > 1:
        block["tensor"] = str(own.tensor)
    of_block = ", ".join(f"{key}: {value}" for key, value in block.items())
    return [f"parallel={{{of_block}}}", *(each for each in found if not each.startswith("parallel."))]


def _plan_json(plan: Plan, recipe: Recipe) -> dict[str, Any]:
    memory = dataclasses.asdict(plan.memory) | {"total": plan.memory.total}
    seconds = dataclasses.asdict(plan.seconds) | {"step": plan.seconds.step, "bound": plan.seconds.bound}
    return dataclasses.asdict(plan) | {"memory": memory, "seconds": seconds, "set": _overrides(plan, recipe)}


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 5e7 or not size else f"{size / 1e9:.3f}"


def _table(rows: list[list[str]]) -> list[str]:
    """Columns side by side, numbers to the right, the first and the last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if place in (0, last) else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
