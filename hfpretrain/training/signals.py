"""Signals: the first one asks the run to finish its step and save; a second one acts at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """The number of the signal that came, or None."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Records the first signal instead of dying of it. Outside the main thread signals stay as they are."""
    request = StopRequest()
    before = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        log.warning("signal %d: saving after this step; a second signal stops at once", number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    try:
        for each in SIGNALS:
            before[each] = signal.signal(each, note)
    except ValueError:  # not the main thread
        pass
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
