"""A training as a user starts it, from outside: processes that are launched, killed and signalled for real."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

TESTS = Path(__file__).parent.parent
TORCHRUN = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
PATIENCE_SECONDS = 180
"""After so long a process hangs. None takes a tenth of it."""


class Training:
    """`python -m hfpretrain train recipe.yaml [--resume]` in `folder`, whose run directory is called run.

    `point` is where it kills itself: a name of tests/chaos/points.py and a number, as in "while pruning:2". Of two
    processes, torchrun starts both again at most `restarts` times.
    """

    def __init__(
        self, folder: Path, *, processes: int = 1, resume: bool = False, point: str = "", restarts: int = 0
    ) -> None:
        self.metrics, self.reached, self.log = folder / "run" / "metrics.jsonl", folder / "reached", folder / "log.txt"
        self.reached.unlink(missing_ok=True)
        self.mark = f"CHAOS_MARK={uuid.uuid4().hex}"
        """By this every process of the training is found, whoever started it."""
        before = self.log.stat().st_size if self.log.exists() else 0
        self.log_begins, self.launched = before, time.time()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS / "no_network"), str(TESTS.parent)]),
            "HFPRETRAIN_TEST_HOOK": str(Path(__file__).parent / "points.py"),
            "HFPRETRAIN_CACHE": str(folder / "cache"),
            "HF_HOME": str(folder / "huggingface"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "GLOO_SOCKET_IFNAME": "lo",
            "CHAOS_POINT": point,
            "CHAOS_REACHED": str(self.reached),
            **dict([self.mark.split("=")]),
        }
        torchrun = [*TORCHRUN, f"--max-restarts={restarts}", "-m"] if processes == 2 else []
        command = [*torchrun, "hfpretrain", "train", "recipe.yaml"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, *(["--resume"] if resume else [])],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> int:
        """The exit status, -n where signal n killed it. One that hangs is killed, and TimeoutExpired raised."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.kill()

    def running_after(self, seconds: float) -> bool:
        """Whether it is still running in so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, seconds))
        return self.process.poll() is None

    def training_begins(self) -> bool:
        """Waits for the first line of metrics; False if the process has ended before."""
        while not (self.metrics.exists() and self.metrics.stat().st_mtime > self.launched):
            if not self.running_after(0.005):
                return False
        return True

    def works_for(self, seconds: float) -> float:
        """Waits until it has worked for so long from now on, or has ended; returns how long it did.

        By the processor's time, which is the same on a busy machine; by the clock where the system does not tell.
        """
        found = self.pids()
        began = worked = busy_seconds(found)
        while worked - began < seconds and self.running_after(0.005):
            worked = max(worked, busy_seconds(found))
        return worked - began

    def pids(self, *more: str) -> list[int]:
        """Its processes, all or those that were started with some `more` in the environment."""
        return [pid for pid in own_processes() if {self.mark, *more} <= environment_of(pid)]

    def kill(self) -> bool:
        """SIGKILL to all its processes; whether the one that was launched was still there."""
        running = self.process.poll() is None
        if running:
            self.process.kill()
        while found := self.pids():
            send_kill(found)
            self.process.poll()
        return running

    def kill_one(self, rank: int) -> bool:
        """SIGKILL to its process of that rank; whether there was one."""
        found = self.pids(f"RANK={rank}")
        send_kill(found)
        return bool(found)

    def said(self) -> str:
        """What it has written to stdout and stderr."""
        return self.log.read_bytes()[self.log_begins :].decode(errors="replace")


def own_processes() -> list[int]:
    """The processes of this machine, where the system lists them."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def environment_of(pid: int) -> set[str]:
    """What a process was started with; nothing of one that is gone, or another user's."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return set()


def busy_seconds(pids: list[int]) -> float:
    """The processor's time that those of them that are still there have used; the clock's without /proc."""
    if not Path("/proc/self/stat").exists():
        return time.monotonic()
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def send_kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
