"""Whether a run is what was saved: every file against its manifest, and steps trained again, bit for bit."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfpretrain.errors import RunError, Stopped
from hfpretrain.files import MANIFEST, damage, digest
from hfpretrain.recipe import Hub, Recipe, load
from hfpretrain.run import Run, checkpoint_damage, list_checkpoints, step_of
from hfpretrain.training.begin import Progress
from hfpretrain.training.loop import train

log = logging.getLogger(__name__)

CLOCK = ("tokens_per_second", "mfu", "time")
"""Keys of a line of metrics that depend on the clock."""
OF_TENSORS = (".safetensors", ".bin")
"""Files of a checkpoint with weights, averages and the optimizers' state."""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at, and what was found."""

    what: str
    found: str
    good: bool


def verify(path: Path) -> Iterator[Finding]:
    """Looks at the finished model, every checkpoint and the metrics of a run. Raises RunError if it is none."""
    run = Run(path)
    if not run.recipe_file.is_file():
        raise RunError(f"{path} is not a run: it has no {run.recipe_file.name}", hint="give a run directory")
    if (path / MANIFEST).is_file() or run.state == "finished":
        yield _against_manifest("finished run", path, damage(path))
    newest = Progress()
    for checkpoint in reversed(list_checkpoints(run.checkpoints)):
        problem = checkpoint_damage(checkpoint)
        newest = newest if problem else Progress.read(checkpoint)
        yield _against_manifest(f"{run.checkpoints.name}/{checkpoint.name}", checkpoint, problem)
    yield _metrics_in_order(run, newest)


def _against_manifest(what: str, folder: Path, problem: str | None) -> Finding:
    if problem:
        return Finding(what, f"damaged: {problem}", good=False)
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    size = sum(file["bytes"] for file in files.values())
    return Finding(what, f"whole: {len(files)} files, {size:,} bytes", good=True)


def _metrics_in_order(run: Run, newest: Progress) -> Finding:
    """No line missing that was there at the newest checkpoint or before, none cut off, none twice, steps in order."""
    what = run.metrics_file.name
    if not run.metrics_file.is_file():
        return Finding(what, "missing", good=False)
    lines = run.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
    # An evaluation comes after the training line of its step; of minimal pairs alone it has no validation_loss.
    steps = [(step_of(line), '"tokens_per_second":' not in line) for line in lines]
    there, before = sum(step < float("inf") for step, _ in steps), newest.metrics
    if there < before.safe:
        found = f"{there} lines are there, and {before.safe} were when step {newest.step} was saved"
        return Finding(what, found, good=False)
    if before.lost:
        return Finding(what, f"lines that were lost before a resume: {before.lost}", good=False)
    if any(step == float("inf") for step, _ in steps):
        return Finding(what, "a line cannot be read", good=False)
    if steps != sorted(set(steps)):
        return Finding(what, "lines are there twice or out of order", good=False)
    return Finding(what, f"whole: {len(lines)} lines, each once and in order", good=True)


def replay(path: Path, steps: int) -> Iterator[Finding]:
    """Trains `steps` steps again from a checkpoint, in a temporary folder, and compares what comes of them.

    The newest checkpoint is taken that has so many steps after it, else the oldest. Raises RunError where there is
    nothing to train again, or where the clock decides what a step does.
    """
    run = Run(path)
    recipe = load(run.recipe_file)
    if recipe.train.duration.unit == "seconds":
        raise RunError(
            f"{path} cannot be trained again to the same bits: its train.duration is a time",
            hint="only a duration in steps, tokens, words or epochs says the same every time",
        )
    last = int(max((line["step"] for line in run.metrics()), default=0))
    whole = [each for each in list_checkpoints(run.checkpoints) if not checkpoint_damage(each)]
    if any(Progress.read(each).surroundings.get("processes", "1") != "1" for each in whole):
        raise RunError(
            f"{path} was trained in several processes, and one does not come to the same bits",
            hint="without --replay its files are compared with their manifests",
        )
    starts = {int(each.name.removeprefix("step-")): each for each in whole}
    usable = [step for step in starts if step < last]
    if not usable:
        raise RunError(
            f"{path} has no whole checkpoint with steps after it",
            hint="set checkpoints.keep to more, so that one from before the end stays",
        )
    start = max((step for step in usable if step + steps <= last), default=min(usable))
    end = min(start + steps, last)
    known = [*starts, *(int(line["step"]) for line in run.metrics())]
    if not any(start < step <= end for step in known):
        of = f"of the steps {start + 1} to {end}"
        raise RunError(
            f"{path} has neither a checkpoint nor metrics {of}: there is nothing to compare",
            hint=f"--replay {min(step for step in known if step > end) - start} is enough",
        )
    if end - start < steps:
        log.info("only %d steps come after the oldest checkpoint, step %d: they are trained again", end - start, start)
    with tempfile.TemporaryDirectory(prefix="hfpretrain-replay-") as folder:
        copy = Run(Path(folder) / "run")
        _copy_back(run, copy, starts[start])
        try:
            # The run may have been changed after that checkpoint; what else is changed shows in what comes of it.
            train(_alone(recipe, copy), resume=True, allow_changes=True, stop_after=end)
        except Stopped as stop:
            if not copy.checkpoints.joinpath(f"step-{end:08d}").is_dir():  # a signal of the user's
                raise stop
        yield _same_metrics(run, copy, start, end)
        yield _same_weights(run, copy, end, starts.get(end))


def _copy_back(run: Run, copy: Run, checkpoint: Path) -> None:
    """The run as it was after that checkpoint."""
    shutil.copytree(checkpoint, copy.checkpoints / checkpoint.name)
    shutil.copy2(run.metrics_file, copy.path)  # lines after the checkpoint are taken off when it goes on


def _alone(recipe: Recipe, copy: Run) -> Recipe:
    """The recipe, for the copy, with nothing sent anywhere."""
    train = dataclasses.replace(recipe.train, max_time=None)
    return dataclasses.replace(recipe, output_dir=str(copy.path), hub=Hub(), trackers=(), train=train)


def _same_metrics(run: Run, copy: Run, start: int, end: int) -> Finding:
    """The first logged number that differs, or that none does."""
    what = f"steps {start + 1} to {end}"
    then, now = ([_timeless(line) for line in each.metrics() if start < line["step"] <= end] for each in (run, copy))
    for before, again in zip(then, now, strict=False):
        for key in [*before, *(key for key in again if key not in before)]:
            if before.get(key) != again.get(key):
                found = f"{key} {before.get(key)} before, {again.get(key)} now"
                return Finding(what, f"step {before['step']} differs: {found}", good=False)
    if len(then) != len(now):
        return Finding(what, f"{len(then)} lines of metrics before, {len(now)} now", good=False)
    return Finding(what, f"{len(then)} lines of metrics are the same, bit for bit", good=True)


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in CLOCK}


def _same_weights(run: Run, copy: Run, end: int, saved: Path | None) -> Finding:
    """Weights and optimizer after the last step against what the run saved there, if it did."""
    what = f"weights and optimizer after step {end}"
    again = copy.checkpoints / f"step-{end:08d}"
    if saved is None:
        return Finding(what, "not compared: the run has no checkpoint of that step", good=True)
    then, now = _bits(saved), _bits(again)
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if differing:
        return Finding(what, f"{' and '.join(differing)} differ", good=False)
    return Finding(what, "the same, bit for bit", good=True)


def _bits(checkpoint: Path) -> dict[str, str]:
    """What the files of tensors hold, by their names."""
    return {each.name: digest(each) for each in sorted(checkpoint.iterdir()) if each.suffix in OF_TENSORS}
