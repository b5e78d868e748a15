"""The job scripts for SLURM, run by bash: the commands of a cluster are small stand-ins, everything else is real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import LLAMA, metrics, tiny_recipe, tiny_run

from hfpretrain.recipe import dump
from hfpretrain.run import Run

SCRIPTS = Path(__file__).parent.parent / "recipes" / "slurm"
GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "slurm.md"

# srun runs its command once for each node and passes signals on, as the real one does; here all nodes are this machine.
SRUN = """
while [[ $1 == --* ]]; do shift; done
tasks=() status=0
for ((node = 0; node < SLURM_NNODES; node++)); do "$@" & tasks+=($!); done
trap 'signalled=yes; kill -s USR1 "${tasks[@]}"' USR1
for task in "${tasks[@]}"; do
    while true; do signalled=; wait "$task" && code=0 || code=$?; [[ $signalled ]] || break; done
    ((code == 0)) || status=$code
done
exit "$status"
"""
SCONTROL = """
echo "$@" >> "$CALLS"
if [[ $1 == show ]]; then for ((node = 0; node < SLURM_NNODES; node++)); do echo 127.0.0.1; done; fi
"""


class Cluster:
    """A folder with stand-ins for the commands of SLURM, and a recipe in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.commands = folder / "commands"
        self.commands.mkdir()
        python = sys.executable
        for name, text in {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "torchrun": f'exec {python} -m torch.distributed.run "$@"',
            "hfpretrain": f'exec {python} -m hfpretrain "$@"',
        }.items():
            (self.commands / name).write_text(f"#!/bin/bash\n{text}\n")
            (self.commands / name).chmod(0o755)

    def start(self, script: str, *arguments: str, nodes: int = 1, **environment: Any) -> "subprocess.Popen[str]":
        """A job as SLURM starts it: a copy of the script, in the folder it was sent from."""
        copy = self.folder / "slurm_script"
        shutil.copyfile(SCRIPTS / script, copy)
        of_job = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": "node[1-2]"}
        of_job |= {"SLURM_GPUS_ON_NODE": str(2 // nodes), "SLURM_CPUS_PER_TASK": "2", "SCRATCH": str(self.folder)}
        settings = os.environ | of_job | {"CALLS": str(self.calls), "GLOO_SOCKET_IFNAME": "lo"} | environment
        settings["PATH"] = f"{self.commands}:{settings['PATH']}"
        return subprocess.Popen(
            ["bash", str(copy), *arguments],
            cwd=self.folder,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def job(self, script: str, *arguments: str, nodes: int = 1, **environment: Any) -> tuple[int, str]:
        """Status and output of a job that runs to its end."""
        job = self.start(script, *arguments, nodes=nodes, **environment)
        said, _ = job.communicate(timeout=200)
        return job.returncode, said

    def requeued(self) -> list[str]:
        """The jobs that were sent to the queue again."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.split()[1] for line in lines if line.startswith("requeue ")]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


SETTINGS = [f"model={{architecture: llama, config: {LLAMA}}}", "train.micro_batch_size=2"]


def recipe_in(folder: Path, *overrides: str) -> Run:
    recipe = tiny_recipe(folder, "clm", *SETTINGS, *overrides, name="job")
    (folder / "recipe.yaml").write_text(dump(recipe))
    return Run(Path(recipe.output_dir))


def test_a_job_of_two_nodes_trains_what_one_process_trains(cluster: Cluster, tmp_path: Path) -> None:
    run = recipe_in(tmp_path)
    status, said = cluster.job("train.sh", "recipe.yaml", "train.duration=8", nodes=2)
    assert status == 0, said
    assert run.report()["processes"] == 2
    alone = tiny_run(tmp_path, "clm", *SETTINGS, "train.duration=8", name="alone")
    for one, other in zip(metrics(alone), metrics(run), strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-6)
    assert cluster.requeued() == []


def lines_of(job: "subprocess.Popen[str]") -> Iterator[str]:
    """What a job prints, line by line; it is killed if it says nothing for too long."""
    assert job.stdout is not None
    watchdog = threading.Timer(200, job.kill)
    watchdog.start()
    try:
        yield from iter(job.stdout.readline, "")
    finally:
        watchdog.cancel()


def test_a_warned_job_saves_and_is_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    """Two processes of one node; the next job goes on from what the first has saved."""
    run = recipe_in(tmp_path, "train.duration=400", "evaluation.every=400", "checkpoints.every=400")
    job = cluster.start("train.sh", "recipe.yaml")
    said = []
    for line in lines_of(job):
        said.append(line)
        if line.startswith("step ") and not any("saving" in each for each in said):
            job.send_signal(signal.SIGUSR1)
            break
    rest, _ = job.communicate(timeout=200)
    assert job.returncode == 0, "".join(said) + rest
    assert "signal 10: saving after this step" in rest
    assert "job 4711 is queued again" in rest
    assert cluster.requeued() == ["4711"]
    (checkpoint,) = run.checkpoints.glob("step-*")
    status, more = cluster.job("train.sh", "recipe.yaml")
    assert status == 0, more
    assert checkpoint.name in more.partition("going on from")[2].partition("\n")[0]
    assert run.report()["steps"] == 400
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 401))
    assert cluster.requeued() == ["4711"]


def test_a_mistake_is_said_once_and_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    recipe_in(tmp_path)
    status, said = cluster.job("train.sh", "recipe.yaml", "train.durations=8")
    assert status == 2
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert cluster.requeued() == []
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_is_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    run = recipe_in(tmp_path)
    run.path.mkdir(parents=True)
    (run.path / "checkpoints").write_text("no folder")
    status, said = cluster.job("train.sh", "recipe.yaml", RESTARTS="0")
    assert status not in (0, 2), said
    assert cluster.requeued() == []


def test_tasks_of_an_array_prepare_shares_that_are_joined(cluster: Cluster, tmp_path: Path) -> None:
    recipe_in(tmp_path)
    for task in ("1", "2"):
        of_task: dict[str, Any] = {"SLURM_ARRAY_TASK_ID": task, "SHARES": "2", "HFPRETRAIN_CACHE": ""}
        status, said = cluster.job("data.sh", "recipe.yaml", **of_task)
        assert status == 0, said
        assert f"shard {task}/2" in said
    command = [sys.executable, "-m", "hfpretrain", "data", "recipe.yaml", "--json"]
    settings = os.environ | {"HFPRETRAIN_CACHE": str(tmp_path / "hfpretrain")}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True)
    assert [line["documents"] for line in json.loads(done.stdout)] == [120]
    assert "joined from parts prepared before" in done.stderr
    status, said = cluster.job("data.sh", "recipe.yaml", SLURM_ARRAY_TASK_ID="17")
    assert (status, "--shard 17/16: that is no share" in said) == (2, True)


def test_without_a_recipe_a_script_says_how(cluster: Cluster) -> None:
    for script in ("train.sh", "data.sh"):
        status, said = cluster.job(script)
        assert status != 0
        assert f"sbatch {script} recipe.yaml" in said


def test_the_guide_shows_the_scripts_as_they_are() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for script in SCRIPTS.iterdir():
        assert f"```bash\n{script.read_text(encoding='utf-8')}```" in guide, script.name
