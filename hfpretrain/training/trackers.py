"""Experiment trackers through Accelerate: the recipe, every line of metrics and the samples, from the first process.

A tracker never stops a run: one that fails is left out from then on, and a line says so. What each has been told is
kept in the run, so that a run that goes on goes on in the same place of the tracker, and tells nothing twice.
"""

import contextlib
import json
import logging
import os
import secrets
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from hfpretrain.card import made_of, sample_in_words, shareable
from hfpretrain.errors import RecipeError, nearest
from hfpretrain.files import json_object, remove
from hfpretrain.hub import first_line
from hfpretrain.recipe import Recipe
from hfpretrain.run import Run
from hfpretrain.secrets import without_secrets

log = logging.getLogger(__name__)

PROJECT = "hfpretrain"
"""What trackers call the group of all runs, unless their own environment says otherwise."""
LONGEST = 200
"""Characters that are told of an error."""
FACTS = (
    *("parameters", "parameters_without_embeddings", "learning_rate", "training_tokens", "validation_tokens"),
    *("data_fingerprint", "packing", "precision", "device", "processes", "versions"),
)
"""What of a run is told beside its recipe."""

Kept = dict[str, Any]
"""What is kept of a tracker: its run's `id` there, and the place of the line that it was `told` last."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for a name that Accelerate does not know, or whose package is not installed."""
    if not names:
        return
    missing = set(LoggerType.list()) - {str(each) for each in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            close = nearest(name, LOGGER_TYPE_TO_CLASS)
            hint = f"did you mean {close}?" if close else f"take of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            raise RecipeError(f"trackers: Accelerate knows no tracker called {name!r}", hint=hint)
        if name in missing:
            raise RecipeError(
                f"trackers: {name} is not installed", hint=f"pip install {name}, or remove it from trackers"
            )


def open_trackers(
    run: Run, recipe: Recipe, facts: dict[str, Any], step: int, *, evaluation_due: bool = False
) -> "Trackers | None":
    """The trackers of a run that is at `step`, told what they lack up to there; None where the recipe names none.

    `evaluation_due` is whether the evaluation after this step is still to come, or to be made anew. For the first
    process alone.
    """
    if not recipe.trackers:
        return None
    trackers, config = Trackers(run), configuration(recipe, facts)
    known = run.metrics() if os.access(run.metrics_file, os.R_OK) else []
    for name in dict.fromkeys(recipe.trackers):
        trackers.open(name, recipe.name, config, step, evaluation_due=evaluation_due)
        for line in known:
            trackers.tell(line, only=name)
    return trackers


class Trackers:
    """The trackers of a run, by Accelerate's names for them."""

    def __init__(self, run: Run) -> None:
        self.folder = run.logs
        self.opened: dict[str, GeneralTracker] = {}
        self._file = run.logs / "trackers.json"
        self._kept: dict[str, Kept] = _read(self._file)
        self._said = False

    def open(self, name: str, called: str, config: dict[str, Any], step: int, *, evaluation_due: bool) -> None:
        """Has a tracker begin, or go on where it was; its run there is `called` so."""
        kept = self._kept.get(name) if name in GOES_ON else None
        begins = kept is None
        kept = self._kept[name] = kept or {"id": secrets.token_hex(4), "told": -1}
        if evaluation_due:
            kept["told"] = min(kept["told"], step)
        if name == "tensorboard":  # it hides what it has from this step on, and is told again
            kept["told"] = min(kept["told"], step - 0.5)
        with self._guarded(name, "could not be started"):
            self.folder.mkdir(exist_ok=True)
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            project, settings = _settings(name, kept, called, self.folder, None if begins else step)
            where = [str(self.folder)] if tracker_class.requires_logging_directory else []
            tracker = tracker_class(project, *where, **settings)
            tracker.start()
            if begins or name == "wandb":
                tracker.store_init_configuration(config)
            if begins and name == "mlflow":
                kept["id"] = tracker.tracker.info.run_id
            if not begins and (has := _last_step(name, tracker)) is not None and int(kept["told"]) > has:
                kept["told"] = has  # whether an evaluation after it is there is not known: it is told again
            self.opened[name] = tracker
        if begins and name not in self.opened:
            del self._kept[name]  # there is no run to go on with
        self._keep()

    def tell(self, line: dict[str, Any], *, only: str | None = None) -> None:
        """Tells every tracker, or `only` one, a line of metrics that it was not told yet."""
        place = _place(line)
        values = _numbers({key: value for key, value in line.items() if key not in ("step", "samples")})
        told = False
        for name, tracker in list(self.opened.items()):
            if only in (None, name) and place > self._kept[name]["told"]:
                with self._guarded(name, f"failed at step {line['step']}"):
                    tracker.log(values, step=line["step"])
                    if samples := line.get("samples"):
                        _show(name, tracker, line["step"], samples)
                    self._kept[name]["told"] = place
                    told = True
        if told and not only:
            self._keep()

    def finish(self) -> None:
        """Has each send what it still holds, and end."""
        self._keep()
        for name, tracker in list(self.opened.items()):
            with self._guarded(name, "could not be ended", then="the run is not touched by that"):
                if name == "trackio":  # else it ends once more when Python does
                    import_module("trackio").finish()
                else:
                    tracker.finish()
        self.opened.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str, what: str, then: str = "the run goes on without it") -> Iterator[None]:
        """Leaves a tracker out that fails inside. What it prints goes to stderr, as stdout is for results."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except (Exception, SystemExit) as error:
            self.opened.pop(name, None)
            why = textwrap.shorten(f"{type(error).__name__}: {first_line(error)}", LONGEST, placeholder=" ...")
            log.warning("the tracker %s %s (%s); %s", name, what, why, then)
            log.debug("the tracker failed", exc_info=True)

    def _keep(self) -> None:
        """Writes down what each was told; not flushed to the disk, so that a power loss may have a line told twice."""
        if not self._kept and not self._file.exists():
            return
        beside = self._file.with_name(f".{self._file.name}.partial")
        try:
            remove(beside)
            beside.write_text(json.dumps(self._kept) + "\n", encoding="utf-8")
            beside.rename(self._file)
        except OSError as error:
            if not self._said:
                self._said = True
                why = error.strerror or error
                log.warning("%s cannot be written (%s): --resume would begin anew in trackers", self._file, why)


GOES_ON = ("tensorboard", "wandb", "trackio", "mlflow")
"""Trackers in which a run goes on. In others it begins anew, and is told from the first step on."""


def _settings(name: str, kept: Kept, called: str, folder: Path, again: int | None) -> tuple[str, dict[str, Any]]:
    """The project, and what else a tracker is started with; `again` is the step that a run goes on from.

    What the tracker's own environment says comes first.
    """
    match name:
        case "tensorboard":
            return name, {"purge_step": again or 0}
        case "wandb":
            project = os.environ.get("WANDB_PROJECT") or PROJECT
            own = {"name": called, "id": kept["id"], "dir": str(folder), "resume": "allow"}
            variables = {"name": "WANDB_NAME", "id": "WANDB_RUN_ID", "dir": "WANDB_DIR", "resume": "WANDB_RESUME"}
            # What is printed, and what wandb notes of the process (command, program, folder), is not sent, as it has
            # paths of this machine; nor are all curves printed at the end.
            quiet = {"console": ("WANDB_CONSOLE", "off"), "quiet": ("WANDB_QUIET", True)}
            quiet["x_disable_meta"] = ("WANDB_X_DISABLE_META", True)
            settings = {key: value for key, (variable, value) in quiet.items() if variable not in os.environ}
            own = {key: value for key, value in own.items() if variables[key] not in os.environ}
            return project, own | {"settings": settings}
        case "trackio":  # it knows a run by its name alone
            return PROJECT, {"name": f"{called}-{kept['id']}", "resume": "allow", "embed": False}
        case "mlflow":
            return PROJECT, {"run_name": called} | ({} if again is None else {"run_id": kept["id"]})
        case _:
            return PROJECT, {}


def _last_step(name: str, tracker: GeneralTracker) -> int | None:
    """The last step that a tracker has of a run that goes on, where it can be asked: a kill may have cost the rest.

    What wandb wrote offline cannot be asked for, and may have been lost whole: it is told everything again, so that its
    newest folder has all.
    """
    run: Any = tracker.tracker
    if name == "wandb":
        return -1 if run.offline else int(run.step) - 1
    if name == "trackio" and (following := getattr(run, "_next_step", None)) is not None:
        return int(following) - 1
    return None


def configuration(recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """The resolved recipe and some facts of the run, flat, without local paths and secrets."""
    told = {key: facts[key] for key in FACTS if facts.get(key) is not None}
    return dict(_flat(shareable(facts, recipe) | {"run": told}))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Nested mappings and lists as dotted keys with plain values."""
    if isinstance(value, dict | list):
        for inner, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{key}.{inner}" if key else str(inner))
    elif value is not None:
        yield key, value if isinstance(value, int | float) else without_secrets(str(value))


