"""The curves of a run, read from metrics.jsonl as it grows and thinned: the longest run needs no more memory."""

import json
import math
import os
from collections.abc import Sequence
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

    def extend(self, x: Sequence[float], y: Sequence[float]) -> None:
        """Adds points, at least one."""
        self.newest = y[-1]
        place = 0
        while place < len(y):
            last = self.buckets[-1] if self.buckets else None
            if last is not None and last.count < self._per_bucket:
                end = min(len(y), place + self._per_bucket - last.count)
                self.buckets[-1] = last.joined(_bucket(x, y, place, end))
            else:
                if len(self.buckets) == MOST:
                    pairs = zip(self.buckets[::2], self.buckets[1::2], strict=True)
                    self.buckets = [one.joined(other) for one, other in pairs]
                    self._per_bucket *= 2
                end = min(len(y), place + self._per_bucket)
                self.buckets.append(_bucket(x, y, place, end))
            place = end

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
                vars(self).update(vars(Curves()))
            opened.seek(self._read)
            before = self._read
            rest = b""
            while chunk := opened.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                self._read += sum(map(len, lines)) + len(lines)
                self._take(_parsed(lines))
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

    def _take(self, lines: list[Any]) -> None:
        """Adds what lines hold; one that is not that of a step is None."""
        found: dict[str, tuple[list[float], list[Any]]] = {}
        for line in lines:
            step: Any = line["step"] if type(line) is dict and "step" in line else None
            if not _is_number(step):
                self.unreadable += 1
                continue
            self.last_step = max(self.last_step, step)
            for key, value in line.items():
                if key in found:
                    found[key][0].append(step)
                    found[key][1].append(value)
                elif key != "time":
                    found[key] = [step], [value]
                elif type(value) is dict:
                    for phase in PHASES:
                        x, y = found.setdefault(f"time.{phase}", ([], []))
                        x.append(step)
                        y.append(value.get(phase))
            if "validation_loss" in line or "pairs_accuracy" in line:
                self._remember(line)
        for key, points in found.items():
            x, y = _drawable(*points)
            if not y or key == "step":
                continue
            if key in TROUBLES:
                self.troubles[key] = self.troubles.get(key, 0) + int(sum(y))
            if key in self.series or len(self.series) < MOST_SERIES:
                self.series.setdefault(key, Series()).extend(x, y)

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


def _is_number(value: Any) -> bool:
    """Whether it can be drawn: a number that is no NaN, not infinite, and no integer of a thousand digits."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def _drawable(x: list[float], y: list[Any]) -> tuple[list[float], list[float]]:
    """The points whose values are numbers."""
    try:
        if math.isfinite(sum(y)) and bool not in set(map(type, y)):  # the usual case, found out fast
            return x, y
    except (TypeError, OverflowError):
        pass
    places = [place for place, value in enumerate(y) if _is_number(value)]
    return [x[place] for place in places], [y[place] for place in places]


def _bucket(x: Sequence[float], y: Sequence[float], start: int, end: int) -> Bucket:
    """Of the points from `start` to `end`."""
    values = y[start:end]
    return Bucket(x[start], x[end - 1], min(values), max(values), sum(values), end - start)


def _parsed(lines: list[bytes]) -> list[Any]:
    """What lines of JSON are, all at once if that can be, which is faster; None for one that cannot be read."""
    lines = [line for line in lines if line.strip()]
    try:
        together: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
        if len(together) == len(lines):
            return together
    except (ValueError, RecursionError):
        pass
    return [_parsed_alone(line) for line in lines]


def _parsed_alone(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
