"""A session: tokenizer, batches, model and optimizer of one recipe, built and proven, ready for the loop."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain import hardware
from hfpretrain.card import LOCAL
from hfpretrain.data.batches import Batches, open_batches
from hfpretrain.errors import RecipeError
from hfpretrain.evaluation import Evaluator, prepare_evaluator
from hfpretrain.failures import meeting
from hfpretrain.files import size_in_words
from hfpretrain.hub import split_revision
from hfpretrain.modeling.attention import DocumentMasking, prove_document_masking
from hfpretrain.modeling.dropout import drops
from hfpretrain.modeling.elementwise import faster_norms, faster_rotations
from hfpretrain.modeling.flops import flops_per_token
from hfpretrain.modeling.loss import Loss, Shortcuts
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import Collator, check_tokenizer
from hfpretrain.modeling.parameters import count_parameters, count_without_embeddings, shape_of
from hfpretrain.modeling.passes import faster_passes
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.modeling.tokenizer import build_tokenizer, load_tokenizer
from hfpretrain.place import Place, bytes_each, in_words, shares
from hfpretrain.recipe import Amount, Model, Parallel, Recipe, Source
from hfpretrain.recipe_stages import batch_sizes, longest_block, training_sources
from hfpretrain.report import Curves
from hfpretrain.run import Run
from hfpretrain.training.averaging import Average
from hfpretrain.training.budget import in_tokens, learning_rate
from hfpretrain.training.checkpoint import save_with_transformers
from hfpretrain.training.guard import Guard, Judged
from hfpretrain.training.lineage import carry_over, check_carried, lineage_of
from hfpretrain.training.metrics import Phases
from hfpretrain.training.micro_batch import choose_micro_batch_size
from hfpretrain.training.optimizer import build_optimizers
from hfpretrain.training.schedule import Plan
from hfpretrain.training.sharding import shard_proven
from hfpretrain.training.zero import computes_in_half, fitting
from hfpretrain.training.zero_library import tell_device

log = logging.getLogger(__name__)


PATIENCE = timedelta(hours=4)
"""How long processes wait for one of them, which may be preparing the data, writing or hashing a checkpoint; NCCL's own
10 minutes are too few for that. One that ends is noticed by its launcher, one that hangs only so late."""
COUNTED_BLOCKS = 8
"""Blocks whose operations are counted: enough for the share of targets to be near the usual one."""


@dataclass(kw_only=True)
class Session:
    """Everything that the loop works with."""

    recipe: Recipe
    run: Run
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss: Loss
    batches: Batches
    collator: Collator
    plan: Plan
    micro_batch_size: int
    passes: AbstractContextManager[Any]
    """What forward and backward passes run in."""
    phases: Phases
    learning_rate: float
    """The peak of it."""
    place: Place
    facts: dict[str, Any]
    """What the summary and report.json say about the run."""
    guard: Guard
    evaluator: Evaluator
    average: Average | None = None
    judged: Judged = field(default_factory=Judged)
    curves: Curves = field(default_factory=Curves)
    """What the report has read of metrics.jsonl so far."""
    said_waiting: bool = False
    said_no_page: bool = False


def utilisation(session: Session, tokens_per_second: float) -> float:
    """The share of what the hardware can multiply that the model's products took (MFU), over all processes."""
    rate = session.facts["hardware_flops_per_second"] * session.accelerator.num_processes
    return float(session.facts["flops_per_token"] * tokens_per_second / rate)


