"""Memory and time of a step on many GPUs, by strategy: arithmetic on a model's footprint and a chip's data sheet.

Weights and optimizer states are float32, and matrices are multiplied in half precision where the run does that. The
strategies are those of Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054): ddp keeps everything on every GPU; fsdp shards
weights, gradients and optimizer states over all of them (stage 3, in PyTorch as FSDP: Zhao et al. 2023, arXiv
2304.11277); hybrid does so within a node, and nodes are copies of each other. Collectives are rings, in which each of n
GPUs sends (n-1)/n of the bytes to gather or to scatter, and twice that for a sum that all get (Patarasuk & Yuan 2009).
What compute takes is an estimate by a share of the chip's rate that is assumed; the times of memory and network are
bounds from below, without latency, stragglers and other users.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from hfpretrain.chips import Chip
from hfpretrain.errors import UserError
from hfpretrain.modeling.footprint import Footprint
from hfpretrain.recipe import Parallel

ROOM = 0.92
"""The share of a chip's memory that may be used, as the search for a micro-batch size has it; the rest is left to the
allocator's gaps."""
LIBRARIES = 1.5e9
"""Bytes for the driver's context, work space of matrix products and buffers of collectives: assumed, not measured."""
MFU = 0.4
"""The share of the chip's matrix rate that is assumed. Published runs of large dense models came to about 0.4 to 0.55:
PaLM 540B 0.46 (Chowdhery et al. 2022), GPT of 22B to 1T 0.42 to 0.56 (Korthikanti et al. 2022), Llama 3 405B 0.38 to
0.43 on H100 (Grattafiori et al. 2024). Small models and small micro-batches come to less."""
UPDATE = 40
"""Bytes that the memory moves for each parameter of an update: weight, gradient and two moments are read, all but the
gradient are written (28); clipping reads the gradient once, and reads and writes it once more (12)."""
PASS = 18
"""Bytes for each parameter and micro-batch: the weight is read and its half-precision copy written (6), which forward
and backward read (4); the gradient is read and written (8)."""
MUON_WORK = 14
"""Bytes that Muon's iteration takes for each number of the matrices that it works on at once: momenta and updates in
float32, and three in half precision (training/optimizer.py)."""
CLOSE = 0.05
"""Of two strategies whose speeds differ by less than this share the simpler one is taken: arithmetic is no finer."""

