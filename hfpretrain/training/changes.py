"""What a run may be resumed with: recipe and surroundings that it was trained with, or what may differ from them."""

import logging
from typing import Any

import torch

from hfpretrain import hardware
from hfpretrain.errors import RunError
from hfpretrain.recipe import BatchRamp, Recipe, to_mapping
from hfpretrain.run import Run

log = logging.getLogger(__name__)

HARMLESS = {
    *("name", "output_dir", "train.duration", "train.log_every", "train.compile", "train.shortcuts"),
    *("train.micro_batch_size", "train.activation_checkpointing", "train.max_time", "train.on_nonfinite"),
    *("evaluation", "checkpoints", "parallel", "trackers", "hub"),
}
"""Keys, and blocks of keys, that a run may be resumed with other values of; each change is said."""
LIBRARIES = ("python", "torch", "transformers", "accelerate", "tokenizers")
"""What other versions of may give other last bits."""
FIXED = {
    *("objective", "model", "tokenizer", "optimizer.name", "optimizer.lr_factors"),
    *("optimizer.from_checkpoint", "averaging"),
    *("data.block_size", "data.stages", "train.batch_size"),
}
"""Keys that made what a checkpoint holds, or by which a step is a place in the data: no run goes on with others."""


def check_unchanged(before: Recipe, now: Recipe, run: Run, *, allowed: bool = False) -> list[str]:
    """Raises RunError if the recipe that a run was trained with differs from `now` in what is learnt.

    With `allowed` such differences are said and returned, but for those that a checkpoint cannot go on with.
    """
    old, new = flat(to_mapping(before)), flat(to_mapping(now))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    moving = any(stage.until and stage.until.unit == "percent" for stage in now.data.stages)
    growing = now.train.batch_size
    moving |= isinstance(growing, BatchRamp) and growing.over.unit == "percent"
    # Where stages end, or batches grow, in percent of the run, another duration is another order of the data.
    serious = [key for key in changed if not _among(key, HARMLESS) or (moving and key == "train.duration")]
    if now.optimizer.lr == "auto" and "optimizer.lr" in serious:  # a run that goes on keeps the rate that it has
        serious.remove("optimizer.lr")
    impossible = [key for key in serious if _among(key, FIXED)]
    differences = [f"{key}: {old.get(key)} before, {new.get(key)} now" for key in serious]
    if impossible or (serious and not allowed):
        other_way = "" if impossible else ", or go on all the same with --allow-changes"
        why = f", and no run goes on with another {' or '.join(impossible)}" if impossible else ""
        raise RunError(
            f"{run.path} was trained with another recipe ({'; '.join(differences)}){why}",
            hint=f"undo the change, or choose another output_dir for a new run{other_way}",
        )
    if changed := [key for key in changed if key not in serious]:
        log.info("changed since the run was last saved: %s", ", ".join(changed))
    if differences:
        log.warning("what is learnt from here on is changed: %s", "; ".join(differences))
    return differences


def _among(key: str, keys: set[str]) -> bool:
    """Whether the key, or a block that it is in, is one of `keys`."""
    parts = key.split(".")
    return any(".".join(parts[:end]) in keys for end in range(1, len(parts) + 1))


def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def surroundings(processes: int, device: str) -> dict[str, str]:
    """What the last bits of a run depend on beside its recipe and data."""
    return {
        "device": device,
        "processes": str(processes),
        "threads": str(torch.get_num_threads()),
        **{name: version for name, version in hardware.versions().items() if name in LIBRARIES},
    }


def compare_surroundings(before: dict[str, str], now: dict[str, str]) -> None:
    """Says, in one line, what of it changed: the run goes on, but not to the same bits."""
    differing = [f"{key} {before[key]} before, {now[key]} now" for key in before if before[key] != now.get(key)]
    if differing:
        log.warning("the last bits may differ from those of an undisturbed run: %s", "; ".join(differing))
