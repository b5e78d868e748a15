"""Signals: the first one asks the run to finish its step and save; a second one acts at once.

Before the first step there is nothing to save, so that the first signal ends the process. SIGALRM is our own: it comes
when train.max_time is over.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hfpretrain.process import LAUNCHER_ENDED

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGALRM") if hasattr(signal, name))


GRACE_SECONDS = 3.0
"""How long a signal may take to end what runs while there is nothing to save, before the process ends all the same."""


class StopNow(BaseException):
    """A signal came while there was nothing to save. No Exception: what catches those must not catch this."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}; there was nothing to save")
        self.signal = number


class StopRequest:
    """Whether the run is to stop."""

    def __init__(self, after_step: int | None = None) -> None:
        self.signal: int | None = None
        """The number of the signal that came."""
        self.nothing_to_save = True
        """A signal raises StopNow; else it is noted, for the loop to see."""
        self.over = threading.Event()
        """What was to be stopped has ended."""
        self.after_step = after_step
        """A step to stop after, as if SIGALRM had come."""

    def training_begins(self) -> None:
        """From here on there is something to save. Raises StopNow if a signal came before, and was not felt."""
        self.nothing_to_save = False
        if self.signal is not None:
            raise StopNow(self.signal)

    def asked(self, step: int) -> int:
        """The signal to stop by after this step, or 0."""
        return self.signal or (signal.SIGALRM if step == self.after_step else 0)


@contextmanager
def stop_on_signals(*, after_step: int | None = None, seconds: float | None = None) -> Iterator[StopRequest]:
    """Hears the signals while the block runs; after `seconds` SIGALRM is sent. Other threads hear no signals."""
    request = StopRequest(after_step)
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if request.nothing_to_save:
            raise StopNow(number)
        what = "train.max_time is over" if number == signal.SIGALRM else f"signal {number}"
        log.warning("%s: saving after this step; a second signal stops at once", what)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def launcher_ended(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            note(signal.SIGTERM, frame)

    for each in SIGNALS:
        before[each] = signal.signal(each, note)
    if LAUNCHER_ENDED is not None:
        before[LAUNCHER_ENDED] = signal.signal(LAUNCHER_ENDED, launcher_ended)
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with _watched(request):
            yield request
    finally:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _watched(request: StopRequest) -> Iterator[None]:
    """Ends the process where a signal comes with nothing to save, and StopNow does not end it.

    Python hears signals between its own instructions only, and e.g. training a tokenizer is one that takes minutes; and
    what is raised while an object is being cleared away goes no further.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in SIGNALS and request.nothing_to_save and not request.over.wait(GRACE_SECONDS):
                os._exit(128 + number[0])
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
