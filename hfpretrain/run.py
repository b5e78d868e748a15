"""The run directory: where its parts are, what state it is in, and which run is the newest."""

import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfpretrain.errors import CheckpointError, HFPretrainError, RunError
from hfpretrain.files import MANIFEST, damage, json_object, make_folder, open_own
from hfpretrain.recipe import load

log = logging.getLogger(__name__)

State = Literal["empty", "started", "finished"]

PROGRESS = "progress.json"
"""In a checkpoint: how far the run was."""
FINISHED = "finished run"
"""What the manifest in a finished run is of."""
LOCK = ".lock"
"""The file that a process which trains in a run directory has locked; it counts as nothing."""
LOOKED_AT = 0.2
"""Seconds for which nobody holds the lock of a run who only lists it."""
DAMAGED = "damaged-"
"""What the name of a checkpoint begins with that was set aside, as a run went back to an earlier one."""


@dataclass(frozen=True)
class Run:
    """A directory that a training leaves behind."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        """A JSON line per logged step and per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def report_file(self) -> Path:
        """What the finished run came to."""
        return self.path / "report.json"

    @property
    def manifest_file(self) -> Path:
        """Size and SHA-256 of the files of the finished run, but not of its card, which may be edited."""
        return self.path / MANIFEST

    @property
    def partial(self) -> Path:
        """Where the files of tokenizer and finished model are written before they are moved into the run."""
        return self.path / ".final.partial"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def card_file(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def curve_file(self) -> Path:
        """The picture of the training curve that the card shows."""
        return self.path / "training_curve.png"

    @property
    def page_file(self) -> Path:
        """The report: a page to look at."""
        return self.path / "report.html"

    @property
    def averaged(self) -> Path:
        """The model with the average of the weights, if the recipe asks for one."""
        return self.path / "averaged"

    @property
    def unpushed(self) -> Path:
        """A folder for each checkpoint that is to be pushed and is not yet, called as its branch."""
        return self.path / "unpushed"

    @property
    def logs(self) -> Path:
        """What trackers write, and what is known of them; nothing of it belongs to the model."""
        return self.path / "logs"

    def create(self) -> None:
        """Makes the directory; RunError where that is not possible."""
        try:
            make_folder(self.path)
        except OSError as error:
            raise RunError(
                f"output_dir: {self.path} cannot be created: {error.strerror}", hint="choose another output_dir"
            ) from error

    def check_own(self) -> None:
        """Raises RunError where a part of the run leads elsewhere: nothing is written or removed there."""
        for part in (self.metrics_file, self.checkpoints, self.unpushed, self.logs):
            if part.is_symlink() or (part.exists() and not part.is_file() and not part.is_dir()):
                raise RunError(
                    f"{part} is a link or a device, and a run writes to its own directory alone",
                    hint="put what it leads to in its place, or remove it",
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this directory, which is made; RunError where one does.

        The system lifts the lock when the process ends, however it ends. The file that is locked is empty and stays,
        unless nothing else is in the directory that was made here.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.create()
        self.check_own()
        with ExitStack() as opened:
            try:
                # For writing: over NFS nothing else can be locked for one process alone, and a folder never.
                file = open_own(self.path / LOCK, os.O_WRONLY | os.O_CREAT)
                opened.callback(os.close, file)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(LOOKED_AT)  # somebody may only be looking whether it is locked
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "wait until it has ended, or choose another output_dir"
                raise RunError(f"another process is training in {self.path}", hint=hint) from None
            except OSError as error:  # a file system without locks
                what = "nothing keeps another process from training in it as well"
                log.warning("%s cannot be locked (%s): %s", self.path, error.strerror or error, what)
            try:
                yield
            finally:
                if made and [*self.path.iterdir()] == [self.path / LOCK]:
                    with suppress(OSError):
                        (self.path / LOCK).unlink()
                        for each in made:
                            each.rmdir()

    @property
    def in_use(self) -> bool:
        """Whether a process trains in this directory just now, as far as that can be seen."""
        try:
            file = open_own(self.path / LOCK, os.O_RDONLY)  # over NFS a shared lock needs a file that can be read
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(file)
        return False

    @property
    def state(self) -> State:
        try:
            self.path.exists()
        except (OSError, ValueError) as error:  # too long
            why = getattr(error, "strerror", None) or error
            raise RunError(f"output_dir: {self.path} cannot be a folder: {why}", hint="choose another") from None
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"output_dir: {self.path} is a file", hint="choose another output_dir")
        if self.report_file.exists():
            return "finished"
        if self.path.exists() and any(path.name != LOCK for path in self.path.iterdir()):
            return "started"
        return "empty"

    def report(self) -> dict[str, Any]:
        """report.json; RunError where there is none or it is damaged."""
        try:
            return json_object(self.report_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} is not a finished run: it has no {self.report_file.name}",
                hint=f"go on with it: hfpretrain train {self.recipe_file} --resume",
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.report_file} cannot be read ({error})") from None

    def summary(self) -> "Summary":
        """What is known of the run, however damaged its report is."""
        changed = max((_time_of(file) for file in (self.recipe_file, self.metrics_file, self.report_file)), default=0.0)
        try:
            state = self.state
            if state != "finished":
                return self._unfinished(changed)
            report = self.report()
        except (OSError, RunError):
            return Summary("damaged", changed=changed)
        objective, tokens, loss = report.get("objective"), report.get("tokens"), report.get("validation_loss")
        loss = report.get("loss") if loss is None else loss
        step = report.get("steps")
        return Summary(
            state,
            objective=objective if objective in ("clm", "mlm") else None,
            tokens=tokens if type(tokens) is int else None,
            loss=loss if isinstance(loss, float) and math.isfinite(loss) else None,
            step=step if type(step) is int else None,
            changed=changed,
        )

    def _unfinished(self, changed: float) -> "Summary":
        """What recipe and metrics say of a run that is not finished."""
        try:
            recipe = load(self.recipe_file)
        except HFPretrainError:
            return Summary("damaged", changed=changed)
        known = self._newest("step", "tokens", "loss", "validation_loss")
        step, tokens, loss = known.get("step", 0), known.get("tokens"), known.get("validation_loss", known.get("loss"))
        return Summary(
            "running" if self.in_use else "stopped",
            objective=recipe.objective,
            tokens=tokens if type(tokens) is int else None,
            loss=loss if isinstance(loss, float) and math.isfinite(loss) else None,
            step=step if type(step) is int else None,
            duration=str(recipe.train.duration),
            changed=changed,
        )

    def _newest(self, *keys: str) -> dict[str, Any]:
        """The newest value of each key in metrics.jsonl, which may be too long to be read line by line for a list."""
        found: dict[str, Any] = {}
        if not self.metrics_file.is_file():
            return found
        content = self.metrics_file.read_bytes()
        for key in keys:
            end = len(content)
            while key not in found and (place := content.rfind(f'"{key}":'.encode(), 0, end)) >= 0:
                end = content.rfind(b"\n", 0, place) + 1
                line = content[end : content.find(b"\n", place)].decode(errors="replace")
                if step_of(line) < math.inf and key in (values := json.loads(line)):
                    found[key] = values[key]
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that was cut off, or is damaged, is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [json.loads(line) for line in lines if step_of(line) < math.inf]


