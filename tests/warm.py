"""Python programs in processes that have the large libraries loaded already, where importing them is most of the work.

One process waits with them imported, and is forked for each program: what runs is the same, in a process of its own,
but for the seconds before it begins. Nothing of hfpretrain is imported before, and of the libraries only those whose
settings in the environment are the same. Where a system has no pidfd_open(2), and for whoever says HFPRETRAIN_COLD=1,
programs are started as usual.
"""

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, cast

TORCH = ("torch", "torch.export", "torch._dynamo", "torch.distributed.tensor", "numpy", "pyarrow", "sympy", "typer")
OTHERS = (
    *("transformers.generation.utils", "transformers.data.data_collator", "accelerate", "datasets", "evaluate"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "gpt2", "llama")),
    *("pydantic", "matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg"),
)
READ_AT_START = ("PYTHON", "LD_", "OMP_", "MKL_", "GOMP_")
"""What variables begin with that Python and torch read when they start."""
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "ACCELERATE_", "MPL", "XDG_", "HOME")
"""Of those that the others read when they are imported."""


class Process:
    """Like subprocess.Popen's, as far as it goes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.pid = int(_line(channel))
        self.returncode: int | None = None
        self.stderr: IO[str] | None = None

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        if self.stderr:
            self.stderr.close()
        self.wait()

    def poll(self) -> int | None:
        """How it ended; None if it has not."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(1e-3)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """How it ended, as subprocess says it: minus the signal that ended it. Raises TimeoutExpired."""
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                self.returncode = int(_line(self._channel))
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._channel.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """From any thread, also while another one waits."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """A process that waits with modules imported. It ends with this one."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._address = str(Path(self._folder.name, "socket"))
        ready, theirs = os.pipe()
        command = [sys.executable, __file__, self._address, str(theirs), *modules]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs])
        os.close(theirs)
        with os.fdopen(ready, "rb") as told:
            if not told.read():
                raise RuntimeError("the waiting process has ended")

    def start(
        self, arguments: Sequence[str], cwd: str, environment: Mapping[str, str], outputs: tuple[IO[bytes], IO[bytes]]
    ) -> Process:
        """Has it become `python arguments`, with these as stdout and stderr."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.connect(self._address)
        wanted = json.dumps({"arguments": list(arguments), "cwd": cwd, "environment": dict(environment)}).encode()
        socket.send_fds(channel, [len(wanted).to_bytes(4, "big")], [file.fileno() for file in outputs])
        channel.sendall(wanted)
        return Process(channel)

    def close(self) -> None:
        self._server.communicate()
        self._folder.cleanup()


def run(
    arguments: Sequence[str | Path],
    *,
    cwd: str | Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> "subprocess.CompletedProcess[str]":
    """As subprocess.run would `python arguments`, with its output captured; `environment` goes beside this one's."""
    (done,) = run_together([arguments], cwd=cwd, environments=[environment or {}], timeout=timeout)
    return done


def run_together(
    programs: Sequence[Sequence[str | Path]],
    *,
    cwd: str | Path,
    environments: Sequence[Mapping[str, str]],
    timeout: float = 240,
) -> "list[subprocess.CompletedProcess[str]]":
    """Several at once, each with its environment. TimeoutExpired, and all are killed, where one takes too long."""
    with ExitStack() as held:
        files = [[held.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in programs]
        started = []
        for program, more, (out, err) in zip(programs, environments, files, strict=True):
            process = start([*map(str, program)], cwd=str(cwd), environment=os.environ | more, stdout=out, stderr=err)
            held.callback(process.kill)
            started.append(process)
        return [
            subprocess.CompletedProcess([*program], process.wait(timeout), _read(out), _read(err))
            for program, process, (out, err) in zip(programs, started, files, strict=True)
        ]


def popen(
    arguments: Sequence[str | Path], *, cwd: str | Path, environment: Mapping[str, str] | None = None
) -> "Process | subprocess.Popen[str]":
    """One that goes on, and says what it says on stderr; `environment` goes beside this one's."""
    ours, theirs = os.pipe()
    with Path(os.devnull).open("wb") as nothing, os.fdopen(theirs, "wb") as said:
        everything = os.environ | (environment or {})
        process = start([*map(str, arguments)], cwd=str(cwd), environment=everything, stdout=nothing, stderr=said)
    found: Any = process
    found.stderr = os.fdopen(ours, encoding="utf-8")
    return cast("Process | subprocess.Popen[str]", process)


def start(
    arguments: Sequence[str], *, cwd: str, environment: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
) -> "Process | subprocess.Popen[bytes]":
    """Starts what `python arguments` would, which begin with -m and a module, or with a file; nothing is on stdin."""
    if warm := _suitable(environment):
        return warm.start(arguments, cwd, environment, (stdout, stderr))
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)


