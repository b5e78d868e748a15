"""A recipe, what a run of it leaves when nothing disturbs it, and whether a disturbed run leaves the same."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tiny import tiny_recipe

from chaos.training import Training
from hfpretrain.recipe import dump
from hfpretrain.run import PROGRESS, Run, checkpoint_damage, list_checkpoints

SETTINGS = [
    *("output_dir=run", "train.duration=60", "train.log_every=3", "train.micro_batch_size=2"),
    *("evaluation.every=10", "checkpoints={every: 7, keep: 2}"),
]
"""Over an epoch's end, with checkpoints in the middle of logged windows; the models have dropout."""
DUE = [*range(7, 60, 7), 60]
"""The steps after which such a run saves a checkpoint."""
CLOCK = {
    *("time", "seconds", "phases", "steady", "tokens_per_second", "mfu"),
    *("hardware_flops_per_second", "peak_memory_bytes"),
}
"""Keys of what depends on the clock, or on how far one process came, in the files that hold JSON."""
MADE_UP_FOR = {"evaluated", "evaluated_after", "evaluated_all", "evaluation_due", "metrics"}
"""Keys of a checkpoint's progress.json: an evaluation given up for a signal is made up for before anything is trained,
so that such a checkpoint does not know what the metrics and the report say of it."""
ONLY_THERE = {"README.md", "report.html", "manifest.json", "random_states_0.pkl", "random_states_1.pkl"}
"""Files that have to be there with whatever content: they show what depends on the clock, or its hash, or hold
generators that training does not use."""
ATTEMPTS = 6


@dataclass(frozen=True)
class Outcome:
    """What came of a disturbance. `trouble` is what is wrong, or None if the run ended as if undisturbed."""

    ended: str
    trouble: str | None = None
    saved: bool = False
    """Whether it has to have saved its last step."""


Launch = Callable[..., Training]
Disturbance = Callable[["Experiment", Launch, random.Random], Outcome | None]
"""Launches a training, disturbs it and waits for its end. None if it finished before."""


class Experiment:
    """`fresh` runs of one recipe without a disturbance, of which the first is what all others are compared with."""

    def __init__(
        self, folder: Path, objective: str, *, processes: int = 1, fresh: int = 1, side_by_side: int = 1
    ) -> None:
        self.folder, self.objective, self.processes = folder, objective, processes
        folder.mkdir(parents=True)
        self.recipe = dump(tiny_recipe(folder, objective, *SETTINGS, name="chaos"))
        with ThreadPoolExecutor(side_by_side) as threads:
            found = list(threads.map(self.undisturbed, range(fresh)))
        self.files, self.starting_seconds, self.training_seconds = found[0]
        self.fresh = [Outcome("finished", differences(self.files, files)) for files, _, _ in found]

    def undisturbed(self, number: int) -> tuple[dict[str, str], float, float]:
        """The files that a run leaves, the seconds until it trains, and those that it works from there to its end."""
        place = self.place(f"undisturbed-{number}")
        training = Training(place, processes=self.processes)
        training.training_begins()
        starting = time.time() - training.launched
        worked = training.works_for(float("inf"))
        if training.wait() != 0:
            raise RuntimeError(f"the undisturbed run failed: {training.said()[-2000:]}")
        return contents(place / "run"), starting, worked

    def place(self, name: str) -> Path:
        """A new folder with the recipe in it: every run has a token cache of its own, too."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "recipe.yaml").write_text(self.recipe, encoding="utf-8")
        return place

    def run(self, name: str, *disturbances: Disturbance, seed: str) -> Outcome:
        """Disturbs a run, resumes it, to the next disturbance or to its end, and compares what it leaves."""
        choices = random.Random(seed)
        for _ in range(ATTEMPTS):
            place = self.place(name)
            try:
                outcome = self.disturbed(place, disturbances, choices)
                if outcome is None:
                    continue
                trouble = outcome.trouble or self.resumed(place, saved=outcome.saved)
            except subprocess.TimeoutExpired:
                return Outcome("hung", "it hung and had to be killed")
            if trouble is None:
                shutil.rmtree(place)
            return Outcome(outcome.ended, trouble)
        return Outcome("finished", f"{ATTEMPTS} times the run had finished before")

    def disturbed(self, place: Path, disturbances: Sequence[Disturbance], choices: random.Random) -> Outcome | None:
        """One after the other; what came of the last, or of the first with trouble."""
        outcome = None
        for number, disturb in enumerate(disturbances):
            launch = partial(Training, place, processes=self.processes, resume=number > 0)
            outcome = disturb(self, launch, choices)
            if outcome is None or outcome.trouble:
                break
            if trouble := lost(place / "run", saved=outcome.saved):
                return Outcome(outcome.ended, trouble)
        return outcome

    def resumed(self, place: Path, *, saved: bool) -> str | None:
        """What is wrong with the run after --resume; `saved` if it was stopped and had to save its last step."""
        training = Training(place, processes=self.processes, resume=True)
        status = training.wait()
        if status != 0:
            return f"--resume ended with exit status {status}: {training.said()[-1500:]}"
        expected, found = self.files, contents(place / "run")
        before_last = [*list_checkpoints(place / "run" / "checkpoints"), None][1]
        if saved and before_last and int(before_last.name.removeprefix("step-")) not in DUE:
            # It was stopped after the last but one that was due, whose place among the two that are kept it took.
            pushed_out = f"step-{DUE[-2]:08d}"
            expected, found = (
                {name: digest for name, digest in files.items() if not name.startswith(f"checkpoints/{folder}/")}
                for files, folder in ((expected, pushed_out), (found, before_last.name))
            )
        return differences(expected, found)


def contents(run: Path) -> dict[str, str]:
    """Every file of a run directory with the SHA-256 of its content, as far as that does not depend on the clock."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file():
            content = b"" if path.name in ONLY_THERE else path.read_bytes()
            if path.suffix in (".json", ".jsonl") and content:
                lines = content.splitlines() if path.suffix == ".jsonl" else [content]
                left_out = CLOCK | MADE_UP_FOR if path.name == PROGRESS else CLOCK
                content = json.dumps([without(left_out, json.loads(line)) for line in lines]).encode()
            found[str(path.relative_to(run))] = hashlib.sha256(content).hexdigest()
        elif not any(path.iterdir()):
            found[f"{path.relative_to(run)}/"] = "an empty folder"
    return found