@dataclass(frozen=True)
class Summary:
    """What a line says about a run. What is not known of it, or stands there in another form, is None."""

    state: Literal["finished", "running", "stopped", "damaged"]
    """stopped: it is not finished, and no process trains in it, however it ended: --resume goes on."""
    objective: str | None = None
    tokens: int | None = None
    """That were seen."""
    loss: float | None = None
    """The validation loss, or without one the last training loss."""
    step: int | None = None
    """The last one that is known."""
    duration: str | None = None
    """Of a run that is not finished: what it is to become, as the recipe says it."""
    changed: float = 0.0
    """When it last wrote something, in seconds since 1970."""


def _time_of(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity for one that was cut off, or is damaged."""
    try:
        step = json_object(line)["step"]
        return float(step) if math.isfinite(step) else math.inf
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def checkpoint_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole and of the step that its name says."""
    if what := damage(path, of=path.name):
        return what
    try:
        step = json_object((path / PROGRESS).read_text(encoding="utf-8"))["step"]
        return None if path.name == f"step-{step:08d}" else f"{PROGRESS} is of another step"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{PROGRESS} cannot be read"


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; None if there are no checkpoints.

    Damaged ones are passed over with a warning. Raises CheckpointError if there are some and none is whole.
    """
    damaged: list[str] = []
    for path in list_checkpoints(folder):
        what = checkpoint_damage(path)
        if what is None:
            if damaged:
                log.warning("checkpoint %s; going back to %s", ", ".join(damaged), path)
            return path
        damaged.append(f"{path.name} is damaged ({what})")
    # Those that an earlier start set aside are of the run as well: without any other it must not begin anew unseen.
    damaged += [f"{path.name} was set aside before" for path in sorted(folder.glob(f"{DAMAGED}step-*"), reverse=True)]
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {', '.join(damaged)}",
            hint=f"bring a whole one back; or remove {folder} to train from the start, or choose another output_dir",
        )
    return None


def runs(folder: Path) -> list[Run]:
    """The runs in `folder`, newest first."""
    if not folder.is_dir():
        return []
    found = [Run(path) for path in folder.iterdir() if (path / "recipe.yaml").is_file()]
    return sorted(found, key=lambda run: run.recipe_file.stat().st_mtime, reverse=True)


def newest_finished(folder: Path, objective: Literal["clm", "mlm"]) -> Run | None:
    """The run of that objective in `folder` that finished last, or None."""
    finished = [run for run in runs(folder) if run.report_file.exists() and run.summary().objective == objective]
    return max(finished, key=lambda run: run.report_file.stat().st_mtime, default=None)
