"""How far the preparation of a source is: a bar on a terminal, a few plain lines in a log. All on stderr."""

import logging
import time
from types import TracebackType

from hfpretrain.amounts import span
from hfpretrain.files import size_in_words
from hfpretrain.terminal import Bar, wanted

log = logging.getLogger(__name__)

LINE_EVERY_BYTES, LINES = 64_000_000, 5


class Progress:
    """Bytes of text done, of `size` in all, where that is known: about, since files hold more than their text."""

    def __init__(self, what: str, size: int) -> None:
        self.what, self.size = what, size
        self.done = self.prepared = self.next_line = 0
        self.started = time.monotonic()
        self._next_line()
        self.bar = Bar(what) if wanted(log) else None

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.__exit__(kind, error, trace)

    def add(self, size: int, *, prepared: bool = True) -> None:
        """So many bytes more are done: prepared, or passed over."""
        self.done += size
        self.prepared += size if prepared else 0
        if self.bar:
            self.bar.update(self.done / self.size if self.size else None, *self._words())
        elif self.done >= self.next_line:
            self._next_line()
            log.info("%s: %s", self.what, ", ".join(self._words()))

    def _next_line(self) -> None:
        # Where the size is not known, or was wrong, from line to line twice as far.
        known = self.size > self.done
        self.next_line = self.done + max(self.size // LINES if known else self.done, LINE_EVERY_BYTES)

    def _words(self) -> list[str]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        words = [f"{size_in_words(self.done)} at {self.prepared / 1e6 / seconds:.1f} MB/s"]
        if self.size > self.done > 0:
            words.append(f"about {span(seconds / self.done * (self.size - self.done))} left")
        return words
