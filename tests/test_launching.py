"""`train --processes N`: real processes, whose end is one sentence and the exit status of the contract."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from several import (
    ENDLESS,
    SETTINGS,
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

from hfpretrain import launching
from hfpretrain.errors import UserError
from hfpretrain.failures import read_left
from hfpretrain.run import Run

NOISE = ("Traceback", "torch", "W11", "E11", "Connection closed", "rank:", "Warning")
"""Of launchers and libraries."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the model that two processes come to without a launcher."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launched(recipe_file(folder, "whole"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    return model_hash(folder / "runs" / "whole")


def test_it_trains_as_without_a_launcher(tmp_path: Path, undisturbed: str) -> None:
    """To the same bits, in two processes, with every other option and override passed on, and nothing else said."""
    file = recipe_file(tmp_path, "two")
    done = trained(file, "output_dir=runs/other", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run(tmp_path / "runs" / "other")
    assert model_hash(run.path) == undisturbed
    assert run.report()["processes"] == 2
    assert not [word for word in NOISE if word in done.stderr], done.stderr
    assert done.stdout.count("runs/other") >= 1
    again = trained(file, "output_dir=runs/other", "--resume")
    assert (again.returncode, again.stderr.count("is finished; nothing to do")) == (0, 1)


def test_each_process_has_its_share_of_the_cores(tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    print({name: os.environ.get(name) for name in ('OMP_NUM_THREADS', 'GLOO_SOCKET_IFNAME')})\n"
        "    os._exit(0)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "hfpretrain", "train", str(recipe_file(tmp_path, "two")), "--processes", "2"],
        env=environment | {"HFPRETRAIN_TEST_HOOK": str(hook)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    cores = len(os.sched_getaffinity(0))
    expected = str({"OMP_NUM_THREADS": str(max(1, cores // 2)), "GLOO_SOCKET_IFNAME": "lo"})
    assert (done.returncode, done.stdout.splitlines()) == (0, [expected] * 2), done.stderr


def test_what_is_typed_wrong_starts_nothing(tmp_path: Path, hfpretrain: Command) -> None:
    file = recipe_file(tmp_path, "two")
    bad = tmp_path / "bad.yaml"
    bad.write_text("objective: clm\n")
    for arguments, said in [
        ((file, "--processes", "0"), "--processes: 0 is no number of processes"),
        ((file, "--processes", "two"), "--processes: two is no number of processes"),
        ((file, "--restarts", "2"), "--restarts goes with --processes"),
        ((bad, "--processes", "2"), "data.sources"),
    ]:
        done = hfpretrain("train", *arguments)
        assert done.returncode == 2
        assert len(errors(done.stderr)) == 1
        assert said in done.stderr
    done = hfpretrain("train", file, "--processes", "2", TORCHELASTIC_RUN_ID="none")
    assert done.returncode == 2
    assert errors(done.stderr)[0].endswith("this is one that torchrun or accelerate launch has started")
    assert not (tmp_path / "runs").exists()


def test_as_many_as_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "gpus", lambda: 4)
    assert launching.number_of_processes("auto") == 4
    assert launching.number_of_processes("3") == 3
    with pytest.raises(UserError, match="8 are more than the GPUs that are seen here, 4"):
        launching.number_of_processes("8")
    monkeypatch.setattr(launching, "gpus", lambda: 0)
    assert launching.number_of_processes("auto") == 1
    assert launching.number_of_processes("8") == 8


def test_one_process_is_this_one(tmp_path: Path, hfpretrain: Command) -> None:
    done = hfpretrain("train", recipe_file(tmp_path, "one"), "--processes", "auto", "train.duration=1")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "runs" / "one").report()["processes"] == 1


def test_a_configuration_of_accelerate_is_not_read(tmp_path: Path) -> None:
    """Here of four processes: the number that was given counts, and a line says so."""
    home = tmp_path / "home"
    (home / "accelerate").mkdir(parents=True)
    (home / "accelerate" / "default_config.yaml").write_text("num_processes: 4\ndistributed_type: FSDP\n")
    done = trained(recipe_file(tmp_path, "two"), "train.duration=1", HF_HOME=str(home))
    assert done.returncode == 0, done.stderr[-3000:]
    assert Run(tmp_path / "runs" / "two").report()["processes"] == 2
    assert done.stderr.count("is for `accelerate launch` and not read") == 1


def test_data_that_is_wrong_is_said_once(tmp_path: Path) -> None:
    """It is found by the first process, while the other one waits for it."""
    file = recipe_file(tmp_path, "two")
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write("not json\n")
    for by in (None, ""):
        done = trained(file, by=by)
        assert len(errors(done.stderr)) == 1, done.stderr[-3000:]
        assert "corpus.jsonl:121: not JSON" in errors(done.stderr)[0]
        if by is None:
            assert done.returncode == 2
            assert not [word for word in NOISE if word in done.stderr], done.stderr
        else:  # torchrun's own status and summary, with our sentence as the cause
            assert done.returncode == 1
            assert "corpus.jsonl:121: not JSON" in done.stderr.partition("Root Cause")[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_is_one_to_the_run(tmp_path: Path, number: signal.Signals) -> None:
    with started(recipe_file(tmp_path, "two", *ENDLESS)) as process:
        wait_for_steps(process, tmp_path / "runs" / "two")
        process.send_signal(number)
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 128 + number, said
    assert len(errors(said)) == 1
    assert f"stopped by signal {number:d} after step" in errors(said)[0]
    assert not [word for word in NOISE if word in said], said
    assert len([*(tmp_path / "runs" / "two" / "checkpoints").glob("step-*")]) == 1


def test_the_time_of_a_job_is_over(tmp_path: Path) -> None:
    """None is started again for it."""
    hook = tmp_path / "hook.py"
    hook.write_text(TIME_IS_OVER)
    file = recipe_file(tmp_path, "two", *ENDLESS, "train.max_time=1 hour")
    done = trained(file, "--restarts", "2", HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 128 + signal.SIGALRM, done.stderr[-3000:]
    assert len(errors(done.stderr)) == 1
    assert "train.max_time is over after step" in errors(done.stderr)[0]


def test_one_that_is_killed(tmp_path: Path) -> None:
    """The other one ends as well, in seconds, and one sentence says of what."""
    with started(recipe_file(tmp_path, "two", *ENDLESS)) as process:
        wait_for_steps(process, tmp_path / "runs" / "two")
        os.kill(processes_of(process.pid)[1], signal.SIGKILL)
        assert process.wait(20) == 1
        assert process.stderr
        said = process.stderr.read()
    assert errors(said) == ["error: process 1 of 2 was killed by SIGKILL, as the system does it where memory runs out"]
    assert "the same command with --resume goes on from the last checkpoint" in said
    assert not [word for word in NOISE if word in said], said


def test_one_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """While it writes a checkpoint, of weights that are shared out; the model is that of an undisturbed run."""
    shared = [*SETTINGS, "parallel.strategy=fsdp"]
    assert launched(recipe_file(tmp_path, "whole", *shared), 2).returncode == 0
    undisturbed = model_hash(tmp_path / "runs" / "whole")
    hook = tmp_path / "hook.py"
    hook.write_text(dies(tmp_path, 1))
    done = trained(recipe_file(tmp_path, "two", *shared), "--restarts", "1", HFPRETRAIN_TEST_HOOK=str(hook))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 1 of 2 was killed by SIGKILL" in done.stderr
    assert "starting all 2 processes again, 1 of at most 1 times" in done.stderr
    assert f"going on from {tmp_path}/runs/two/checkpoints/step-00000005" in done.stderr
    assert model_hash(tmp_path / "runs" / "two") == undisturbed


class Failure:
    """As torch's launcher has it of one process."""

    def __init__(self, exitcode: int, left: dict[str, Any] | None = None) -> None:
        self.exitcode = exitcode
        message = {"message": "of it", "extraInfo": left} if left else "<NONE>"
        self.error_file_data = {"message": message}


def test_the_first_one_gives_the_reason() -> None:
    lost, said = {"exit_status": 1, "said": False}, {"exit_status": 2, "said": True}
    cases: list[tuple[dict[int, Failure], int, str | None]] = [
        ({1: Failure(-9), 0: Failure(1, lost)}, 1, "process 1 of 2 was killed by SIGKILL"),
        ({0: Failure(1, lost), 1: Failure(-9)}, 1, "process 1 of 2 was killed by SIGKILL"),
        ({0: Failure(2, lost), 1: Failure(2, said)}, 2, None),
        ({0: Failure(1, said), 1: Failure(-9)}, 2, None),
        ({0: Failure(-15), 1: Failure(-15)}, 143, "process 0 of 2 was ended by SIGTERM"),
        ({0: Failure(1), 1: Failure(1, lost)}, 1, "process 0 of 2 ended with exit status 1"),
        ({0: Failure(1, lost), 1: Failure(1, lost)}, 1, "of it"),
    ]
    for failures, status, sentence in cases:
        end = launching.end_of(failures, 2)
        assert end.exit_status == status
        assert (end.sentence is None) == (sentence is None)
        assert (end.sentence or "").startswith(sentence or "")
        assert end.final == (status != 1), "nothing is started again for wrong input, or after a signal"
    assert read_left({"message": "of another version"}) is None
