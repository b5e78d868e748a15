"""Two machines, each a network namespace of its own, under torchrun's rendezvous: one run, and the loss of one of them.

They share the file system and nothing else. Needs root and iproute2; skipped where that is not given.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from several import SETTINGS, errors, launched, model_hash, recipe_file
from tiny import metrics, tiny_run

from hfpretrain.run import Run

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Node:
    """A network namespace with one end of a cable."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.link, self.address = name, f"{name}-link", ADDRESSES[number]
        self.started: list[subprocess.Popen[str]] = []

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True, capture_output=True)

    def dies(self) -> None:
        """All of its processes are killed."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def starts(self, recipe: Path, *options: str, restarts: int = 0, **environment: str) -> "subprocess.Popen[str]":
        """A torchrun of one process there."""
        inside = ["ip", "netns", "exec", self.name, sys.executable, "-m"]
        torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=1"]
        torchrun += [f"--rdzv-endpoint={ADDRESSES[0]}:29500", f"--local-addr={self.address}"]
        # A machine with a name would find out by itself whether the others are to meet on it.
        is_host = self.address == ADDRESSES[0]
        torchrun += [f"--max-restarts={restarts}", f"--rdzv-conf=is_host={is_host},read_timeout=30"]
        process = subprocess.Popen(
            [*inside, *torchrun, "-m", "hfpretrain", "train", str(recipe), *options],
            # Nothing of the tests: what keeps them from the network does not know of this one, which leads nowhere.
            env=os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": self.link} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def ends(self) -> None:
        """Nothing of it is left."""
        self.dies()
        for process in self.started:
            process.communicate()
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two of them, joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    names = [f"hfp{uuid.uuid4().hex[:5]}{end}" for end in "ab"]
    first, second = (Node(name, number) for number, name in enumerate(names))
    try:
        try:
            for name in names:
                subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
            pair = ["type", "veth", "peer", "name", second.link, "netns", second.name]
            subprocess.run(["ip", "-n", first.name, "link", "add", first.link, *pair], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this system has no network namespaces for us")
        for node in (first, second):
            node.ip("address", "add", f"{node.address}/24", "dev", node.link)
            node.ip("link", "set", node.link, "up")
            node.ip("link", "set", "lo", "up")
        yield first, second
    finally:
        for node in (first, second):
            node.ends()


def ended(process: "subprocess.Popen[str]", seconds: int = 200) -> str:
    """What it has said, when it has ended."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"it goes on after {seconds} s; it has said: {(error.stderr or b'').decode()}") from None
    return said


def test_two_nodes_finish_one_run(tmp_path: Path, nodes: tuple[Node, Node]) -> None:
    """With the losses of one process."""
    file = recipe_file(tmp_path, "two")
    both = [node.starts(file) for node in nodes]
    said = [ended(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    run = Run(tmp_path / "runs" / "two")
    assert run.report()["processes"] == 2
    one = tiny_run(tmp_path, "clm", *SETTINGS, name="one")
    for single, double in zip(metrics(one), metrics(run), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)


LONG = [*SETTINGS, "train.duration=300", "checkpoints.every=50", "evaluation.every=50%", "data.validation=0%"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of what LONG comes to in two processes of one machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launched(recipe_file(folder, "whole", *LONG), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    return model_hash(folder / "runs" / "whole")


def wait_for_a_checkpoint(run: Path, both: "list[subprocess.Popen[str]]") -> None:
    """And for a step after it: while one process writes it the other waits for long."""
    while not any(line["step"] > 50 for line in Run(run).metrics()):
        assert [process.poll() for process in both] == [None, None]


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_one_node_is_lost(tmp_path: Path, nodes: tuple[Node, Node], undisturbed: str, how: str) -> None:
    """The other one ends, soon, with one sentence; the same command on both with --resume ends in the same bits."""
    lost = nodes[1]
    file, run = recipe_file(tmp_path, "two", *LONG), tmp_path / "runs" / "two"
    both = [node.starts(file, HFPRETRAIN_PATIENCE="3") for node in nodes]
    wait_for_a_checkpoint(run, both)
    if how == "killed":
        lost.dies()
    else:
        lost.ip("link", "set", lost.link, "down")
    said = ended(both[0], 60)
    assert both[0].returncode == 1
    (error,) = errors(said)
    if how == "killed":
        assert "another process of this run has ended without a word" in error
    else:
        assert "process 1 of this run has not answered for 3 s: it hangs, or cannot be reached" in error
        assert both[1].stderr
        error = next(line for line in both[1].stderr if line.startswith("error: "))
        assert "another process of this run has not answered for 3 s" in error
        lost.dies()  # torchrun itself asks for its store there, until the system gives the connection up
    ended(both[1])
    lost.ip("link", "set", lost.link, "up")
    both = [node.starts(file, "--resume") for node in nodes]
    said_again = [ended(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said_again
    assert "going on from" in said_again[0]
    assert model_hash(run) == undisturbed


def test_a_node_that_comes_back_is_waited_for(tmp_path: Path, nodes: tuple[Node, Node], undisturbed: str) -> None:
    """By torchrun with restarts: the run goes on by itself, though it is the first start of the node that was lost."""
    file, run = recipe_file(tmp_path, "two", *LONG), tmp_path / "runs" / "two"
    # Without it torch 2.13's launcher leaves who joins later waiting for an address.
    settings: dict[str, Any] = {"restarts": 1, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    both = [node.starts(file, **settings) for node in nodes]
    wait_for_a_checkpoint(run, both)
    nodes[1].dies()
    ended(both[1])
    both[1] = nodes[1].starts(file, **settings)
    said = [ended(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "going on from" in "".join(said)
    assert model_hash(run) == undisturbed
