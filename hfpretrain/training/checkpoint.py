"""Checkpoints: a folder that appears whole or not at all, and is read back only if it is whole.

Written beside its place, described by a manifest (size and SHA-256 of every file), flushed to the disk, renamed,
and only then are older ones removed. Randomness is derived from the seed, so it is not part of a checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain.errors import CheckpointError
from hfpretrain.files import commit_folder, flush
from hfpretrain.hub import first_line
from hfpretrain.model_files import check_model_files
from hfpretrain.run import list_checkpoints

PROGRESS = "progress.json"
UNWRITABLE = (OSError, SafetensorError, RuntimeError)
"""What the libraries raise when a disk is full."""


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    progress: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Saves model, tokenizer, optimizer and `progress` as `folder`/step-<progress["step"]>; returns its path.

    Every process calls it. The folder is also a model that from_pretrained loads.
    """
    place = folder / f"step-{progress['step']:08d}"
    beside = place.with_name(f".{place.name}.partial")
    if accelerator.is_main_process:
        for left in folder.glob(".step-*.partial"):  # by a process that was killed while it saved
            shutil.rmtree(left)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(beside))
        if accelerator.is_main_process:
            tokenizer.save_pretrained(beside)
            (beside / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
    except UNWRITABLE as error:
        raise CheckpointError(
            f"{place} could not be written: {error}", hint="free some space, then --resume"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        commit_folder(beside, place)
        for old in list_checkpoints(folder)[keep:]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return place


def set_aside_later(path: Path, accelerator: Accelerator) -> None:
    """Renames checkpoints later than `path` (they are damaged), so that they count as none from now on."""
    accelerator.wait_for_everyone()  # all have looked at them
    if accelerator.is_main_process:
        for later in list_checkpoints(path.parent):
            if later.name > path.name:
                shutil.rmtree(path.with_name(f"damaged-{later.name}"), ignore_errors=True)
                later.rename(path.with_name(f"damaged-{later.name}"))


def restore_checkpoint(path: Path, accelerator: Accelerator, model: torch.nn.Module) -> dict[str, Any]:
    """Loads weights, optimizer and gradient scaler in place; returns the progress that was saved.

    Accelerate reads its pickles with weights_only, which makes tensors and numbers and calls nothing. Raises
    CheckpointError for files that are whole but hold something else.
    """
    check_model_files(path)
    try:
        return _restored(path, accelerator, model)
    except Exception as error:  # what a pickle, a JSON file or weights of another shape raise
        what = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(
            f"{path} cannot be read ({what})", hint="remove it, and --resume goes on from the one before it"
        ) from error


def _restored(path: Path, accelerator: Accelerator, model: torch.nn.Module) -> dict[str, Any]:
    plain: PreTrainedModel = accelerator.unwrap_model(model, keep_torch_compile=False)
    # transformers may keep weights in another layout on disk than in memory; its loader knows how to go back.
    saved = type(plain).from_pretrained(path, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    plain.load_state_dict(saved.state_dict())
    accelerator.load_state(str(path))
    progress: dict[str, Any] = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
    return progress


def save_with_transformers(accelerator: Accelerator) -> None:
    """Has Accelerate's state hold the model as save_pretrained writes it, so that any process count can read it."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            for model in models:
                accelerator.unwrap_model(model, keep_torch_compile=False).save_pretrained(folder)

    def load(models: list[torch.nn.Module], folder: str) -> None:
        models.clear()  # restore_checkpoint has loaded it

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Puts model and tokenizer into the run's root, each file whole or not at all, the weights last."""
    beside = folder / ".model.partial"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        tokenizer.save_pretrained(beside)
        model.save_pretrained(beside)
        files = sorted(beside.iterdir(), key=lambda path: path.suffix == ".safetensors")
        for path in files:
            flush(path)
            path.rename(folder / path.name)
        flush(folder)
    except UNWRITABLE as error:
        raise CheckpointError(
            f"the model could not be written to {folder}: {error}", hint="free some space, then --resume"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
