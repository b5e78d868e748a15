"""Checkpoints: a folder that appears whole or not at all, and is read back only if it is whole.

Written beside its place, described by a manifest (size and SHA-256 of every file), flushed to the disk, renamed,
and only then are older ones removed. Nothing is trained meanwhile, so that what is written does not change under the
writing. Randomness is derived from the seed, so it is not part of a checkpoint.
"""

import errno
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SCALER_NAME, gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain.errors import CheckpointError
from hfpretrain.files import bytes_below, commit_folder, free_bytes, lack_of_room, make_folder, remove, size_in_words
from hfpretrain.hub import first_line
from hfpretrain.model_files import check_model_files
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.run import DAMAGED, PROGRESS, list_checkpoints
from hfpretrain.training.averaging import Average
from hfpretrain.training.optimizer import settings_kept
from hfpretrain.training.sharding import (
    SHARDS,
    class_of,
    load_optimizers,
    load_weights,
    local,
    save_optimizers,
    save_whole,
    whole_bytes,
    whole_weights,
)

log = logging.getLogger(__name__)

SMALL_FILES = 1_000_000
"""Bytes of what is saved beside tensors: tokenizer, configuration, progress."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room: on the disk, of the user's share of it, or for one file."""
MAKE_ROOM = "free some space; then the same command with --resume goes on"
MEND = "see what keeps it from being written; then the same command with --resume goes on"


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    progress: dict[str, Any],
    *,
    model: torch.nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    average: Average | None,
    keep: int,
    needed: int,
) -> Path:
    """Saves model, tokenizer, optimizer and `progress` as `folder`/step-<progress["step"]>; returns its path.

    Every process calls it. Of a sharded model each writes its share of the optimizer's state; the weights are whole.
    `needed` is about how many bytes it takes. The folder is also a model that from_pretrained loads. Raises
    CheckpointError on all processes where one could not write; earlier checkpoints are then as before.
    """
    place = folder / f"step-{progress['step']:08d}"
    beside = place.with_name(f".{place.name}.partial")
    main = accelerator.is_main_process
    with written_by_all(accelerator, str(place), beside, needed):
        if main:
            if not folder.parent.is_dir():
                raise CheckpointError(
                    f"{folder.parent} is gone: it was moved or removed while it was trained in",
                    hint="move it back and use --resume, or start again",
                )
            make_folder(folder)
            newest = next(iter(list_checkpoints(folder)), None)
            require_room(str(place), folder, max(needed, bytes_below(newest) if newest else 0))
            beside.mkdir()
    with written_by_all(accelerator, str(place), beside, needed):
        if is_sharded(model):
            save_shares(beside, accelerator, model, optimizers, average)
        else:
            accelerator.save_state(str(beside))
        if main:
            tokenizer.save_pretrained(beside)
            (beside / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
    with written_by_all(accelerator, str(place), beside, needed):
        if main:
            commit_folder(beside, place)
            prune(folder, keep)
    return place


def save_shares(
    folder: Path,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    average: Average | None,
) -> None:
    """What a checkpoint of a sharded model holds: whole weights, from the first process, and everyone's share."""
    weights = whole_weights(model)
    averaged = average.whole(model) if average is not None else {}
    save_optimizers(folder, model, optimizers)
    if accelerator.is_main_process:
        plain: PreTrainedModel = accelerator.unwrap_model(model)
        save_whole(plain, folder, weights)
        if average is not None:
            average.save(folder, averaged)


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest checkpoints, which are whole, and what is left of others.

    Damaged ones that were set aside go when there is one of their step or a later one. What cannot be removed stays,
    and is said.
    """
    found = list_checkpoints(folder)
    newest = found[0].name if found else ""
    damaged = [path for path in folder.glob(f"{DAMAGED}step-*") if path.name.removeprefix(DAMAGED) <= newest]
    for old in [*folder.glob(".*step-*"), *damaged, *found[keep:]]:
        try:
            remove(old)
        except OSError as error:
            log.warning("the old checkpoint %s cannot be removed: %s", old, error.strerror or error)


@contextmanager
def written_by_all(accelerator: Accelerator, what: str, beside: Path, needed: int) -> Iterator[None]:
    """What all processes write inside, all have written afterwards; or all raise the same CheckpointError.

    So no process waits for one that has failed. What was written to `beside` is gone then.
    """
    failure, cause = None, None
    try:
        yield
    except CheckpointError as error:
        failure = (error.message, error.hint)
    except Exception as error:  # tokenizers raises no class of its own for a full disk
        cause = error
        free = free_bytes(beside.parent) + bytes_below(beside)
        room = f"it needs about {size_in_words(needed)}, and {size_in_words(free)} are free there"
        hint = MAKE_ROOM if is_full(error) or free < needed else MEND
        failure = (f"{what} could not be written ({reason(error)}): {room}", hint)
    failures = [each for each in gather_object([failure]) if each]
    if failures:
        if accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(failures[0][0], hint=failures[0][1]) from cause


def reason(error: Exception) -> str:
    """Why a write failed, in one line: libraries add theirs, and traces."""
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename
        return f"{Path(str(file)).name}: {error.strerror}" if file else error.strerror
    return first_line(error)


def is_full(error: Exception) -> bool:
    """Whether a write failed for lack of room. Libraries in Rust say it in words, torch gives no reason."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def require_room(what: str, folder: Path, needed: int) -> None:
    """Raises CheckpointError unless there is room for `needed` bytes in `folder`, where `what` is to be."""
    if lacking := lack_of_room(folder, needed):
        raise CheckpointError(f"{what} is not written: {lacking}", hint=MAKE_ROOM)


def saved_bytes(model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> int:
    """About how many bytes a model, and the state of its optimizers, take on the disk."""
    optimizers = list(optimizers)
    if (whole := whole_bytes(model, with_optimizer=bool(optimizers))) is not None:
        return whole + SMALL_FILES
    tensors: list[torch.Tensor] = list(model.state_dict().values())
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    # Some are tied; of a share that is empty there is no place in memory.
    each_once = {local(tensor).data_ptr() or id(tensor): tensor.nbytes for tensor in tensors}
    return sum(each_once.values()) + SMALL_FILES


def set_aside_later(path: Path, accelerator: Accelerator) -> None:
    """Renames checkpoints later than `path` (they are damaged), so that they count as none from now on."""
    accelerator.wait_for_everyone()  # all have gone back to it
    if accelerator.is_main_process:
        for later in list_checkpoints(path.parent):
            if later.name > path.name:
                aside = path.with_name(DAMAGED + later.name)
                remove(aside)
                later.rename(aside)


def restore_checkpoint(
    path: Path, accelerator: Accelerator, model: torch.nn.Module, average: Average | None = None
) -> None:
    """Loads weights, optimizer and gradient scaler in place.

    Accelerate reads its pickles with weights_only, which makes tensors and numbers and calls nothing. Raises
    CheckpointError for files that are whole but hold something else.
    """
    check_model_files(path)
    try:
        _restore(path, accelerator, model, average)
    except Exception as error:  # what a pickle, a JSON file or weights of another shape raise
        what = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(
            f"{path} cannot be read ({what})",
            hint="its files are as they were saved: use the recipe and the versions of the libraries of that time",
        ) from error


def _restore(path: Path, accelerator: Accelerator, model: torch.nn.Module, average: Average | None) -> None:
    plain: PreTrainedModel = accelerator.unwrap_model(model, keep_torch_compile=False)
    # transformers may keep weights in another layout on disk than in memory; its loader knows how to go back.
    saved, loading = class_of(plain).from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := loading["missing_keys"]:  # it would begin with new ones, as another version may name them otherwise
        raise ValueError(f"there are no weights for {min(missing)}")
    load_weights(plain, saved.state_dict())
    if is_sharded(plain) or (path / SHARDS).is_dir():  # either may have been saved by the other
        with settings_kept(accelerator._optimizers):
            load_optimizers(path, plain, accelerator._optimizers)
        if average is not None:
            average.load(path, plain)
        return
    scaler = accelerator.scaler
    if not (path / SCALER_NAME).exists():  # saved with another precision than fp16: the scale is found anew
        accelerator.scaler = None
    try:
        with settings_kept(accelerator._optimizers):
            accelerator.load_state(str(path))
    finally:
        accelerator.scaler = scaler


def save_with_transformers(accelerator: Accelerator, average: Average | None = None) -> None:
    """Has Accelerate's state hold the model as save_pretrained writes it, so that any process count can read it.

    And, beside it, the average of the weights, if there is one.
    """

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            for model in models:
                accelerator.unwrap_model(model, keep_torch_compile=False).save_pretrained(folder)
            if average is not None:
                average.save(Path(folder), average.weights)

    def load(models: list[torch.nn.Module], folder: str) -> None:
        (model,) = models
        models.clear()  # restore_checkpoint has loaded it
        if average is not None:
            average.load(Path(folder), accelerator.unwrap_model(model))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