def prepare_session(recipe: Recipe, run: Run, accelerator: Accelerator, checkpoint: Path | None = None) -> Session:
    """Builds everything that a run needs; all user errors come from here, before any training.

    A run that goes on has its tokenizer from the checkpoint, whose manifest covers it. The weights are not those of the
    checkpoint yet.
    """
    transformers.utils.logging.disable_progress_bar()  # a bar for every file saved
    sharded = shares(recipe.parallel, accelerator.num_processes) > 1
    strategy = recipe.parallel.strategy if sharded else "ddp"
    if accelerator.device.type == "cpu":
        hardware.keep_freed_memory(not sharded)
    carried = recipe.optimizer.from_checkpoint and checkpoint is None
    if carried:
        check_carried(recipe)
    with accelerator.main_process_first():  # the others find what the first one has prepared
        tokenizer = load_tokenizer(str(checkpoint), recipe.objective) if checkpoint else build_tokenizer(recipe)
        check_tokenizer(recipe, tokenizer)
        batches = open_batches(in_tokens(at_hand(recipe, checkpoint), tokenizer), tokenizer)
    plan = Plan.of(recipe, batches.order)
    model = build_model(at_hand(recipe, checkpoint), tokenizer)
    rate = learning_rate(recipe, model, plan)
    how = document_masking(recipe, model)
    compiled = recipe.train.compile is True or (
        recipe.train.compile == "auto"
        and accelerator.device.type == "cuda"
        and strategy != "deepspeed"
        and recipe.parallel.tensor == 1
    )
    collator = Collator(recipe, tokenizer, isolated=how is not None, steps=plan.steps, static=compiled)
    precision = hardware.choose_precision(recipe.train.precision, accelerator.device)
    by_hand = recipe.train.shortcuts == "auto" and accelerator.device.type == "cpu" and not compiled
    shortcuts = choose_shortcuts(recipe, model, how, collator, by_hand=by_hand)
    checkpointing = activation_checkpointing(recipe, model, accelerator.device, accelerator.num_processes)
    if checkpointing:  # when layers run again, it is no longer known which positions are targets
        shortcuts = replace(shortcuts, last_layer=False)
    if precision != "fp32":  # what is turned is not in float32, and in shares of the weights nothing is
        shortcuts = replace(shortcuts, norms=shortcuts.norms and not sharded, rotations=False)
    if recipe.parallel.tensor > 1:  # norms have a forward of their own there
        shortcuts = replace(shortcuts, norms=False)
    if strategy == "deepspeed":
        proven, shortcuts = shortcuts, fitting(shortcuts, model, recipe.parallel)
        if proven.fused and not shortcuts.fused:
            said = "logits are kept whole, as its head is of several parts and zero_stage 3"
            log.info("%s: %s", model.config.model_type, said)
    passes = faster_passes(model, shortcuts) if by_hand else nullcontext()  # before weights are shared out
    loss = Loss(model, how, shortcuts, recipe.train.z_loss)
    evaluator = prepare_evaluator(recipe, tokenizer, model, loss, accelerator, batches=batches, collator=collator)
    if accelerator.device.type == "cuda":  # TF32 for what autocast leaves in float32
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    if accelerator.device.type == "cpu" and recipe.train.precision == "auto":
        large = count_parameters(model) >= hardware.WORTH_HALF_PRECISION
        if large and hardware.has_bf16_units(accelerator.device):
            log.info("this processor has units for bf16: train.precision=bf16 may be twice as fast")
    facts = {
        "name": recipe.name,
        "objective": recipe.objective,
        "architecture": model.config.model_type,
        "parameters": count_parameters(model),
        "parameters_without_embeddings": count_without_embeddings(model),
        "shape": shape_of(model.config),
        "learning_rate": rate,
        "packing": "concat" if how is None else "documents",
        "training_tokens": batches.tokens,
        "mixing": list(batches.mixing),
        "validation_tokens": batches.validation.tokens if batches.validation else 0,
        "data_fingerprint": batches.fingerprint,
        "sources": [
            describe(source) | counts
            for (_, source), counts in zip(training_sources(recipe.data), batches.sources, strict=True)
        ],
        "validation_datasets": [
            split_revision(str(source.hub))[0]
            for source in (() if isinstance(recipe.data.validation, Amount) else recipe.data.validation)
            if hub_name(source.hub)
        ],
        "base_model": hub_name(recipe.model.from_),
        "base_tokenizer": hub_name(recipe.tokenizer.from_),
        "lineage": lineage_of(recipe, describe),
        "shortcuts": str(shortcuts),
        "precision": precision,
        "device": hardware.device_name(accelerator.device),
        "hardware_flops_per_second": round(hardware.matrix_rate(accelerator.device, precision)),
        "processes": accelerator.num_processes,
        "parallel": in_words(recipe.parallel) if accelerator.num_processes > 1 else None,
        "versions": hardware.versions(),
    }
    if checkpointing:
        # Called otherwise before transformers 5.20 or so.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        facts["activation_checkpointing"] = True
    if recipe.parallel != Parallel() and accelerator.num_processes == 1:
        log.info("parallel: one process has nothing to share out")
    rows = batches.rows(0, range(min(COUNTED_BLOCKS, batches.sizes.first)))
    counted = [collator([row]) for row in rows]  # one by one: counting keeps attention whole, which is large
    if cut := sharded and recipe.parallel.tensor > 1:  # a process will multiply with its part of the matrices only
        facts["flops_per_token"] = round(flops_per_token(model, loss, counted[0], numbers=False))
    prepared: torch.nn.Module = model
    if sharded and strategy != "deepspeed":
        shard_proven(model, loss, [], accelerator, recipe.parallel, precision)
    else:
        model.to(accelerator.device)
    optimizers = build_optimizers(model, recipe.optimizer, lr=rate, fast_dtype=hardware.fast_dtype(accelerator.device))
    if not cut:
        counted = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in counted]
        facts["flops_per_token"] = round(sum(flops_per_token(model, loss, batch) for batch in counted) / len(counted))
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    if compiled:  # not before the counting: what the compiler meets in such a mode it passes over ever after
        model.compile()
    model.train()
    if strategy == "deepspeed":  # it takes whole models, and optimizers of them
        prepared, optimizers = shard_proven(model, loss, optimizers, accelerator, recipe.parallel, precision)
    if carried:
        carry_over(recipe, model, optimizers)
    average = Average.of(recipe, plan)
    if strategy != "deepspeed":
        optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    if not sharded:
        prepared = accelerator.prepare(model)
    save_with_transformers(accelerator, average)
    session = Session(
        recipe=recipe,
        run=run,
        accelerator=accelerator,
        tokenizer=tokenizer,
        model=prepared,
        optimizers=optimizers,
        loss=loss,
        batches=batches,
        collator=collator,
        plan=plan,
        phases=Phases(accelerator.device),
        micro_batch_size=0,
        passes=passes,
        learning_rate=rate,
        place=Place.in_run(accelerator, recipe.parallel),
        facts=facts,
        average=average,
        guard=Guard(recipe.train, accelerator.device, scaled=accelerator.scaler is not None),
        evaluator=evaluator,
    )
    session.micro_batch_size = choose_micro_batch_size(session)
    return session