def close() -> None:
    """Ends the waiting processes."""
    for each, _ in _waiting.values():
        each.close()
    _waiting.clear()


_waiting: dict[tuple[str, ...], tuple[Warm, dict[str, str]]] = {}
"""By their modules; with the environment that those were imported in."""


def _suitable(environment: Mapping[str, str]) -> Warm | None:
    """The one that has loaded most of what would be the same if it were loaded with that environment."""
    if "HFPRETRAIN_COLD" in environment or not hasattr(os, "pidfd_open"):
        return None
    for modules, names in (((*TORCH, *OTHERS), (*READ_AT_START, *READ_AT_IMPORT)), (TORCH, READ_AT_START)):
        if modules not in _waiting:
            _waiting[modules] = Warm(modules), dict(os.environ)
        warm, then = _waiting[modules]
        if _read_by(names, environment) == _read_by(names, then):
            return warm
    return None


def _read_by(names: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(names)}


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def _line(channel: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n"):
        more = channel.recv(1)
        if not more:
            raise RuntimeError("the waiting process has ended")
        found += more
    return found.decode()


def _serve(address: str, ready: int, modules: Sequence[str]) -> dict[str, Any] | None:
    """What the waiting process does: forks for each connection, and says there how that process ended.

    Returns in the forked one, with what it is to become, and in the waiting one at the end.
    """
    from hfpretrain.process import prepare_environment

    before = dict(os.environ)
    prepare_environment()  # as every command does before it imports anything
    for name in modules:
        __import__(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "hfpretrain"]:
        del sys.modules[name]
    os.environ.clear()
    os.environ.update(before)
    gc.freeze()  # so that a forked process shares their memory for good
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(16)
    os.write(ready, b"1")
    os.close(ready)
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fd == 0:  # whoever wanted it is gone
                for child, _ in running.values():
                    os.kill(child, signal.SIGKILL)
                return None
            if key.fileobj is listening:
                channel, _ = listening.accept()
                size, (out, err), *_ = socket.recv_fds(channel, 4, 2)
                with channel.makefile("rb") as request:
                    wanted: dict[str, Any] = json.loads(request.read(int.from_bytes(size, "big")))
                child = os.fork()
                if not child:
                    selector.close()
                    for each in (listening, channel, *(other for _, other in running.values())):
                        each.close()
                    for ended in running:
                        os.close(ended)
                    return wanted | {"out": out, "err": err}
                os.close(out)
                os.close(err)
                channel.sendall(f"{child}\n".encode())
                ended = os.pidfd_open(child)
                running[ended] = child, channel
                selector.register(ended, selectors.EVENT_READ)
            else:
                child, channel = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with suppress(OSError):  # nobody waits for it any more
                    channel.sendall(f"{status}\n".encode())
                channel.close()


def _become(wanted: dict[str, Any]) -> None:
    """Runs the program, as Python itself would."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, wanted["out"], wanted["err"])):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["cwd"])
    arguments = wanted["arguments"]
    sys.orig_argv = [sys.executable, *arguments]
    if hook := os.environ.get("HFPRETRAIN_TEST_HOOK"):
        runpy.run_path(hook)
    if arguments[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(arguments[0]).parent.resolve())
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    if (request := _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:])) is not None:
        _become(request)
