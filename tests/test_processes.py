"""Two processes learn what one learns, evaluate what there is even if it is less than one block for each, and go on
from the same checkpoint even if one of them cannot read it. Where one fails the other one ends, for the same reason."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm
from accelerate import Accelerator
from several import (
    ENDLESS,
    HERE,
    TIME_IS_OVER,
    dies,
    errors,
    launched,
    model_hash,
    processes_of,
    recipe_file,
    started,
    trained,
    wait_for_steps,
)
from tiny import LLAMA, metrics, tiny_recipe, tiny_run

from hfpretrain.errors import TrainingError
from hfpretrain.recipe import dump
from hfpretrain.run import Run
from hfpretrain.training.signals import stop_on_signals
from hfpretrain.training.together import together


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
    done = launched(file, 2)
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
    done = launched(file, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    for single, double in zip(metrics(one), metrics(Run(tmp_path / "runs" / "two")), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)
    done = launched(file, 2, "output_dir=odd", "train.batch_size={from: 3, to: 6}")
    assert "train.batch_size: 3 do not divide by 2 processes" in done.stderr


ALONE = """
import sys
from datetime import timedelta
from hfpretrain.training import session
assert session.PATIENCE >= timedelta(hours=1)
session.PATIENCE = timedelta(seconds=1)
from hfpretrain import cli
sys.argv = ["hfpretrain", "train", sys.argv[1]]
cli.main()
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
    assert done.returncode == 1
    (said,) = errors(done.stderr)
    assert re.search(r"the processes of this run do not find each other: Timed out after \d seconds waiting", said)
    assert "Traceback" not in done.stderr


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
    done = launched(tmp_path / "two.yaml", 2, "--resume", HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 0, done.stderr[-3000:]
    for single, double in zip(metrics(whole), metrics(run), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)


def test_what_the_first_one_refuses_all_refuse(tmp_path: Path, stopped: tuple[Run, Run]) -> None:
    """In one sentence: none waits for the others, or begins by itself."""
    for path in stopped[1].checkpoints.iterdir():
        (path / "optimizer.bin").write_bytes(b"")
    done = launched(tmp_path / "two.yaml", 2, "--resume")
    (said,) = errors(done.stderr)
    assert "step-00000010 is damaged (optimizer.bin is not what was saved), step-00000005" in said


def test_what_one_cannot_read_ends_all(tmp_path: Path) -> None:
    """A file of a stream, on the second process alone; the first one says nothing of its own."""
    settings = ["data.sources.0.streaming=true", "data.validation=0%", "tokenizer={algorithm: byte}"]
    hook = tmp_path / "hook.py"
    hook.write_text("""
import errno, os, sys
def fails(event, arguments):
    if event == "open" and str(arguments[0]).endswith("corpus.jsonl"):
        raise OSError(errno.EIO, "Input/output error", str(arguments[0]))
if os.environ.get("RANK") == "1":
    sys.addaudithook(fails)
""")
    done = launched(recipe_file(tmp_path, "two", *settings), 2, HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 2, done.stderr[-3000:]
    (said,) = errors(done.stderr)
    assert "corpus.jsonl" in said
    assert "Input/output error" in said
    assert "Traceback" not in done.stderr


def test_one_that_hangs_is_not_waited_for_forever(tmp_path: Path) -> None:
    """Without a launcher, as on a cluster that starts each process itself; 3 seconds here, half an hour by default."""
    file = recipe_file(tmp_path, "two", *ENDLESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = HERE | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "HFPRETRAIN_PATIENCE": "3"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "hfpretrain", "train", str(file)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = both
    try:
        wait_for_steps(first, tmp_path / "runs" / "two")
        second.send_signal(signal.SIGSTOP)
        _, said = first.communicate(timeout=60)
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 1
    assert errors(said) == ["error: process 1 of this run has not answered for 3 s: it hangs, or cannot be reached"]
    assert "--resume goes on from the last checkpoint" in said
    assert "Traceback" not in said


def test_patience_is_a_number_of_seconds(tmp_path: Path) -> None:
    done = trained(recipe_file(tmp_path, "two"), HFPRETRAIN_PATIENCE="long")
    assert done.returncode == 2
    assert errors(done.stderr) == ["error: HFPRETRAIN_PATIENCE: 'long' is no number of seconds up to 14400"]


def test_no_more_memory_is_one_sentence() -> None:
    """Nobody has a million billion numbers."""
    with (
        pytest.raises(TrainingError, match="cpu: there is no more memory") as raised,
        stop_on_signals() as request,
        together(Accelerator(cpu=True), request),
    ):
        torch.empty(10**15)
    assert "train.micro_batch_size" in str(raised.value)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the model that two processes come to which nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launched(recipe_file(folder, "whole"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    return model_hash(folder / "runs" / "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_torchruns_restart_goes_on_exactly(tmp_path: Path, undisturbed: str, rank: int) -> None:
    """One of the two is killed while it writes a checkpoint; without --resume, to the same bits."""
    hook = tmp_path / "hook.py"
    hook.write_text(dies(tmp_path, rank))
    done = trained(recipe_file(tmp_path, "two"), by="--max-restarts=1", HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"going on from {tmp_path}/runs/two/checkpoints/step-00000005" in done.stderr
    assert model_hash(tmp_path / "runs" / "two") == undisturbed


def test_torchrun_does_not_restart_what_was_to_end(tmp_path: Path) -> None:
    """train.max_time is over: what it starts again ends at once, with the same words."""
    hook = tmp_path / "hook.py"
    hook.write_text(TIME_IS_OVER)
    file = recipe_file(tmp_path, "two", *ENDLESS, "train.max_time=1 hour")
    done = trained(file, by="--max-restarts=1", HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 1
    assert len(errors(done.stderr)) == 2, done.stderr[-3000:]
    assert len(set(errors(done.stderr))) == 1
    assert "train.max_time is over after step" in errors(done.stderr)[0]


def test_torchrun_shows_the_reason(tmp_path: Path) -> None:
    """Of one that is killed: its signal is the cause, and the other one ends with a sentence, not with a trace."""
    with started(recipe_file(tmp_path, "two", *ENDLESS), by="") as process:
        wait_for_steps(process, tmp_path / "runs" / "two")
        os.kill(processes_of(process.pid)[1], signal.SIGKILL)
        assert process.wait(20) == 1
        assert process.stderr
        said = process.stderr.read()
    (error,) = errors(said)
    assert "another process of this run has ended without a word" in error
    assert "Signal 9 (SIGKILL)" in said.partition("Root Cause")[2]
    assert "Connection closed" not in said


def test_accelerate_starts_one_process_on_a_cpu(tmp_path: Path) -> None:
    """However many it is asked for; then a line says so."""
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "-m", "hfpretrain", "train"]
    done = warm.run(["-m", *launch, recipe_file(tmp_path, "two"), "train.duration=1"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Run(tmp_path / "runs" / "two").report()["processes"] == 1
    assert done.stderr.count("`hfpretrain train --processes N` starts several") == 1
