"""A session: tokenizer, batches, model and optimizer of one recipe, built and proven, ready for the loop."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain import hardware
from hfpretrain.data.batches import Batches, open_batches
from hfpretrain.errors import RecipeError
from hfpretrain.modeling.attention import DocumentMasking, prove_document_masking
from hfpretrain.modeling.model import build_model, count_parameters
from hfpretrain.modeling.objective import Collator, Loss
from hfpretrain.modeling.tokenizer import build_tokenizer, load_tokenizer
from hfpretrain.recipe import Recipe
from hfpretrain.run import Run
from hfpretrain.training.checkpoint import save_with_transformers
from hfpretrain.training.optimizer import build_optimizer
from hfpretrain.training.schedule import Plan

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Session:
    """Everything that the loop works with."""

    recipe: Recipe
    run: Run
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    batches: Batches
    collator: Collator
    plan: Plan
    micro_batch_size: int
    facts: dict[str, Any]
    """What the summary and report.json say about the run."""


def prepare_session(recipe: Recipe, run: Run, accelerator: Accelerator) -> Session:
    """Builds everything that a run needs; all user errors come from here, before any training."""
    transformers.utils.logging.disable_progress_bar()  # a bar for every file saved
    if accelerator.device.type == "cpu":
        hardware.keep_freed_memory()
    with accelerator.main_process_first():  # the others find what the first one has prepared
        saved = any(run.checkpoints.glob("step-*"))  # without one the run starts anew, whatever it left
        tokenizer = load_tokenizer(str(run.path), recipe.objective) if saved else build_tokenizer(recipe)
        batches = open_batches(recipe, tokenizer)
    plan = Plan.of(recipe, batches.blocks_per_epoch)
    model = build_model(recipe, tokenizer)
    how = document_masking(recipe, model)
    loss = Loss(model, how)
    facts = {
        "name": recipe.name,
        "objective": recipe.objective,
        "architecture": model.config.model_type,
        "parameters": count_parameters(model),
        "packing": "concat" if how is None else "documents",
        "training_tokens": batches.tokens,
        "validation_tokens": batches.validation.tokens if batches.validation else 0,
        "data_fingerprint": batches.fingerprint,
        "precision": hardware.choose_precision(recipe.train.precision, accelerator.device),
        "device": hardware.device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "versions": hardware.versions(),
    }
    optimizer = build_optimizer(model, recipe.optimizer)
    if recipe.train.compile is True or (recipe.train.compile == "auto" and accelerator.device.type == "cuda"):
        model.compile()
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    save_with_transformers(accelerator)
    return Session(
        recipe=recipe,
        run=run,
        accelerator=accelerator,
        tokenizer=tokenizer,
        model=prepared,
        optimizer=optimizer,
        loss=loss,
        batches=batches,
        collator=Collator(recipe, tokenizer, isolated=how is not None),
        plan=plan,
        micro_batch_size=choose_micro_batch_size(recipe, accelerator, model.config.get_text_config().vocab_size),
        facts=facts,
    )


def open_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's view of the processes and devices, with the recipe's precision."""
    AcceleratorState._reset_state()  # several runs in one Python process may differ in precision
    # Without an accelerator, Accelerate joins the processes of torchrun only if told that it is to be CPU.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = PartialState(cpu=several and not torch.accelerator.is_available()).device
    precision = hardware.choose_precision(recipe.train.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError("train.precision: fp16 needs a GPU", hint="set train.precision: auto")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        # The loop divides by the targets of the whole step itself, whatever the environment says.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise RecipeError(
            f"{accelerator.distributed_type.value}: only plain data-parallel training is there yet",
            hint="choose DDP (no FSDP, no DeepSpeed) in `accelerate config`",
        )
    if recipe.train.batch_size % accelerator.num_processes:
        raise RecipeError(
            f"train.batch_size: {recipe.train.batch_size} do not divide by {accelerator.num_processes} processes",
            hint=f"set a multiple of {accelerator.num_processes}",
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


def choose_micro_batch_size(recipe: Recipe, accelerator: Accelerator, vocabulary: int) -> int:
    """Blocks that a device sees at once: the recipe's number, or as many as keep the logits (fp32) under a bound."""
    own = recipe.train.batch_size // int(accelerator.num_processes)
    if recipe.train.micro_batch_size != "auto":
        return min(recipe.train.micro_batch_size, own)
    numbers = 2**27 if accelerator.device.type == "cpu" else 2**30  # 0.5 GB and 4 GB of logits
    fitting = max(1, numbers // (vocabulary * recipe.data.block_size))
    sizes = [size for size in range(1, own + 1) if own % size == 0 and size <= fitting]
    return sizes[-1]
