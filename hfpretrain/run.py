"""The run directory: where its parts are, what state it is in, and which run is the newest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfpretrain.errors import RunError

State = Literal["empty", "started", "finished"]


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
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Makes the directory; RunError where that is not possible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"output_dir: {self.path} cannot be created: {error.strerror}", hint="choose another output_dir"
            ) from error

    @property
    def state(self) -> State:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"output_dir: {self.path} is a file", hint="choose another output_dir")
        if self.report_file.exists():
            return "finished"
        if self.path.exists() and any(self.path.iterdir()):
            return "started"
        return "empty"

    def report(self) -> dict[str, Any]:
        """report.json; RunError where there is none or it does not parse."""
        try:
            report: dict[str, Any] = json.loads(self.report_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} is not a finished run: it has no {self.report_file.name}",
                hint=f"go on with it: hfpretrain train {self.recipe_file} --resume",
            ) from None
        except ValueError as error:
            raise RunError(f"{self.report_file}: not JSON ({error})") from None
        return report


def runs(folder: Path) -> list[Run]:
    """The runs in `folder`, newest first."""
    if not folder.is_dir():
        return []
    found = [Run(path) for path in folder.iterdir() if (path / "recipe.yaml").is_file()]
    return sorted(found, key=lambda run: run.recipe_file.stat().st_mtime, reverse=True)


def newest_finished(folder: Path, objective: Literal["clm", "mlm"]) -> Run | None:
    """The run of that objective in `folder` that finished last, or None."""
    finished = [run for run in runs(folder) if run.state == "finished" and run.report().get("objective") == objective]
    return max(finished, key=lambda run: run.report_file.stat().st_mtime, default=None)
