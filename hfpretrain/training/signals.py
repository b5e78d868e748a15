"""Signals: the first one asks the run to finish its step and save; who asks again, seconds later, is obeyed at once.

SIGTERM and SIGINT come in copies: who stops a job signals all its processes, and its launcher (torchrun, timeout, a
shell) passes on to them what it got itself. SIGUSR1 is a warning, as SLURM's, that the time is nearly over, and so is
SIGALRM, our own, which comes when train.max_time is: the order at the limit then finds the run saving. None of these
is somebody's who asks again.

Before the first step there is nothing to save, so that the first signal ends the process.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from hfpretrain.process import LAUNCHER_ENDED, launched

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGALRM") if hasattr(signal, name))
ORDERS = (signal.SIGINT, signal.SIGTERM)
"""Of these a second one ends the process at once, the others only warn."""
SAME_SECONDS = 3.0
"""An order that comes within this time of the first is that one once more: whoever ends a job signals all of its
processes, and launchers and scripts pass on what they get. A Ctrl-C without a launcher comes from a person."""
GRACE_SECONDS = 3.0
"""How long a signal may take to end what runs while there is nothing to save, before the process ends all the same."""

NOTHING_TO_SAVE, SAVED = "there was nothing to save", "the run is saved"


class StopNow(BaseException):
    """A signal came that need not be waited for. No Exception: what catches those must not catch this."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"stopped by signal {number}; {why}")
        self.signal = number


class StopRequest:
    """Whether the run is to stop."""

    def __init__(self, after_step: int | None = None) -> None:
        self.signal: int | None = None
        """The number of the first signal that came."""
        self.at_once: str | None = NOTHING_TO_SAVE
        """Why a signal need not be waited for: it raises StopNow. Without that it is noted, for the loop to see."""
        self.over = threading.Event()
        """What was to be stopped has ended."""
        self.after_step = after_step
        """A step to stop after, as if SIGALRM had come."""

    def training_begins(self) -> None:
        """From here on there is something to save. Raises StopNow if a signal came before, and was not felt."""
        self.at_once = None
        if self.signal is not None:
            raise StopNow(self.signal, NOTHING_TO_SAVE)

    def gives_up(self) -> None:
        """The run has failed, and saves nothing any more: a launcher that ends the others of it is not listened to."""
        self.signal = self.signal or signal.SIGTERM

    def asked(self, step: int) -> int:
        """The signal to stop by after this step, or 0."""
        return self.signal or (signal.SIGALRM if step == self.after_step else 0)

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of all signals. Of any but the first it knows nothing: see `_watched`."""
        if self.signal is not None:
            return
        self.signal = signal.SIGTERM if number == LAUNCHER_ENDED else number
        if self.at_once:
            raise StopNow(self.signal, self.at_once)
        what = "train.max_time is over" if number == signal.SIGALRM else f"signal {self.signal}"
        log.warning("%s: saving after this step; a second SIGTERM or SIGINT stops at once", what)


_heard: StopRequest | None = None
"""Of the block around, where there is one."""


@contextmanager
def stop_on_signals(*, after_step: int | None = None, seconds: float | None = None) -> Iterator[StopRequest]:
    """Hears the signals while the block runs; after `seconds` SIGALRM is sent. Other threads hear no signals.

    A block within another one has the same request: what one has heard the other has heard.
    """
    if threading.current_thread() is not threading.main_thread():
        if seconds is not None:
            log.warning("train.max_time is not kept: training is not on the main thread, and no other hears signals")
        yield StopRequest(after_step)
        return
    request = _heard or StopRequest()
    with nullcontext() if _heard else _listening(request):
        request.after_step, request.at_once = after_step, NOTHING_TO_SAVE
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield request
        finally:
            if seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
            request.after_step = None
            if request.at_once is None and request.signal is None:
                request.at_once = SAVED


@contextmanager
def _listening(request: StopRequest) -> Iterator[None]:
    """Has the request hear every signal."""
    global _heard
    before: dict[int, Any] = {each: signal.signal(each, request.hear) for each in SIGNALS}
    if LAUNCHER_ENDED is not None:
        before[LAUNCHER_ENDED] = signal.signal(LAUNCHER_ENDED, request.hear)
    _heard = request
    try:
        with _watched(request):
            yield
    finally:
        _heard = None
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _watched(request: StopRequest) -> Iterator[None]:
    """Ends the process where somebody asks again, or a signal comes with nothing to save and StopNow does not end it.

    Python hears signals between its own instructions only, and e.g. training a tokenizer is one that takes minutes, and
    waiting for a process that is gone one that does not end; and what is raised while an object is being cleared away
    goes no further.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        ordered: float | None = None
        while written := os.read(reader, 1):
            number, now = written[0], time.monotonic()
            if number in ORDERS:
                ordered = now if ordered is None else ordered
                same = SAME_SECONDS if number == signal.SIGTERM or launched() else 0.0
                if now > ordered + same:
                    os._exit(128 + number)
            if number in SIGNALS and request.at_once and not request.over.wait(GRACE_SECONDS):
                os._exit(128 + number)
        os.close(reader)

    def lost(what: "sys.UnraisableHookArgs") -> None:
        if not isinstance(what.exc_value, StopNow):
            say_lost(what)

    say_lost, sys.unraisablehook = sys.unraisablehook, lost
    threading.Thread(target=watch, name="hfpretrain-signals", daemon=True).start()
    try:
        yield
    finally:
        request.over.set()
        sys.unraisablehook = say_lost
        signal.set_wakeup_fd(before)
        os.close(writer)  # which ends the thread
