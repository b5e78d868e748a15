"""`hfpretrain runs`: what a line says about a run, in whatever state it is."""

import json
import os
import time
from pathlib import Path

import pytest
from conftest import Command
from tiny import tiny_recipe, tiny_run

from hfpretrain.cli_runs import age
from hfpretrain.errors import RunError, Stopped
from hfpretrain.run import LOCK, Run, newest_finished
from hfpretrain.training.loop import train


def test_each_state_is_told(tmp_path: Path, hfpretrain: Command) -> None:
    finished = tiny_run(tmp_path, "mlm", "train.duration=2", name="finished")
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm", "evaluation.every=4", name="stopped"), stop_after=7)
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm", "train.duration=2k tokens", name="running"), stop_after=3)
    for name, text in (
        ("damaged", "objective: [clm"),
        ("begun", "objective: clm\ndata: {sources: [{builtin: everyday}]}"),
    ):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "recipe.yaml").write_text(text)
    long_ago = time.time() - 3 * 86_400
    os.utime(tmp_path / "runs" / "begun" / "recipe.yaml", (long_ago, long_ago))
    with Run(tmp_path / "runs" / "running").locked():
        told = hfpretrain("runs")
        known = {line["run"]: line for line in json.loads(hfpretrain("runs", "--json").stdout)}
    assert (told.returncode, told.stderr) == (0, "")
    lines = {line.split()[0].removeprefix("runs/"): " ".join(line.split()[1:]) for line in told.stdout.splitlines()}
    assert lines["finished"].startswith("finished mlm 128 tokens loss ")
    assert lines["stopped"].startswith("stopped at step 7 of 12 clm 448 tokens loss ")
    assert lines["running"].startswith("running, at step 3 of 2k tokens clm 192 tokens loss ")
    assert lines["damaged"] == "damaged just now"
    assert lines["begun"] == "stopped at step 0 of 1000 clm 3 days ago"
    assert told.stdout.splitlines()[-1].startswith("runs/begun"), "the newest comes first"
    stopped = known["runs/stopped"]
    assert {key: stopped[key] for key in ("state", "objective", "step", "duration", "tokens")} == {
        "state": "stopped",
        "objective": "clm",
        "step": 7,
        "duration": "12 steps",
        "tokens": 448,
    }
    validation = [line["validation_loss"] for line in Run(tmp_path / "runs" / "stopped").metrics() if "lr" not in line]
    assert stopped["loss"] == validation[-1]
    assert newest_finished(tmp_path / "runs", "clm") is None, "only a finished one is taken for its model"
    assert newest_finished(tmp_path / "runs", "mlm") == finished


def test_a_run_in_progress_tells_its_newest_numbers_however_odd_the_lines(tmp_path: Path, hfpretrain: Command) -> None:
    lines = {
        "good": '{"step": 4, "tokens": 64, "loss": 2.5, "lr": 0.1}\n{"step": 4, "validation_loss": 3.5}\n'
        '{"step": 5, "tokens": 80, "loss": 2.25, "lr": 0.1}\n[]\n{"loss": 1.0}\n{"step": 6, "tokens": 96, "lo',
        "odd": '{"step": 7.5, "tokens": "many", "loss": NaN}\n',
        "none": "",
    }
    for name, text in lines.items():
        run = Run(tmp_path / "runs" / name)
        run.create()
        run.recipe_file.write_text("objective: clm\ndata: {sources: [{builtin: everyday}]}")
        run.metrics_file.write_text(text)
    assert hfpretrain("runs").returncode == 0
    shown = hfpretrain("runs", "--json").stdout
    assert "NaN" not in shown, "which no JSON has"
    known = {Path(line["run"]).name: (line["step"], line["tokens"], line["loss"]) for line in json.loads(shown)}
    assert known == {"good": (5, 80, 3.5), "odd": (None, None, None), "none": (0, None, None)}


def test_looking_at_a_run_keeps_nobody_from_training_in_it(tmp_path: Path) -> None:
    import fcntl
    import threading

    run = Run(tmp_path / "run")
    run.create()
    with (run.path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with run.locked():
            assert run.in_use
    assert not run.in_use
    assert (run.path / LOCK).exists()
    with run.locked(), pytest.raises(RunError, match="another process is training"), run.locked():
        pass


def test_an_age_in_words() -> None:
    told = [age(seconds) for seconds in (5, 60, 3599, 3600, 86_400, 3 * 86_400)]
    assert told == ["just now", "1 min ago", "59 min ago", "1 h ago", "24 h ago", "3 days ago"]
