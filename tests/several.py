"""Trainings of several processes: how tests start them, and how they find and end single ones of them."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import warm
from tiny import LLAMA, tiny_recipe

from hfpretrain.recipe import dump
from hfpretrain.run import Run

TORCHRUN = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
HERE = {"GLOO_SOCKET_IFNAME": "lo"}
SETTINGS = [f"model={{architecture: llama, config: {LLAMA}}}", "train.micro_batch_size=2"]
"""Of runs that are compared by their bits."""
ENDLESS = [*SETTINGS, "train.duration=1000000", "evaluation.every=50%", "checkpoints.every=50%", "data.validation=0%"]


def recipe_file(folder: Path, name: str, *settings: str) -> Path:
    """A recipe of that name in a file."""
    file = folder / f"{name}.yaml"
    file.write_text(dump(tiny_recipe(folder, "clm", *(settings or SETTINGS), name=name)))
    return file


def command(recipe: Path, *options: str, by: str | None = None) -> list[str]:
    """`hfpretrain train` in two processes, by its own option or by torchrun with such options."""
    train = ["hfpretrain", "train", str(recipe)]
    if by is None:
        return [sys.executable, "-m", *train, "--processes", "2", *options]
    return [sys.executable, "-m", *TORCHRUN, *by.split(), "-m", *train, *options]


def trained(
    recipe: Path, *options: str, by: str | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """What came of it."""
    return warm.run(command(recipe, *options, by=by)[1:], cwd=recipe.parent, environment=HERE | environment)


def started(recipe: Path, *options: str, by: str | None = None, **environment: str) -> "subprocess.Popen[str]":
    """One that goes on."""
    return subprocess.Popen(
        command(recipe, *options, by=by),
        cwd=recipe.parent,
        env=os.environ | HERE | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_steps(process: "subprocess.Popen[str]", run: Path) -> None:
    """Returns when it has trained some."""
    while not Run(run).metrics():
        assert process.poll() is None, process.stderr and process.stderr.read()


def processes_of(launcher: int) -> dict[int, int]:
    """The process of each rank, of those that a launcher has started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = dict(each.split("=", 1) for each in (path / "environ").read_text().split("\0") if "=" in each)
        except OSError:  # it has ended
            continue
        if parent == launcher and "RANK" in environment:
            found[int(environment["RANK"])] = int(path.name)
    return found


def dies(folder: Path, rank: int) -> str:
    """A hook by which the process of that rank is killed while the checkpoint of step 10 is written.

    The first process sees that it begins. Where a launcher tries again nothing happens.
    """
    return f"""
import os, signal, sys
from pathlib import Path
def kill(event, arguments):
    if event == "os.mkdir" and str(arguments[0]).endswith(".step-00000010.partial"):
        os.kill(int(Path({str(folder)!r}, "pid-{rank}").read_text()), signal.SIGKILL)
first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and "--resume" not in sys.orig_argv
if first and "RANK" in os.environ:
    Path({str(folder)!r}, "pid-" + os.environ["RANK"]).write_text(str(os.getpid()))
    if os.environ["RANK"] == "0":
        sys.addaudithook(kill)
"""


TIME_IS_OVER = """
import os, signal, sys
left = [3]
def written(event, arguments):
    if event != "open" or not str(arguments[0]).endswith("metrics.jsonl"):
        return
    if isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY:
        left[0] -= 1
        if not left[0]:
            signal.setitimer(signal.ITIMER_REAL, 1e-6)
if os.environ.get("RANK") == "0":
    sys.addaudithook(written)
"""
"""A hook by which the hour of train.max_time is over in the third step."""


def model_hash(run: Path) -> str:
    """Of the finished model."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def errors(said: str) -> list[str]:
    """The lines in which an error is said."""
    return [line for line in said.splitlines() if line.startswith("error: ")]


def launched(
    file: Path, processes: int, *options: str, script: bool = False, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """`hfpretrain train` of a recipe in so many processes on this machine; or a Python script."""
    arguments: list[str | Path] = [file, *options] if script else ["-m", "hfpretrain", "train", file, *options]
    return in_processes(processes, arguments, cwd=file.parent, environment=environment)


def in_processes(
    processes: int, arguments: Sequence[str | Path], *, cwd: Path, environment: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    """`python arguments` in so many processes without a launcher: each is told its place as torchrun would tell it.

    What all have said is in one, as it would be.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = HERE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    places = [{"RANK": str(number), "LOCAL_RANK": str(number)} for number in range(processes)]
    ended = warm.run_together(
        [arguments] * processes,
        cwd=cwd,
        environments=[everyone | place | environment for place in places],
    )
    status = next((each.returncode for each in ended if each.returncode), 0)
    output = ("".join(each.stdout for each in ended), "".join(each.stderr for each in ended))
    return subprocess.CompletedProcess(ended[0].args, status, *output)


def cut_back(run: Run, name: str, step: int) -> Run:
    """A copy of a finished run beside it, as if it had been killed after the checkpoint of that step."""
    copy = Run(run.path.with_name(name))
    shutil.copytree(run.path, copy.path)
    for file in (copy.report_file, copy.manifest_file, copy.path / "model.safetensors"):
        file.unlink()
    for checkpoint in copy.checkpoints.iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return copy
