"""A line on a terminal that says what goes on, how far it is and how long it will take; it is on stderr.

Where stderr is no terminal there is none, and plain lines in the log do. NO_COLOR is honoured, and where the encoding
has no block characters ASCII is used.
"""

import itertools
import logging
import math
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from hfpretrain.amounts import span

if TYPE_CHECKING:
    from rich.text import Text

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
LONGEST_BAR, SHORTEST_BAR, LONGEST_CURVE, SHORTEST_CURVE = 40, 8, 40, 8
MOST_VALUES = 4096
"""Of a curve; beyond that each two neighbours become one."""


def wanted(log: logging.Logger | None = None) -> bool:
    """Whether a bar can be seen: stderr is a terminal that can move about, and what `log` says is shown, if given."""
    if not sys.stderr.isatty() or (log is not None and not log.isEnabledFor(logging.INFO)):
        return False
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


class Bar:
    """The line: what goes on, a bar, some words, and a curve if there is one."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self.what, self.share = what, 0.0
        self.words: Sequence[str] = ()
        self.values: list[float] = []
        """Of the curve."""
        self._each = 1
        """So many added values are one of those."""
        self._waiting: list[float] = []
        self.console = Console(stderr=True, highlight=False, emoji=False)
        self._live = Live(console=self.console, get_renderable=self._line, refresh_per_second=4)

    def __enter__(self) -> "Bar":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, share: float | None, *words: str) -> None:
        """How much of it is done, if that is known, and some words, of which the last go first where room is short."""
        self.share, self.words = -1.0 if share is None else min(max(share, 0.0), 1.0), words

    def add(self, value: float) -> None:
        """The next value of the curve; what is no finite number is left out."""
        if not math.isfinite(value):
            return
        self._waiting.append(value)
        if len(self._waiting) == self._each:
            self.values.append(sum(self._waiting) / self._each)
            self._waiting = []
        if len(self.values) > MOST_VALUES:
            self.values = [sum(pair) / 2 for pair in zip(self.values[::2], self.values[1::2], strict=False)]
            self._each *= 2

    def _line(self) -> "Text":
        from rich.text import Text

        width, plain = self.console.width - 1, self.console.options.ascii_only
        words = list(self.words)
        drawn = SHORTEST_BAR + SHORTEST_CURVE + 4 if self.values else 0
        while len(words) > 2 and len("  ".join([self.what, *words])) + drawn > width:
            words.pop()
        while len(words) > 1 and len("  ".join([self.what, *words])) > width:
            words.pop()
        told = "  ".join(words)
        room = width - len(self.what) - len(told) - 4
        curve = ""
        if self.values and room >= SHORTEST_BAR + SHORTEST_CURVE:
            curve = sparkline(self.values, min(LONGEST_CURVE, room // 2), plain=plain)
            room -= len(curve) + 2
        line = Text(f"{self.what}  ", no_wrap=True, overflow="crop")
        length = min(LONGEST_BAR, room)
        if self.share >= 0 and length >= SHORTEST_BAR:
            done = round(self.share * length)
            line.append(("#" if plain else "━") * done, style="cyan")
            line.append(("-" if plain else "─") * (length - done) + "  ", style="dim")
        line.append(told)
        return line.append(f"  {curve}", style="cyan") if curve else line


def sparkline(values: Sequence[float], width: int, *, plain: bool = False) -> str:
    """A curve in one line of blocks, of at most so many; neighbours are put together where there are more values."""
    levels = PLAIN_BLOCKS if plain else BLOCKS
    columns = min(width, len(values))
    cuts = [len(values) * place // columns for place in range(columns + 1)] if columns else []
    means = [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(
        levels[round((mean - low) / (high - low) * (len(levels) - 1)) if high > low else 0] for mean in means
    )


class Clock:
    """How long something will still take, from how long it has taken."""

    def __init__(self, done: float = 0.0) -> None:
        self.began, self.done = time.monotonic(), done

    def left(self, done: float) -> str:
        """In words; `done` is the share of it all."""
        passed = time.monotonic() - self.began
        return f"{span(passed / max(done - self.done, 1e-9) * (1 - done))} left"
