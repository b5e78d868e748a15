"""The processes of a run, together: how long they wait for each other, and what becomes of them where one fails.

A collective only says that a connection was closed, or that its time is over, in a trace of a library. Why is what the
first one that failed has left (hfpretrain.failures): all end with that.
"""

import math
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.distributed_c10d import _world

from hfpretrain import failures
from hfpretrain.amounts import span
from hfpretrain.errors import HFPretrainError, LostProcess, TrainingError, UserError
from hfpretrain.hub import first_line
from hfpretrain.training import session
from hfpretrain.training.signals import StopNow, StopRequest

VARIABLE = "HFPRETRAIN_PATIENCE"
"""In the environment: seconds instead of WAITS."""
WAITS = timedelta(minutes=30)
"""For another process while all train: none of them does anything then that takes nearly as long."""
LETS_OTHERS_SPEAK = 1.0
"""Seconds after which a process ends that has lost another: whoever started them sees that one end first."""
GO_ON = "the same command with --resume goes on from the last checkpoint"
FAILED = (dist.DistError, dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
NO_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory")
FINAL = (UserError.exit_status, 128 + signal.SIGALRM)
"""Exit statuses after which starting anew mends nothing: the input is wrong, or train.max_time is over."""

_waits: timedelta | None = None
"""For another process, at the moment; None is session.PATIENCE."""


@contextmanager
def together(accelerator: Accelerator, request: StopRequest) -> Iterator[None]:
    """Around what the processes of a run do: the reason of the first one that fails becomes that of all.

    Raises LostProcess where another one has ended or hangs, with its exit status where it has said why, and
    TrainingError where memory runs out. Of a process alone only that.
    """
    global _waits
    _waits = None
    several = accelerator.num_processes > 1
    if several:
        _patience()  # what is wrong with it is said before anything is prepared
        failures.join()
        before = failures.reason_of_others(earlier=True)
        if before and before.exit_status in FINAL:
            raise LostProcess(before.sentence, exit_status=before.exit_status)
    try:
        yield
    except (Exception, StopNow) as error:
        failure: Exception | None = None
        if several:
            request.gives_up()
        if several and (cause := _of_others(error)):
            failure = _lost(accelerator, timed_out=re.search(r"timed?[ -]?out", str(cause), re.IGNORECASE) is not None)
        elif _is_out_of_memory(error):
            failure = _out_of_memory(accelerator, error)
        if several:
            _report(failure or error)
        if failure:
            raise failure from error
        raise


@contextmanager
def meeting_others() -> Iterator[None]:
    """Around the opening of the process group: LostProcess where the processes do not find each other."""
    try:
        yield
    except Exception as error:
        if not (cause := _of_others(error)):
            raise
        if reason := failures.reason_of_others():
            raise LostProcess(reason.sentence, exit_status=reason.exit_status) from error
        raise LostProcess(
            f"the processes of this run do not find each other: {first_line(cause)}",
            hint="see that the address and port of the first one, and the network that GLOO_SOCKET_IFNAME or "
            "NCCL_SOCKET_IFNAME names, lead there from everywhere",
        ) from error


@contextmanager
def at_leisure(accelerator: Accelerator) -> Iterator[None]:
    """While the first process writes, which may take long, the others wait for it as long as while data is prepared."""
    before = _waits
    _wait(accelerator, session.PATIENCE)
    yield
    _wait(accelerator, before or session.PATIENCE)


def wait_less(accelerator: Accelerator) -> None:
    """Training begins: from here on a process that is waited for longer than WAITS counts as hanging."""
    _wait(accelerator, _patience())


def _patience() -> timedelta:
    given = os.environ.get(VARIABLE)
    try:
        seconds = float(given) if given else WAITS.total_seconds()
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= session.PATIENCE.total_seconds() or not math.isfinite(seconds):
        most = round(session.PATIENCE.total_seconds())
        raise UserError(f"{VARIABLE}: {given!r} is no number of seconds up to {most}", hint="remove it, or set 1800")
    return timedelta(seconds=seconds)


def _wait(accelerator: Accelerator, at_most: timedelta) -> None:
    global _waits
    if accelerator.num_processes > 1 and dist.group.WORLD is not None:
        _waits = at_most
        for group in _world.pg_map:  # those of a mesh too, and DeepSpeed's own
            group.set_timeout(at_most)


def _of_others(error: BaseException) -> BaseException | None:
    """What a collective has raised, if the error is that or came of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, FAILED) or (isinstance(seen, RuntimeError) and "gloo" in str(seen).lower()):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _lost(accelerator: Accelerator, *, timed_out: bool) -> LostProcess:
    """The error of a process that cannot go on without another one: that one's own, if it has left it."""
    if timed_out:
        failures.note_waiting(accelerator.process_index)
    time.sleep(LETS_OTHERS_SPEAK)
    if reason := failures.reason_of_others():
        return LostProcess(reason.sentence, exit_status=reason.exit_status)
    if not timed_out:
        what = "another process of this run has ended without a word: it was killed, for example for lack of memory"
        return LostProcess(what, hint=GO_ON, unexplained=True)
    silent = failures.who_does_not_wait(accelerator.num_processes)
    which = f"process{'es' if silent[1:] else ''} {', '.join(map(str, silent))}" if silent else "another process"
    waited = span((_waits or session.PATIENCE).total_seconds())
    what = f"{which} of this run has not answered for {waited}: it hangs, or cannot be reached"
    return LostProcess(what, hint=f"see what it does there; {GO_ON}")


def _report(error: BaseException) -> None:
    if isinstance(error, HFPretrainError):
        unexplained = isinstance(error, LostProcess) and error.unexplained
        failures.report(str(error), error.exit_status, known_better=unexplained)
    elif isinstance(error, StopNow):
        failures.report(str(error), 128 + error.signal)
    else:
        failures.report(f"{type(error).__name__}: {first_line(error)}", 1)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in NO_MEMORY)


def _out_of_memory(accelerator: Accelerator, error: BaseException) -> TrainingError:
    which = f"process {accelerator.process_index} of {accelerator.num_processes}, " if failures.several() else ""
    wanted = re.search(r"allocate ([\d.]+ \w+)", str(error))
    what = f", {wanted[1]} of it" if wanted else ""
    hint = "a smaller train.micro_batch_size takes less, and so does train.activation_checkpointing=true"
    return TrainingError(f"{which}{accelerator.device}: there is no more memory{what}", hint=f"{hint}; then {GO_ON}")
