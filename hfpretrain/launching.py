"""Several processes of one training, started on this machine: by torch's launcher, which Accelerate's hands over to.

It is called in this process, so that how its processes ended is known, and said in one sentence. Accelerate's own
`launch` starts one process on a CPU, however many it is asked for.
"""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import check_cuda_p2p_ib_support
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hfpretrain.errors import HFPretrainError, UserError
from hfpretrain.failures import OWN_LAUNCHER, Left, read_left

log = logging.getLogger(__name__)

GO_ON = "the same command with --resume goes on from the last checkpoint"
HERE = "127.0.0.1"
LOOPBACKS = ("lo", "lo0")
"""What the systems call it."""
HANDED_ON = ("SIGTERM", "SIGINT", "SIGUSR1")
"""Signals that are handed on to the processes. Of others this one ends, which they notice (process.follow_launcher)."""
TIME_TO_SAVE = "600"
"""Seconds for the processes to end in after a signal, where TORCH_ELASTIC_SHUTDOWN_TIMEOUT does not say otherwise."""


@dataclass(frozen=True)
class End:
    """How processes ended that did not finish: of the first one's reason."""

    exit_status: int
    sentence: str | None
    """None where that process has said it itself."""

    @property
    def final(self) -> bool:
        """Whether starting anew would mend nothing: the input is wrong, or somebody wanted it to end."""
        return self.exit_status == UserError.exit_status or self.exit_status > 128


def gpus() -> int:
    """The GPUs that this process sees."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def number_of_processes(given: str) -> int:
    """What `--processes` says; `auto` is one for each GPU that is seen, and one without. Raises UserError."""
    found = gpus()
    if given == "auto":
        return max(found, 1)
    number = int(given) if given.isdecimal() else 0
    if number < 1:
        raise UserError(f"--processes: {given} is no number of processes", hint="write 1 or more, or auto")
    if found and number > found:
        raise UserError(
            f"--processes: {number} are more than the GPUs that are seen here, {found}",
            hint=f"set at most {found}, or auto; look at CUDA_VISIBLE_DEVICES if there should be more",
        )
    return number


def run_in_processes(processes: int, arguments: Sequence[str], *, restarts: int = 0) -> int:
    """Runs `hfpretrain` with these arguments in so many processes. Returns the exit status, if the reason is said.

    Where they fail all are started anew, with --resume, at most `restarts` times, unless the input is wrong or they
    were stopped. Raises HFPretrainError with the status where no process could say why it ended.
    """
    _prepare_environment(processes)
    arguments, tried = [*arguments], 0
    while end := _run(processes, arguments):
        if end.final or tried == restarts:
            if end.sentence is None:
                return end.exit_status
            failure = HFPretrainError(end.sentence, hint=GO_ON)
            failure.exit_status = end.exit_status
            raise failure
        tried += 1
        if end.sentence:
            log.error("%s", end.sentence)
        log.warning("starting all %d processes again, %d of at most %d times", processes, tried, restarts)
        if "--resume" not in arguments:
            arguments.append("--resume")
    return 0


def _prepare_environment(processes: int) -> None:
    """What the processes read: a share of the cores each, and how they reach each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    loopback = [name for _, name in socket.if_nameindex() if name in LOOPBACKS]
    if loopback:  # the machine's own name may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    if gpus() and not check_cuda_p2p_ib_support():  # NCCL hangs on some that cannot do it, as Accelerate knows
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # `python -m` would import what lies in this folder
        os.environ["PYTHONSAFEPATH"] = "1"
    os.environ[OWN_LAUNCHER] = str(processes)


def _run(processes: int, arguments: Sequence[str]) -> End | None:
    """None if they finished."""
    with tempfile.TemporaryDirectory(prefix="hfpretrain-") as folder, _quiet():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{HERE}:0",  # a free port
            local_addr=HERE,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle=",".join(HANDED_ON),
            shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", TIME_TO_SAVE)),
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "hfpretrain", *arguments)
        except ChildFailedError as error:
            return end_of(error.failures, processes)
        except SignalException as stop:
            failed = [each.exit_status for each in _left_in(Path(folder)) if each.exit_status <= 128]  # e.g. to save
            return End(failed[0] if failed else 128 + stop.sigval, None)
    return None


def _left_in(folder: Path) -> Iterator[Left]:
    """What processes have left in the files that torch's launcher has named."""
    for file in folder.rglob("error.json"):
        with suppress(OSError, ValueError):
            if left := read_left(json.loads(file.read_bytes())):
                yield left


def end_of(failures: Mapping[int, Any], processes: int) -> End:
    """How it ended, by the failures of torch's launcher: those that it noticed first come first."""
    left = {process: read_left(failure.error_file_data) for process, failure in failures.items()}
    for each in left.values():
        if each and each.said:
            return End(each.exit_status, None)
    for process, failure in failures.items():
        if left[process] is None:
            return _without_a_word(f"process {process} of {processes}", failure.exitcode)
    known = next(each for each in left.values() if each)
    return End(known.exit_status, known.sentence)


def _without_a_word(which: str, status: int) -> End:
    if status > 0:
        return End(status, f"{which} ended with exit status {status}")
    name = signal.Signals(-status).name if -status in [*signal.Signals] else str(-status)
    if name in HANDED_ON:
        return End(128 - status, f"{which} was ended by {name}")
    why = {"SIGKILL": ", as the system does it where memory runs out", "SIGABRT": ", as NCCL does where another hangs"}
    return End(1, f"{which} was killed by {name}{why.get(name, '')}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that torch's launcher writes."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