def at_hand(recipe: Recipe, checkpoint: Path | None) -> Recipe:
    """The recipe, with the checkpoint in place of `model.from`: of a run that goes on, that may be gone."""
    if checkpoint is None or recipe.model.from_ is None:
        return recipe
    return replace(recipe, model=Model(from_=str(checkpoint)))


def describe(source: Source) -> dict[str, Any]:
    """What a source is, without any local path: `name` for people, `dataset` its Hub id if it has one."""
    name = hub_name(source.hub)
    if name:
        commit = f"commit {source.commit[:10]}" if source.commit else None
        dataset = split_revision(name)[0]
        return {"name": ", ".join(filter(None, (name, source.subset, source.split, commit))), "dataset": dataset}
    if source.builtin:
        return {"name": f"{source.builtin}, generated by hfpretrain", "dataset": None}
    return {"name": LOCAL, "dataset": None}


def hub_name(name: str | None) -> str | None:
    """`name` if it is one on the Hub; None if it is a local folder or nothing."""
    return None if name is None or Path(name).expanduser().exists() else name


def open_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's view of the processes and devices, with the recipe's precision."""
    AcceleratorState._reset_state()  # several runs in one Python process may differ in precision
    # Without an accelerator, Accelerate joins the processes of torchrun only if told that it is to be CPU.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = processes > 1 and not torch.accelerator.is_available()
    device = PartialState(cpu=on_cpu, timeout=PATIENCE, **meeting(PATIENCE)).device
    tell_device(device)
    precision = hardware.choose_precision(recipe.train.precision, device)
    if precision == "fp16" and recipe.optimizer.name == "muon":
        raise RecipeError("optimizer.name: muon does not go with fp16's loss scaling", hint="set train.precision: bf16")
    sharded = shares(recipe.parallel, processes) > 1
    strategy = recipe.parallel.strategy if sharded else "ddp"
    if precision == "fp16" and sharded:
        said = "train.precision: fp16's loss scaling does not go with weights that are shared out"
        raise RecipeError(said, hint="set bf16")
    if strategy == "deepspeed" and recipe.optimizer.name == "muon":
        said = "optimizer.name: muon needs whole matrices, and deepspeed gives it shares of flattened ones"
        raise RecipeError(said, hint="set parallel.strategy: fsdp")
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError("train.precision: fp16 needs a GPU", hint="set train.precision: auto")
    in_half = strategy == "deepspeed" and computes_in_half(recipe.parallel, precision)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        # Sharded weights are gathered in the precision that they are multiplied in, without autocast.
        mixed_precision="no" if precision == "fp32" or in_half or (sharded and strategy != "deepspeed") else precision,
        # The loop divides by the targets of the whole step itself, whatever the environment says.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise RecipeError(
            f"{accelerator.distributed_type.value}: Accelerate is to wrap the model itself, which is not there",
            hint="choose plain data parallelism in `accelerate config`, and parallel.strategy in the recipe",
        )
    first = batch_sizes(recipe.train)[0]  # larger ones are multiples of it
    shared_by = Place.in_run(accelerator, recipe.parallel).of
    if first % shared_by:
        who = "processes" if shared_by == accelerator.num_processes else "groups of processes"
        raise RecipeError(
            f"train.batch_size: {first} do not divide by {shared_by} {who}", hint=f"set a multiple of {shared_by}"
        )
    if not accelerator.is_main_process:
        logging.getLogger("hfpretrain").setLevel(logging.ERROR)
    return accelerator


def document_masking(recipe: Recipe, model: PreTrainedModel) -> DocumentMasking | None:
    """How attention is kept within documents; None for packing: concat. Proven on this very model."""
    if recipe.data.packing == "concat":
        return None
    how = prove_document_masking(model, recipe.objective)
    if how is None:
        said = f"{model.config.model_type}: attention cannot be kept within documents"
        if recipe.data.packing == "documents":
            raise RecipeError(f"data.packing: {said}", hint="set data.packing: concat")
        log.info("%s; packing: concat is used", said)
    return how


def choose_shortcuts(
    recipe: Recipe,
    model: PreTrainedModel,
    how: DocumentMasking | None,
    collator: Collator,
    *,
    by_hand: bool,
) -> Shortcuts:
    """The ways to the loss that are proven on this very model; what is given up is said.

    `by_hand` says whether operations are replaced one by one, which is for a CPU.
    """
    if recipe.train.shortcuts == "none":
        return Shortcuts()
    shortcuts = prove_shortcuts(
        model, how, on_targets=collator.few_targets, z_loss=recipe.train.z_loss, elementwise=by_hand
    )
    name = model.config.model_type
    if collator.few_targets and not shortcuts.on_targets:
        log.info("%s: the head runs on every token, as it is not proven to give the same on the targets alone", name)
    if not shortcuts.fused:
        log.info("%s: logits are kept whole, as the fused cross-entropy is not proven to give the same", name)
    plain = {
        "last layer": shortcuts.on_targets and not shortcuts.last_layer,
        "dropout": by_hand and not shortcuts.dropout and drops(model),
        "norms": by_hand and not shortcuts.norms and faster_norms(model),
        "rotary positions": by_hand and not shortcuts.rotations and faster_rotations(model),
    }
    if said := ", ".join(part for part, is_plain in plain.items() if is_plain):
        log.info("%s: plain %s, as no faster way is proven to give the same", name, said)
    return shortcuts


def activation_checkpointing(recipe: Recipe, model: PreTrainedModel, device: torch.device, processes: int = 1) -> bool:
    """Whether layers are computed again in the backward pass: as the recipe says, or where one block would not fit."""
    setting = recipe.train.activation_checkpointing
    if setting != "auto":
        if setting and not model.supports_gradient_checkpointing:
            raise RecipeError(
                f"train.activation_checkpointing: {model.config.model_type} cannot do it", hint="remove the key"
            )
        return setting
    if not model.supports_gradient_checkpointing:
        return False
    needed = bytes_each(recipe.parallel, processes) * count_parameters(model) + activation_bytes(recipe, model)
    if needed <= hardware.total_memory(device):
        return False
    log.info("activation checkpointing is used: a block needs about %s without it", size_in_words(needed))
    return True


def activation_bytes(recipe: Recipe, model: PreTrainedModel) -> float:
    """About what a block keeps for its backward pass: 34 bytes per token, unit and layer (Korthikanti et al. 2022)."""
    config = model.config.get_text_config()
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return 34.0 * longest_block(recipe.data)[1] * width * layers