Strategy = Literal["ddp", "hybrid", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """So many GPUs, in nodes of equal size."""

    chip: Chip
    gpus: int
    per_node: int
    network: float
    """Between nodes, in 1e9 bits per second for each GPU."""
    mfu: float = MFU

    @property
    def nodes(self) -> int:
        return self.gpus // self.per_node


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run asks of each step."""

    batch_size: int
    """Blocks of a step, over all GPUs."""
    block_size: int
    micro_batch_size: int | None = None
    """Blocks that a GPU sees at once; None for the most that fit."""
    checkpointing: bool | None = None
    """Whether layers are computed again in the backward pass; None where both are to be looked at."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    half: bool = True
    """Whether matrices are multiplied in half precision."""
    average: bool = False
    """Whether an average of the weights is kept beside them."""
    tokens: float | None = None
    """Of the whole run; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each GPU at the peak of a step."""

    weights: float
    copies: float
    """In half precision, of all weights, by autocast; with fsdp there are those gathered instead."""
    gradients: float
    optimizer: float
    gathered: float
    """Whole layers of what is sharded, or the buckets of ddp in which gradients are sent."""
    activations: float
    loss: float
    other: float
    """Libraries, and work space of the optimizer where it is more than what is free again by then."""

    @property
    def total(self) -> float:
        parts = (self.weights, self.copies, self.gradients, self.optimizer, self.gathered)
        return sum(parts) + self.activations + self.loss + self.other


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of a step, each as if it were alone. All but the update go on at the same time; that comes after them."""

    compute: float
    memory: float
    """What reading weights and adding up gradients takes the chip's memory."""
    link: float
    """Between the GPUs of a node."""
    network: float
    """Between nodes."""
    update: float
    """What the update takes the chip's memory, and Muon's iteration."""

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.link, self.network) + self.update

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "compute": self.compute,
            "memory bandwidth": self.memory,
            "links within nodes": self.link,
            "network between nodes": self.network,
            "update": self.update,
        }
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to train on the cluster."""

    strategy: Strategy
    shards: int
    """GPUs that hold one copy of weights, gradients and optimizer states between them."""
    checkpointing: bool
    micro_batch_size: int
    memory: Memory
    fits: bool
    seconds: Seconds
    tokens_per_second: float
    days: float | None
    """Of the whole run, without evaluations and checkpoints."""

    @property
    def name(self) -> str:
        return self.strategy + (", checkpointing" if self.checkpointing else "")

    def overrides(self) -> list[str]:
        """What to set in the recipe."""
        found = [f"train.micro_batch_size={self.micro_batch_size}"]
        found.append(f"train.activation_checkpointing={str(self.checkpointing).lower()}")
        if self.shards > 1:
            found.insert(0, "parallel.strategy=fsdp")
        if self.strategy == "hybrid":
            found.insert(1, f"parallel.shard_within={self.shards}")
        return found


def require_whole(blocks: int, cluster: Cluster, parallel: Parallel, *, key: str = "train.batch_size") -> None:
    """Raises UserError where GPUs do not make whole nodes and groups, or a step's blocks do not divide among them.

    `parallel.tensor` GPUs see the same blocks, which divide among groups of them. `key` is the recipe's of the blocks.
    """
    if cluster.gpus % cluster.per_node:
        raise UserError(
            f"--gpus {cluster.gpus} do not make whole nodes of {cluster.per_node}",
            hint="give a multiple, or --gpus-per-node",
        )
    size = 1
    if cluster.gpus > 1:  # one alone has nothing to share out
        size = parallel.tensor
        for name, within in (("tensor", size), ("shard_within", parallel.shard_within or 1)):
            if cluster.gpus % within:
                raise UserError(
                    f"parallel.{name}: {cluster.gpus} GPUs are no groups of {within}",
                    hint="set a divisor of the number of GPUs",
                )
    groups = cluster.gpus // size
    if blocks % groups:
        who = f"{groups} GPUs" if size == 1 else f"{groups} groups of {size} GPUs"
        raise UserError(
            f"train.batch_size: {blocks} blocks do not divide by {who}",
            hint=f"set a multiple of {groups}, for example {key}={multiple(blocks, groups)}",
        )


def plans(model: Footprint, job: Job, cluster: Cluster, *, hybrid: bool = True) -> list[Plan]:
    """Every strategy, with and without activation checkpointing, at the largest micro-batch that fits.

    `hybrid` says whether that is among them.
    """
    require_whole(job.batch_size, cluster, Parallel())
    return [
        _plan(model, job, cluster, strategy, shards, checkpointing)
        for strategy, shards in _strategies(cluster)
        if hybrid or strategy != "hybrid"
        for checkpointing in ((False, True) if job.checkpointing is None else (job.checkpointing,))
        if model.can_checkpoint or not checkpointing
    ]


def best(found: Iterable[Plan]) -> Plan | None:
    """The fastest that fits; of those that are as fast as can be told, the first. None where none fits."""
    fitting = [plan for plan in found if plan.fits]
    fastest = max((plan.tokens_per_second for plan in fitting), default=0.0)
    return next((plan for plan in fitting if plan.tokens_per_second >= (1 - CLOSE) * fastest), None)


def memory_of(
    model: Footprint,
    job: Job,
    *,
    shards: int,
    copies: int,
    blocks: int,
    checkpointing: bool,
    libraries: float = LIBRARIES,
) -> Memory:
    """Bytes on one of `shards * copies` GPUs that sees so many blocks at once.

    With ddp (`shards` is 1) weights, gradients and AdamW's two moments are 16 bytes for each parameter, Muon's one
    moment 12 for each in its matrices; beside these the copies that autocast keeps, and ddp's buckets, which are as
    large as the gradients. Sharded, each has its part of these, two layers are whole (one computes while the next is
    gathered), what is in no layer is whole throughout, and so are the gradients of the part at work, before they are
    reduced in float32. Muon's iteration is on whole matrices, all of a shape, on each GPU, sharded or not.
    """
    numbers, number = model.parameters, 2 if job.half else 4
    moments = 8 * numbers - (4 * model.matrices if job.optimizer == "muon" else 0)
    if shards > 1:
        largest = max(model.largest_layer, model.outside)
        gathered = number * (2 * model.largest_layer + model.outside) + (number + 4) * largest
    else:
        gathered = 4 * numbers if copies > 1 else 0
    activations = model.activations(blocks, checkpointing=checkpointing, sharded=shards > 1)
    work = MUON_WORK * model.largest_group if job.optimizer == "muon" else 0
    free_by_then = activations + model.loss + (gathered if shards > 1 else 0)
    return Memory(
        weights=(8 if job.average else 4) * numbers / shards,
        copies=model.copies if shards == 1 else 0,
        gradients=4 * numbers / shards,
        optimizer=moments / shards,
        gathered=gathered,
        activations=activations,
        loss=model.loss,
        other=libraries + max(0.0, work - free_by_then),
    )


def seconds_of(
    model: Footprint, job: Job, cluster: Cluster, *, shards: int, blocks: int, checkpointing: bool
) -> Seconds:
    """Of a step of `job.batch_size` blocks, of which each GPU sees `blocks` at once.

    Gradients that are whole are reduced once a step, in float32: 4 bytes for each parameter to all. Sharded weights are
    gathered for the forward and again for the backward pass of every micro-batch, in the precision of the arithmetic,
    and their gradients scattered in float32. A ring over several nodes crosses from one to the next over the network
    cards of all the node's GPUs at once. Muon's iteration is on each GPU for all matrices.
    """
    chip, gpus, node = cluster.chip, cluster.gpus, cluster.per_node
    passes = job.batch_size // (gpus * blocks)
    again = 1 + model.in_layers / 3 if checkpointing else 1.0
    rate = 1e12 * (chip.bf16 if job.half else chip.fp32) * cluster.mfu
    compute = model.flops_per_token * again * job.batch_size * job.block_size / gpus / rate
    bandwidth, link, card = 1e12 * chip.bandwidth, 1e9 * chip.link, 1e9 / 8 * cluster.network
    sharded = passes * _ring(shards) * (2 * (2 if job.half else 4) + 4) * model.parameters
    whole = 2 * _ring(gpus // shards) * 4 * model.parameters / shards
    # Muon's iteration is in half precision where the chip is fast at it, whatever the run's is.
    iteration = model.orthogonal / (1e12 * chip.bf16 * cluster.mfu) if job.optimizer == "muon" else 0.0
    if shards == node and cluster.nodes > 1:  # hybrid: each GPU has the network for its own shard
        within, between = sharded, whole
    else:
        within = sharded + whole if node > 1 else 0.0
        between = (sharded + whole) / node if cluster.nodes > 1 else 0.0
    return Seconds(
        compute=compute,
        memory=passes * PASS * model.parameters / bandwidth,
        link=within / link,
        network=between / card,
        update=UPDATE * model.parameters / shards / bandwidth + iteration,
    )


def _ring(members: int) -> float:
    """The share of the bytes that each member of a ring sends to gather, or to scatter."""
    return (members - 1) / members


def _strategies(cluster: Cluster) -> Iterator[tuple[Strategy, int]]:
    """The simplest first."""
    yield "ddp", 1
    if cluster.nodes > 1 and cluster.per_node > 1:
        yield "hybrid", cluster.per_node
    if cluster.gpus > 1:
        yield "fsdp", cluster.gpus


def _plan(model: Footprint, job: Job, cluster: Cluster, strategy: Strategy, shards: int, checkpointing: bool) -> Plan:
    own = job.batch_size // cluster.gpus
    given = job.micro_batch_size
    sizes = [size for size in range(own, 0, -1) if own % size == 0] if given is None else [min(given, own)]
    for blocks in sizes:
        memory = memory_of(
            model,
            job,
            shards=shards,
            copies=cluster.gpus // shards,
            blocks=blocks,
            checkpointing=checkpointing,
        )
        fits = memory.total <= ROOM * 1e9 * cluster.chip.memory
        if fits:
            break
    seconds = seconds_of(model, job, cluster, shards=shards, blocks=blocks, checkpointing=checkpointing)
    speed = job.batch_size * job.block_size / seconds.step
    return Plan(
        strategy=strategy,
        shards=shards,
        checkpointing=checkpointing,
        micro_batch_size=blocks,
        memory=memory,
        fits=fits,
        seconds=seconds,
        tokens_per_second=speed,
        days=None if job.tokens is None else job.tokens / speed / 86400,
    )


def multiple(blocks: int, of: int) -> int:
    """The multiple of `of` that is nearest to so many blocks, and not none."""
    return max(1, round(blocks / of)) * of
