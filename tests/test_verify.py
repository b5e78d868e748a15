"""A run that can be proven: its files against their manifests, its steps against steps trained again."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Command
from tiny import tiny_recipe, tiny_run

from hfpretrain.errors import RunError, Stopped
from hfpretrain.files import commit_folder, damage
from hfpretrain.recipe import dump
from hfpretrain.run import Run
from hfpretrain.training.loop import train
from hfpretrain.verify import replay, verify


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_a_run_reproduces_bit_for_bit(tmp_path: Path, objective: str, hfpretrain: Command) -> None:
    """By the command, in a process of its own, on a run with dropout and two micro-batches a step."""
    recipe = tmp_path / "recipe.yaml"
    settings = ["train.micro_batch_size=2", "checkpoints.keep=3"]
    recipe.write_text(dump(tiny_recipe(tmp_path, objective, *settings, name="run")))
    assert hfpretrain("train", recipe).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    done = hfpretrain("verify", "runs/run", "--replay", "7")
    assert done.returncode == 0, done.stderr
    lines = {line[:36].strip(): line[36:].strip() for line in done.stdout.splitlines()}
    assert lines["finished run"].startswith("whole: ")
    assert lines["checkpoints/step-00000010"].startswith("whole: ")
    assert lines["metrics.jsonl"] == "whole: 14 lines, each once and in order"
    assert lines["steps 6 to 12"] == "9 lines of metrics are the same, bit for bit"
    assert lines["weights and optimizer after step 12"] == "the same, bit for bit"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before


def test_what_does_not_reproduce_is_shown(tmp_path: Path) -> None:
    """A run whose numbers were made up, and one that goes on from other weights than it says."""
    run = tiny_run(tmp_path, "clm")
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    lines[-2]["loss"] -= 1e-6
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (metrics, weights) = replay(run.path, 2)
    assert not metrics.good
    assert metrics.found.startswith("step 12 differs: loss ")
    assert weights.good
    other = tiny_run(tmp_path, "clm", "seed=1", name="other")
    checkpoint = run.checkpoints / "step-00000010"
    shutil.copytree(other.checkpoints / checkpoint.name, run.checkpoints / "beside")
    (run.checkpoints / "beside" / "manifest.json").unlink()
    shutil.rmtree(checkpoint)
    commit_folder(run.checkpoints / "beside", checkpoint)
    assert [finding.good for finding in replay(run.path, 2)] == [False, False]


def test_a_run_that_was_changed_on_the_way_reproduces(tmp_path: Path) -> None:
    """From the checkpoint after which it was changed, which holds the recipe from before."""
    recipe = tiny_recipe(tmp_path, "clm", "checkpoints.keep=3")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    changed = tiny_recipe(tmp_path, "clm", "checkpoints.keep=3", "optimizer.lr=2e-3")
    run = train(changed, resume=True, allow_changes=True)
    assert [finding.good for finding in replay(run.path, 5)] == [True, True]


def test_damage_is_found_and_is_the_exit_status(tmp_path: Path, hfpretrain: Command) -> None:
    run = tiny_run(tmp_path, "clm", name="run")
    for file in (run.path / "model.safetensors", run.checkpoints / "step-00000010" / "optimizer.bin"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with run.metrics_file.open("a") as lines_file:
        lines_file.write('{"step": 12, "lo')
    (run.path / "model.safetensors").unlink()
    assert damage(run.path, covers=lambda name: name.startswith("model")) == "model.safetensors is missing"
    done = hfpretrain("verify", run.path)
    assert done.returncode == 1, done.stderr
    lines = {line[:36].strip(): line[36:].strip() for line in done.stdout.splitlines()}
    assert lines["finished run"] == "damaged: metrics.jsonl is not what was saved"
    assert lines["checkpoints/step-00000010"] == "damaged: optimizer.bin is not what was saved"
    assert lines["checkpoints/step-00000012"].startswith("whole")
    assert lines["metrics.jsonl"] == "a line cannot be read"


@pytest.mark.parametrize("stop_after", [7, 12])
def test_metrics_that_were_cut_before_a_resume(
    tmp_path: Path, stop_after: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, then and ever after; also where no other checkpoint was saved."""
    recipe = tiny_recipe(tmp_path, "clm")
    with pytest.raises(Stopped):
        train(recipe, stop_after=stop_after)
    run = Run(Path(recipe.output_dir))
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join(lines[:3]) + lines[3][:20])
    before = f"3 lines are there, and {len(lines)} were when step {stop_after} was saved"
    assert list(verify(run.path))[-1].found == before
    train(recipe, resume=True)
    assert f"{run.metrics_file} lacks {len(lines) - 3} lines that were in it" in caplog.text
    left = [step for step in range(1, 13) if step <= 3 or step > stop_after]
    assert [line["step"] for line in run.metrics() if "loss" in line] == left
    found = list(verify(run.path))[-1]
    assert not found.good
    assert found.found == (f"lines that were lost before a resume: {len(lines) - 3}" if stop_after == 7 else before)


def test_a_replay_that_would_compare_nothing_is_refused(tmp_path: Path) -> None:
    """It says which one is enough."""
    run = tiny_run(tmp_path, "clm", "checkpoints={every: 6, keep: 9}", "train.log_every=6")
    with pytest.raises(RunError, match="steps 7 to 10: there is nothing to compare") as refused:
        list(replay(run.path, 4))
    assert refused.value.hint == "--replay 6 is enough"
    assert [finding.good for finding in replay(run.path, 6)] == [True, True]


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        list(verify(tmp_path))
    timed = tiny_run(tmp_path, "clm", "train.duration=0.01 minutes", name="timed")
    with pytest.raises(RunError, match=r"its train\.duration is a time"):
        list(replay(timed.path, 2))
    run = tiny_run(tmp_path, "clm")
    shutil.rmtree(run.checkpoints / "step-00000010")
    with pytest.raises(RunError, match="no whole checkpoint with steps after it"):
        list(replay(run.path, 2))
    assert Run(run.path).state == "finished"
