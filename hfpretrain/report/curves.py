"""The curves of a run, read from metrics.jsonl as it grows and thinned: the longest run needs no more memory."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfpretrain.files import open_own

MOST = 600
"""Buckets of a series, at most; above half of it where it was thinned at all."""
MOST_MOMENTS = 48
"""Evaluations that are kept with their samples."""
PHASES = ("forward_backward", "optimizer", "data", "other")
"""What the time of a step is split into."""
TROUBLES = {
    "loss_spikes": "loss spikes",
    "nonfinite_steps": "steps that were no numbers",
    "overflow_steps": "overflows",
}
"""What is counted of steps that went wrong."""
MOST_SERIES = 200
"""Far more than any run has; a file of a stranger may hold anything."""
_CHUNK = 1 << 20


@dataclass(slots=True)
class Bucket:
    """Neighbouring points of a series: where they begin and end, their least and greatest value, and their mean."""

    first: float
    last: float
    low: float
    high: float
    total: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def at(self) -> float:
        """The middle of it."""
        return (self.first + self.last) / 2

    def joined(self, other: "Bucket") -> "Bucket":
        """This one and the one after it."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Bucket(self.first, other.last, low, high, self.total + other.total, self.count + other.count)


class Series:
    """Points in the order of x. Of more than MOST neighbours are joined: the extremes stay, whatever the length."""

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.newest = math.nan
        """The last value."""
        self._per_bucket = 1

    def add(self, x: float, y: float) -> None:
        buckets = self.buckets
        self.newest = y
        if buckets and buckets[-1].count < self._per_bucket:
            last = buckets[-1]
            last.last, last.total, last.count = x, last.total + y, last.count + 1
            if y < last.low:
                last.low = y
            if y > last.high:
                last.high = y
            return
        if len(buckets) == MOST:
            self.buckets = [one.joined(other) for one, other in zip(buckets[::2], buckets[1::2], strict=True)]
            self._per_bucket *= 2
        self.buckets.append(Bucket(x, x, y, y, y, 1))

    def at_most(self, most: int) -> list[Bucket]:
        """The buckets, neighbours joined until there are no more than `most`."""
        buckets = self.buckets
        while len(buckets) > most:
            pairs = [one.joined(other) for one, other in zip(buckets[::2], buckets[1::2], strict=False)]
            buckets = pairs + buckets[len(buckets) // 2 * 2 :]
        return buckets

    def __bool__(self) -> bool:
        return bool(self.buckets)


@dataclass
class Curves:
    """What metrics.jsonl holds. `read` again takes what was added since."""

    series: dict[str, Series] = field(default_factory=dict)
    """By the key in a line; of the time split as time.data and so on, of troubles with their numbers."""
    moments: list[dict[str, Any]] = field(default_factory=list)
    """Lines of evaluations: of many every second one, every fourth, ..., and always the last."""
    troubles: dict[str, int] = field(default_factory=dict)
    last_step: float = 0
    unreadable: int = 0
    """Lines that were cut off, or are damaged."""
    _read: int = 0
    """So many bytes."""
    _every: int = 1
    """The how manyth evaluations are kept."""
    _evaluations: int = 0

    def read(self, file: Path) -> bool:
        """Reads what was added to the file, whole lines only. Returns whether that was something.

        OSError where it cannot be read, or is no regular file. A file that is shorter than before is read anew.
        """
        if not os.path.lexists(file):
            return False
        with os.fdopen(open_own(file, os.O_RDONLY), "rb") as opened:
            if os.fstat(opened.fileno()).st_size < self._read:
                self.__init__()  # type: ignore[misc]
            opened.seek(self._read)
            before = self._read
            rest = b""
            while chunk := opened.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                self._read += sum(map(len, lines)) + len(lines)
                for line in lines:
                    self._add(line)
        return self._read > before

    def tokens_at(self, steps: list[float]) -> list[float]:
        """Tokens seen after so many steps, between logged steps as if they came evenly; NaN where none is known."""
        known = self.series.get("tokens")
        if not known:
            return [math.nan] * len(steps)
        x = [0.0, *(place for each in known.buckets for place in (each.first, each.last))]
        y = [0.0, *(value for each in known.buckets for value in (each.low, each.high))]
        found: list[float] = np.interp(steps, x, y).tolist()
        return found

    def chosen_moments(self, most: int) -> list[dict[str, Any]]:
        """So many evaluations at most: the first, the last, and evenly between."""
        if len(self.moments) <= most:
            return self.moments
        places = {round(place) for place in np.linspace(0, len(self.moments) - 1, most)}
        return [self.moments[place] for place in sorted(places)]

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            found = json.loads(line)
            step = found["step"]
            if not _is_number(step):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            self.unreadable += 1
            return
        self.last_step = max(self.last_step, step)
        for key, value in found.items():
            if key == "time" and type(value) is dict:
                for phase in PHASES:
                    self._point(f"time.{phase}", step, value.get(phase))
            else:
                self._point(key, step, value)
        if is_evaluation(found):
            self._remember(found)

    def _point(self, key: str, step: float, value: Any) -> None:
        if key == "step" or not _is_number(value):
            return
        if key in TROUBLES:
            self.troubles[key] = self.troubles.get(key, 0) + int(value)
        series = self.series.get(key)
        if series is None:
            if len(self.series) == MOST_SERIES:
                return
            series = self.series[key] = Series()
        series.add(step, value)

    def _remember(self, line: dict[str, Any]) -> None:
        if self.moments and (self._evaluations - 1) % self._every:
            self.moments.pop()  # it was the last, and is not any more
        self.moments.append(line)
        self._evaluations += 1
        if len(self.moments) > MOST_MOMENTS:
            self._every *= 2
            last = self.moments[-1]
            self.moments = self.moments[::2]
            if self.moments[-1] is not last:
                self.moments.append(last)


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether a line of metrics is that of an evaluation."""
    return any(key.startswith(("validation_", "pairs")) for key in line)


def _is_number(value: Any) -> bool:
    """Whether it can be drawn: a number that is no NaN, not infinite, and no integer of a thousand digits."""
    return type(value) in (int, float) and -1e300 < value < 1e300
