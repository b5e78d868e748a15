"""Sweeps: a grid of short runs of one recipe, one after another, each a run directory and a process of its own.

A process each, so that nothing of one run, its memory and threads too, is there in the next. Tokenizer and tokens are
prepared by the first that needs them and found in the cache by the others.
"""

import hashlib
import itertools
import json
import logging
import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hfpretrain.errors import RunError, Stopped, UserError
from hfpretrain.recipe import Recipe, load, to_mapping
from hfpretrain.run import Run

log = logging.getLogger(__name__)

LONGEST_NAME = 120
"""Signs of a run directory's name; the rest of a longer one is cut off."""
NOT_PUSHED = ("hub.repo_id=null", "hub.push=null", "hub.name_by=null")
"""Set for every run: the repository is meant for the model of the recipe, not for those that are tried out."""
PASSED_ON = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


@dataclass(frozen=True)
class Trial:
    """One run of the grid."""

    values: dict[str, str]
    """The keys that the sweep goes through, as they were written."""
    run: Run
    recipe: Recipe
    overrides: tuple[str, ...]
    """All that is set over the recipe's file."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the grid came to."""

    values: dict[str, str]
    run: str
    state: str
    """finished or failed."""
    validation_loss: float | None = None
    loss: float | None = None
    """Of the last logged steps of training."""
    tokens: int | None = None
    seconds: float | None = None
    error: str | None = None
    """Why it failed, in a sentence."""

    @property
    def rank(self) -> tuple[bool, float]:
        """The best first: by validation loss, without any by training loss; last what failed, or came to no number."""
        loss = self.loss if self.validation_loss is None else self.validation_loss
        return (False, loss) if loss is not None and math.isfinite(loss) else (True, 0.0)


def plan_sweep(path: Path, overrides: Sequence[str], duration: str | None = None) -> list[Trial]:
    """The runs of a sweep: every combination of the values of those overrides that have several.

    They are in `<output_dir>-sweep`, and none is pushed. Raises UserError without such an override, RecipeError for
    a combination that makes no recipe, RunError where one of their directories holds a finished run of another recipe.
    """
    axes: dict[str, list[str]] = {}
    for each in overrides:
        key, several = parse(each)
        if len(several) > 1:
            if key in axes:
                raise UserError(f"{key} is there twice", hint=f"give all its values at once: {key}=A,B,C")
            axes[key] = several
    if not axes:
        raise UserError("no key has several values", hint="separate them by commas: optimizer.lr=1e-3,3e-3")
    if "output_dir" in axes:
        raise UserError("output_dir has several values", hint="give one: each run has a folder of its own below it")
    fixed = [each for each in overrides if parse(each)[0] not in axes]
    fixed += [f"train.duration={duration}"] if duration else []
    folder = Path(f"{load(path, fixed).output_dir}-sweep")
    trials = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        run = Run(folder / named(values))
        over = (*fixed, *(f"{key}={value}" for key, value in values.items()), *NOT_PUSHED)
        over = (*over, f"output_dir={json.dumps(str(run.path))}")
        trials.append(Trial(values, run, load(path, over), over))
    for trial in trials:
        require_same(trial)
    return trials


def parse(override: str) -> tuple[str, list[str]]:
    """The key of an override and its values: what is between commas that are in no brackets and no quotes."""
    key, _, written = override.partition("=")
    values, depth, quote = [""], 0, ""
    for sign in written:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and not values[-1].strip():
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            values.append("")
            continue
        values[-1] += sign
    values = [value.strip() for value in values]
    if len(values) > 1 and "" in values:
        raise UserError(f"{override}: a value is empty", hint="separate values by single commas")
    if len(set(values)) < len(values):
        raise UserError(f"{override}: a value is there twice")
    return key.strip(), values


def named(values: dict[str, str]) -> str:
    """A directory's name that says the values: lr=1e-3,num_hidden_layers=2. Where signs had to go, a hash of all."""
    last = [key.rsplit(".", 1)[-1] for key in values]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(values, last, strict=True)}
    whole = ",".join(f"{short[key]}={value}" for key, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9.,=+_-]+", "_", whole)[:LONGEST_NAME]
    return plain if plain == whole else f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def require_same(trial: Trial) -> None:
    """Raises RunError where the run is finished and of another recipe: its loss would be taken for this one's."""
    if trial.run.state != "finished":
        return
    from hfpretrain.data.hub_sets import keep_commits  # with pyarrow: only where there is a run already

    trained = load(trial.run.recipe_file)
    before, now = (to_mapping(recipe) for recipe in (trained, keep_commits(trial.recipe, trained)))
    if differing := [key for key in now if before.get(key) != now[key]]:
        raise RunError(
            f"{trial.run.path} is finished, and of a recipe with another {' and '.join(differing)}",
            hint=f"remove {trial.run.path.parent}, or give the sweep an output_dir of its own",
        )


def run_sweep(path: Path, trials: Sequence[Trial]) -> list[Outcome]:
    """Trains what is not finished yet, in turn, and returns what all came to, the best first.

    A run that fails is an outcome like others. After a signal, which the run that is being trained gets as well and is
    saved, raises Stopped.
    """
    outcomes = []
    for number, trial in enumerate(trials, start=1):
        what = ", ".join(f"{key}={value}" for key, value in trial.values.items())
        if trial.run.state == "finished":
            log.info("sweep %d/%d: %s is finished", number, len(trials), what)
            outcomes.append(outcome_of(trial, None))
            continue
        log.info("sweep %d/%d: %s", number, len(trials), what)
        outcomes.append(outcome_of(trial, train_apart(path, trial)))
    return sorted(outcomes, key=lambda outcome: outcome.rank)


def outcome_of(trial: Trial, error: str | None) -> Outcome:
    """What the run came to, from its report."""
    values, where = trial.values, str(trial.run.path)
    try:
        report: dict[str, Any] = trial.run.report()
    except RunError as damaged:
        return Outcome(values, where, "failed", error=error or damaged.message)
    numbers = {key: report.get(key) for key in ("validation_loss", "loss", "tokens", "seconds")}
    return Outcome(values, where, "finished", **numbers)


def train_apart(path: Path, trial: Trial) -> str | None:
    """Trains in a process of its own, whose words are shown; returns the reason where it failed."""
    command = [sys.executable, "-m", "hfpretrain", "train", str(path), *trial.overrides, "--resume"]
    said: list[str] = []
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process,
        signals_to(process) as heard,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            log.info("%s", line.rstrip("\n"))
            said = [*said[-20:], line.strip()]
        status = process.wait()
    if heard:
        hint = "the same command goes on"
        raise Stopped(f"the sweep is stopped by signal {heard[0]}", signal=heard[0], hint=hint)
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return None if status == 0 else (errors or said or [f"it ended with status {status}"])[-1]


@contextmanager
def signals_to(process: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """Passes signals on to the process meanwhile, which saves and ends; gives those that came.

    SIGINT goes on as SIGTERM: on a terminal the process has got it itself, and a second one would end it unsaved.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {each: signal.signal(each, hear) for each in PASSED_ON}
    try:
        yield heard
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