def lost(run: Path, *, saved: bool = False) -> str | None:
    """What of its work a run that was cut short has lost, which --resume would silently do again; None if nothing.

    Each step that was logged proves that the checkpoints due before it were saved; `saved` means that the last step
    was to be saved, too. The newest checkpoint and the one due before it have to be whole, always.
    """
    found = [path for path in list_checkpoints(run / "checkpoints") if not checkpoint_damage(path)]
    whole = [int(path.name.removeprefix("step-")) for path in found]
    newest = max(whole, default=0)
    logged = max((line["step"] for line in Run(run).metrics()), default=0)
    needed = [logged] if saved else [step for step in DUE if step < logged][-1:]
    if newest < max(needed, default=0):
        return f"step {logged} was logged, and the newest whole checkpoint is of step {newest}"
    missing = {*[step for step in DUE if step < newest][-1:]} - {*whole}
    return f"the checkpoint of step {missing.pop()} is gone" if missing else None


def without(left_out: set[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without(left_out, each) for key, each in value.items() if key not in left_out}
    return value


def differences(expected: dict[str, str], found: dict[str, str]) -> str | None:
    """The files that are not as in the undisturbed run, or None if all are."""
    missing = [f"{name} is missing" for name in expected if name not in found]
    left = [f"{name} is left behind" for name in found if name not in expected]
    differing = [f"{name} differs" for name, digest in expected.items() if found.get(name, digest) != digest]
    return "; ".join([*missing, *left, *differing]) or None


def at_point(name: str, nth: int) -> Disturbance:
    """It kills itself at a named point, or that is trouble."""

    def disturb(experiment: Experiment, launch: Launch, choices: random.Random) -> Outcome | None:
        training = launch(point=f"{name}:{nth}")
        status = training.wait()
        if not training.reached.exists() or (experiment.processes == 1 and status != -signal.SIGKILL):
            return Outcome(f"exit status {status}", f"it was not killed {name}: {training.said()[-1500:]}")
        return Outcome("killed")

    return disturb


def at_random(*, of: int = 1, rank: int | None = None) -> Disturbance:
    """It is killed at a random moment, the next `of` so many. With `rank` only that process is."""

    def disturb(experiment: Experiment, launch: Launch, choices: random.Random) -> Outcome | None:
        training = launch()
        reached = random_moment(experiment, training, choices, of=of)
        killed = reached and (training.kill() if rank is None else training.kill_one(rank))
        status = training.wait()
        return Outcome("killed") if killed and status != 0 else None

    return disturb


def restarted() -> Disturbance:
    """One of two processes is killed at a random moment; torchrun starts both again, which have to finish the run."""

    def disturb(experiment: Experiment, launch: Launch, choices: random.Random) -> Outcome | None:
        training = launch(restarts=1)
        rank = choices.randrange(2)
        killed = random_moment(experiment, training, choices) and training.kill_one(rank)
        status = training.wait()
        if killed and status != 0:
            return Outcome(f"exit status {status}", f"it was not restarted: {training.said()[-1500:]}")
        return Outcome("killed") if killed else None

    return disturb


def signalled(number: int) -> Disturbance:
    """It gets a signal at a random moment, and has to stop by itself and without a traceback."""

    def disturb(experiment: Experiment, launch: Launch, choices: random.Random) -> Outcome | None:
        training = launch()
        if not random_moment(experiment, training, choices):
            training.wait()
            return None
        training.process.send_signal(number)
        status = training.wait()
        if status == -number:
            return Outcome("before the program could say anything")
        if "Traceback" in training.said():
            return Outcome(f"exit status {status}", f"a traceback: {training.said()[-1500:]}")
        if status == 128 + number:
            return Outcome("stopped: 128 + signal", saved=True)
        if status == 0:
            return Outcome("finished: it was at its end")
        return Outcome(f"exit status {status}", f"exit status {status}: {training.said()[-1500:]}")

    return disturb


def random_moment(experiment: Experiment, training: Training, choices: random.Random, *, of: int = 1) -> bool:
    """Waits for it: one in four while it starts, the others while it trains and ends. False if it ended before.

    Of several moments in one run each comes so early that there is work left for the others.
    """
    starts, share = choices.random() < 0.25, choices.random()
    if starts:
        return training.running_after(share * experiment.starting_seconds)
    if training.training_begins():
        training.works_for(share * experiment.training_seconds / of)
    return training.process.poll() is None
