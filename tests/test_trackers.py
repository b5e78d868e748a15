"""Experiment trackers: they are told what metrics.jsonl has, go on with a run, and never stop one.

Accelerate's own trackers are tested where their packages are installed; what is common to all with one of Accelerate's
kind that keeps a diary in a file, and fails when it is asked to.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers, register_tracker_class
from conftest import Command
from tiny import metrics, tiny_recipe, tiny_run

from hfpretrain.errors import RecipeError, Stopped
from hfpretrain.recipe import dump
from hfpretrain.run import Run
from hfpretrain.training.loop import train
from hfpretrain.verify import verify


class Diary(GeneralTracker):  # type: ignore[misc]  # a class of Accelerate's, whose types are not known
    """A line of JSON in $DIARY for each thing that it is told; it fails at what $DIARY_FAILS names."""

    name = "diary"
    requires_logging_directory = False

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project = project

    @property
    def tracker(self) -> None:
        return None

    def _write(self, what: str, told: Any, step: int | None = None) -> None:
        if os.environ.get("DIARY_FAILS") in (what, f"{what} {step}"):
            raise SystemExit(3) if what == "finish" else ConnectionError("the server is away.\nIt will come back.")
        sys.stdout.write(f"{what} in the diary\n")  # as some trackers print
        with Path(os.environ["DIARY"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "told": told, "step": step}) + "\n")

    def start(self) -> None:
        self._write("start", self.project)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._write("configuration", values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._write("log", values, step)

    def log_table(self, name: str, columns: list[str], data: list[list[str]], step: int) -> None:
        self._write("table", [columns, *data], step)

    def finish(self) -> None:
        self._write("finish", None)


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    register_tracker_class(Diary)
    monkeypatch.setenv("DIARY", str(tmp_path / "diary.jsonl"))
    yield tmp_path / "diary.jsonl"
    del LOGGER_TYPE_TO_CLASS["diary"]


def read(diary: Path, what: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in diary.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["what"] == what]


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The numbers of metrics.jsonl with their steps, by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics():
        step, time = line.pop("step"), line.pop("time", {})
        for key, value in (line | {f"time/{name}": share for name, share in time.items()}).items():
            if key != "samples":
                found.setdefault(key, []).append((step, value))
    return found


def test_a_tracker_is_told_the_recipe_every_line_and_the_samples(
    tmp_path: Path, diary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = "evaluation.prompts=[the quick brown]"
    run = tiny_run(tmp_path, "clm", "trackers=[diary]", prompts)
    assert capfd.readouterr().out == "", "stdout is for results"
    told: dict[str, list[tuple[int, float]]] = {}
    for line in read(diary, "log"):
        for key, value in line["told"].items():
            told.setdefault(key, []).append((line["step"], value))
    assert told == curves(run)
    (configuration,) = (line["told"] for line in read(diary, "configuration"))
    assert configuration["model.architecture"] == "gpt2"
    assert configuration["data.sources.0.files"] == "PATH"
    assert configuration["run.parameters"] == run.report()["parameters"]
    assert str(tmp_path) not in json.dumps(configuration)
    first, last = read(diary, "table")
    assert first["step"] == 6
    assert last["told"][0] == ["text", "model"]
    assert last["told"][1][0] == "the quick brown"
    assert len(read(diary, "start")) == len(read(diary, "finish")) == 1
    assert all(finding.good for finding in verify(run.path))


@pytest.mark.parametrize("failing", ["start", "configuration", "log 1", "log 6", "log 12", "table 6", "finish"])
def test_a_tracker_that_fails_is_left_out_and_said_once(
    tmp_path: Path, diary: Path, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DIARY_FAILS", failing)
    run = tiny_run(tmp_path, "clm", "trackers=[diary]", "evaluation.prompts=[the quick brown]")
    assert run.state == "finished"
    (said,) = (record.getMessage() for record in caplog.records if "diary" in record.getMessage())
    assert len(said.splitlines()) == 1
    if failing != "finish":
        assert "the server is away); the run goes on without it" in said
    told = {line["step"] for line in read(diary, "log")} if diary.exists() else set()
    assert len(told) == {"start": 0, "configuration": 0, "log 1": 0, "log 6": 5, "log 12": 11, "table 6": 6}.get(
        failing, 12
    )
    monkeypatch.delenv("DIARY_FAILS")
    undisturbed = tiny_run(tmp_path, "clm", "evaluation.prompts=[the quick brown]", name="undisturbed")
    assert metrics(undisturbed) == metrics(run)


def test_a_tracker_that_comes_later_or_begins_anew_is_told_everything(tmp_path: Path, diary: Path) -> None:
    recipe = tiny_recipe(tmp_path, "clm", "evaluation.every=5")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    assert not diary.exists()
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm", "evaluation.every=5", "trackers=[diary]"), resume=True, stop_after=9)
    assert [line["step"] for line in read(diary, "log")] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert len(read(diary, "finish")) == 1, "a run that stops has its trackers send what they hold"
    diary.unlink()
    run = train(tiny_recipe(tmp_path, "clm", "evaluation.every=5", "trackers=[diary]"), resume=True)
    assert [line["step"] for line in read(diary, "log")] == [line["step"] for line in run.metrics()]


def test_what_is_kept_of_trackers_may_be_damaged_or_impossible_to_keep(
    tmp_path: Path, diary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(tmp_path, "clm", "trackers=[diary]")
    with pytest.raises(Stopped):
        train(recipe, stop_after=3)
    (Run(Path(recipe.output_dir)).logs / "trackers.json").write_text('{"diary": 3, "wandb": {"id": []}}')
    run = train(recipe, resume=True)
    assert read(diary, "log")[-1]["step"] == 12
    (tmp_path / "runs" / "other").mkdir()
    other = tiny_recipe(tmp_path, "clm", "trackers=[diary]", name="other")
    Run(Path(other.output_dir)).logs.write_text("a file is here")
    (tmp_path / "runs" / "other" / "recipe.yaml").write_text(dump(other))
    train(other, resume=True)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (said,) = (each for each in warnings if "tracker" in each)  # a busy machine may have others
    assert said.startswith("the tracker diary could not be started (FileExistsError")
    assert metrics(run) == metrics(Run(Path(other.output_dir)))


def test_unknown_and_missing_trackers_are_said_before_anything_is_prepared(tmp_path: Path) -> None:
    there = {str(each) for each in get_available_trackers()}
    missing = sorted(set(LOGGER_TYPE_TO_CLASS) - there)[0]
    for name, said, hint in (
        ("tensorbord", "no tracker called 'tensorbord'", "did you mean tensorboard?"),
        ("spreadsheet", "no tracker called 'spreadsheet'", "take of aim, "),
        (missing, f"{missing} is not installed", f"pip install {missing}"),
    ):
        recipe = tiny_recipe(tmp_path, "clm", f"trackers=[{name}]")
        with pytest.raises(RecipeError) as caught:
            train(recipe)
        assert said in str(caught.value)
        assert hint in str(caught.value)
        assert not Path(recipe.output_dir).exists()


KILLED = """
import os, signal, sys
import hfpretrain.training.loop as loop
from hfpretrain.cli import main
step_of, at = loop.train_step, int(sys.argv.pop(1))
def train_step(session, step, *rest):
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_of(session, step, *rest)
loop.train_step = train_step
main()
"""


def test_three_trackers_at_once_have_the_history_of_the_run(tmp_path: Path, hfpretrain: Command) -> None:
    """Killed after a checkpoint and resumed: nothing is missing, nothing is told twice, and all agree."""
    for package in ("tensorboard", "wandb", "trackio"):
        pytest.importorskip(package)
    recipe = tiny_recipe(tmp_path, "clm", "trackers=[tensorboard, wandb, trackio]", "evaluation.prompts=[the quick]")
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "8", "train", "recipe.yaml"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = hfpretrain("train", "recipe.yaml", "--resume", **environment)
    assert done.returncode == 0, done.stderr
    assert "the tracker" not in done.stderr
    run = Run(Path(recipe.output_dir))
    assert [line["step"] for line in run.metrics() if "lr" in line] == list(range(1, 13))
    expected = curves(run)
    scalars = from_tensorboard(run)
    assert scalars.keys() == expected.keys()
    for key, points in expected.items():
        assert [step for step, _ in scalars[key]] == [step for step, _ in points]
        assert [value for _, value in scalars[key]] == pytest.approx([value for _, value in points], rel=1e-6)
    assert from_wandb(run) == expected
    sent = max((run.logs / "wandb").glob("offline-run-*/*.wandb")).read_bytes()
    assert not [place for place in (tmp_path, sys.executable) if str(place).encode() in sent]
    once = {key: dict(points) for key, points in from_trackio(tmp_path / "trackio").items()}
    clock = {key for key in expected if key in ("mfu", "tokens_per_second") or key.startswith("time/")}
    assert {key: points for key, points in once.items() if key not in clock} == {
        key: dict(points) for key, points in expected.items() if key not in clock
    }
    assert {step for key in clock for step in once[key]} == set(range(1, 13))
    assert all(finding.good for finding in verify(run.path))


def from_tensorboard(run: Run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.logs / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert events.Tags()["tensors"] == ["samples/text_summary"]
    return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


def from_wandb(run: Run) -> dict[str, list[tuple[int, float]]]:
    """From the newest folder: a file of blocks of 32 KiB, in which records have a head of checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content = max((run.logs / "wandb").glob("offline-run-*/*.wandb")).read_bytes()
    found: dict[str, list[tuple[int, float]]] = {}
    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):  # whole, or the last part
            continue
        record, parts = wandb_internal_pb2.Record.FromString(parts), b""
        if record.WhichOneof("record_type") != "history":
            continue
        for item in record.history.item:
            key, value = item.key or "/".join(item.nested_key), json.loads(item.value_json)
            if not key.startswith(("_", "samples/")) and isinstance(value, int | float):
                found.setdefault(key, []).append((record.history.step.num, value))
    return found


def from_trackio(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    with sqlite3.connect(folder / "hfpretrain.db") as database:
        rows = list(database.execute("select run_name, step, metrics from metrics order by id"))
    assert len({name for name, _, _ in rows}) == 1, "one run of trackio's"
    for _, step, values in rows:
        for key, value in json.loads(values).items():
            if isinstance(value, int | float):
                found.setdefault(key, []).append((step, value))
    return found