def _numbers(values: dict[str, Any]) -> dict[str, int | float]:
    """The numbers of a line; those in it that are grouped are called `group/name`."""
    found: dict[str, int | float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}/{inner}": item for inner, item in _numbers(value).items()}
        elif isinstance(value, int | float):
            found[key] = value
    return found


def _place(line: dict[str, Any]) -> float:
    """The place of a line in the order of all: its step, and half a step more for an evaluation after it."""
    step: int = line["step"]
    return step if "lr" in line else step + 0.5


def _show(name: str, tracker: GeneralTracker, step: int, samples: list[dict[str, Any]]) -> None:
    """Shows what the model made of a few texts: as a table, or as text, where a tracker can."""
    table: Callable[..., None] | None = getattr(tracker, "log_table", None)
    lines = [" ".join(sample_in_words(sample).split()) for sample in samples]
    if table is not None:
        rows = [[sample["text"], made_of(sample)] for sample in samples]
        table("samples", columns=["text", "model"], data=rows, step=step)
    elif name in ("tensorboard", "trackio", "comet_ml"):
        tracker.log({"samples": "\n\n".join(lines)}, step=step)
    elif name == "mlflow":
        import_module("mlflow").log_text("\n".join(lines) + "\n", f"samples/step-{step:08d}.txt")


def _read(file: Path) -> dict[str, Kept]:
    """What was kept of trackers; nothing where there is no such file, or one that cannot be understood."""
    try:
        content = json_object(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        name: {"id": kept["id"], "told": kept["told"]}
        for name, kept in content.items()
        if isinstance(kept, dict) and isinstance(kept.get("id"), str) and isinstance(kept.get("told"), int | float)
    }
