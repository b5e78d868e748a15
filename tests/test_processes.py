"""Two processes learn what one learns, evaluate what there is even if it is less than one block for each, and go on
from the same checkpoint even if one of them cannot read it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import LLAMA, metrics, tiny_recipe, tiny_run

from hfpretrain.recipe import dump
from hfpretrain.run import Run


def in_two_processes(recipe: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    return subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "hfpretrain", "train", str(recipe), *options],
        cwd=recipe.parent,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"} | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, objective: str) -> None:
    config = LLAMA if objective == "clm" else LLAMA | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    settings = [
        f"model={{architecture: {'llama' if objective == 'clm' else 'bert'}, config: {config}}}",
        "train.micro_batch_size=1",
        "data.validation=1%",
        "train.duration=50",
    ]
    one = tiny_run(tmp_path, objective, *settings, name="one")
    file = tmp_path / "two.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, objective, *settings, name="two")))
    done = in_two_processes(file)
    assert done.returncode == 0, done.stderr[-3000:]
    two = Run(tmp_path / "runs" / "two")
    assert two.report()["processes"] == 2
    assert two.report()["validation_targets"] == one.report()["validation_targets"] > 0
    for single, double in zip(metrics(one), metrics(two), strict=True):
        # Losses within 1e-5 over all 50 steps; perplexities, which are large, within a millionth.
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)


def test_a_growing_batch_is_cut_for_two_processes_as_well(tmp_path: Path) -> None:
    settings = [
        f"model={{architecture: llama, config: {LLAMA}}}",
        "train.batch_size={from: 2, to: 6, over: 10 steps}",
        "train.micro_batch_size=2",
        "train.duration=20",
    ]
    one = tiny_run(tmp_path, "clm", *settings, name="one")
    file = tmp_path / "two.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "clm", *settings, name="two")))
    done = in_two_processes(file)
    assert done.returncode == 0, done.stderr[-3000:]
    for single, double in zip(metrics(one), metrics(Run(tmp_path / "runs" / "two")), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)
    done = in_two_processes(file, "output_dir=odd", "train.batch_size={from: 3, to: 6}")
    assert "train.batch_size: 3 do not divide by 2 processes" in done.stderr


ALONE = """
import sys
from datetime import timedelta
from hfpretrain.recipe import load
from hfpretrain.training import session
assert session.PATIENCE >= timedelta(hours=1)
session.PATIENCE = timedelta(seconds=1)
session.open_accelerator(load(sys.argv[1]))
"""


def test_processes_wait_long_for_each_other(tmp_path: Path) -> None:
    """While one prepares data or writes: a second here, for a process that never comes; torch's own is 10 minutes."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path)))
    of_two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(file)],
        env=os.environ | of_two | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert re.search(r"Timed out after \d seconds waiting", done.stderr.splitlines()[-1]), done.stderr


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Run, Run]:
    """An undisturbed run, and one of the same recipe, two.yaml, as it was when it was killed after step 10."""
    settings = [f"model={{architecture: llama, config: {LLAMA}}}", "train.micro_batch_size=2", "checkpoints.keep=3"]
    whole = tiny_run(tmp_path, "clm", *settings, name="one")
    recipe = tiny_recipe(tmp_path, "clm", *settings, name="two")
    (tmp_path / "two.yaml").write_text(dump(recipe))
    run = Run(Path(recipe.output_dir))
    shutil.copytree(whole.path, run.path)
    run.recipe_file.write_text(dump(recipe))
    for path in (run.report_file, run.manifest_file, run.path / "model.safetensors"):
        path.unlink()
    shutil.rmtree(run.checkpoints / "step-00000012")
    return whole, run


def test_one_that_cannot_read_a_checkpoint_does_not_go_its_own_way(tmp_path: Path, stopped: tuple[Run, Run]) -> None:
    """A file of the newest one that is looked at only to see whether it is whole, on the second process alone."""
    whole, run = stopped
    hook = tmp_path / "hook.py"
    hook.write_text("""
import errno, os, sys
def stale(event, arguments):
    if event == "open" and str(arguments[0]).endswith("step-00000010/random_states_0.pkl"):
        raise OSError(errno.ESTALE, "Stale file handle")
if os.environ.get("RANK") == "1":
    sys.addaudithook(stale)
""")
    done = in_two_processes(tmp_path / "two.yaml", "--resume", HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 0, done.stderr[-3000:]
    for single, double in zip(metrics(whole), metrics(run), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)


def test_what_the_first_one_refuses_all_refuse(tmp_path: Path, stopped: tuple[Run, Run]) -> None:
    """In the same sentence: none waits for the others, or begins by itself."""
    for path in stopped[1].checkpoints.iterdir():
        (path / "optimizer.bin").write_bytes(b"")
    done = in_two_processes(tmp_path / "two.yaml", "--resume")
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 2, done.stderr[-3000:]
    assert len(set(said)) == 1
    assert "step-00000010 is damaged (optimizer.bin is not what was saved), step-00000005" in said[0]
