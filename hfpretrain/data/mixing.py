"""Which source the block at a position comes from: exact shares, repeats and stages, computed instead of remembered.

A run's positions (blocks, counted from its start) are cut into segments in which the same sources have the same
shares: a stage ends, or a source that is not repeated is used up. Within a segment the sources follow one another in a
cycle that repeats, so that any position costs one look-up and every count of blocks is a closed form.
"""

import bisect
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from hfpretrain.amounts import Amount
from hfpretrain.data.batch_sizes import BatchSizes
from hfpretrain.errors import DataError, RecipeError
from hfpretrain.recipe import BatchRamp

ENDLESS = 2**62
"""The number of blocks of a part that nobody knows the end of."""
_NEVER = 2**70


class Cycle:
    """The order of sources with whole-number weights; it repeats after as many positions as the weights sum to.

    After any number n of positions every source was taken less than one time more or less than n times its share.
    That is a proportionate-fair schedule (Baruah, Cohen, Plaxton & Varvel 1996): a source's next block is due at the
    end of a window of one share, and of those whose window has begun the one that is due first is taken.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights, self.length = tuple(weights), sum(weights)
        self._sources = np.zeros(self.length, dtype=np.uint16)
        """[length]: the source at each place."""
        self._before = np.zeros(self.length, dtype=np.uint32)
        """[length]: how many blocks of that source came before in the cycle."""
        waiting = [(0, source) for source in range(len(weights))]
        ready: list[tuple[int, int]] = []
        taken = [0] * len(weights)
        for place in range(self.length):
            while waiting and waiting[0][0] <= place:
                source = heapq.heappop(waiting)[1]
                due = -(-(taken[source] + 1) * self.length // weights[source])
                heapq.heappush(ready, (due, source))
            source = heapq.heappop(ready)[1]
            self._sources[place], self._before[place] = source, taken[source]
            taken[source] += 1
            heapq.heappush(waiting, (taken[source] * self.length // weights[source], source))

    def at(self, position: int) -> tuple[int, int]:
        """The source at a position, and how many of its blocks came before."""
        times, place = divmod(position, self.length)
        source = int(self._sources[place])
        return source, times * self.weights[source] + int(self._before[place])

    def taken(self, positions: int) -> list[int]:
        """How many blocks of each source so many positions hold."""
        times, places = divmod(positions, self.length)
        rest = np.bincount(self._sources[:places], minlength=len(self.weights))
        return [times * weight + int(more) for weight, more in zip(self.weights, rest, strict=True)]

    def positions(self, source: int, blocks: int) -> int:
        """How many positions hold the first `blocks` blocks of a source."""
        times, more = divmod(blocks - 1, self.weights[source])
        place = np.flatnonzero((self._sources == source) & (self._before == more))[0]
        return times * self.length + int(place) + 1


@functools.lru_cache(maxsize=128)
def cycle_of(weights: tuple[int, ...]) -> Cycle:
    """The cycle of weights in their smallest whole numbers."""
    divisor = math.gcd(*weights)
    return Cycle([weight // divisor for weight in weights])


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a stage reads: parts (sources, or several as one) by their number, each once and with its weight."""

    parts: tuple[int, ...]
    weights: tuple[int, ...]
    repeat: tuple[bool, ...]
    block_size: int
    words_per_token: tuple[Fraction, ...]
    until: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Positions from `start` on in which the same parts have the same shares; no parts: there is nothing left."""

    start: int
    stage: int
    parts: tuple[int, ...]
    cycle: Cycle
    taken: tuple[int, ...]
    """Of each part of the run, the blocks taken before."""
    rates: Mapping[str, Fraction]
    """What a position counts, in each unit of an amount."""

    def after(self, positions: int) -> tuple[int, ...]:
        """Of each part of the run, the blocks taken after so many positions of this segment."""
        taken = list(self.taken)
        for part, blocks in zip(self.parts, self.cycle.taken(positions), strict=False):
            taken[part] += blocks
        return tuple(taken)


@dataclass(frozen=True)
class Order:
    """The segments of a run, one after another; the last goes on. `sizes` holds the blocks of each part.

    Everything is a function of the position or the step: there is nothing to save.
    """

    segments: Sequence[Segment]
    sizes: Sequence[int]
    batches: BatchSizes
    steps: int | None
    """Of the run; None where its duration is a time."""

    def segment(self, position: int) -> Segment:
        return self.segments[bisect.bisect_right(self.segments, position, key=lambda segment: segment.start) - 1]

    def place(self, position: int) -> tuple[int, int] | None:
        """The part at a position, and how many of its blocks came before; None if there is nothing left."""
        segment = self.segment(position)
        if not segment.parts:
            return None
        source, before = segment.cycle.at(position - segment.start)
        part = segment.parts[source]
        return part, segment.taken[part] + before

    def taken(self, position: int) -> tuple[int, ...]:
        """How many blocks of each part the positions before this one hold."""
        segment = self.segment(position)
        return segment.after(position - segment.start)

    def total(self, unit: str, step: int) -> Fraction:
        """What so many steps come to: tokens, words or epochs (of the stage that a step is in), exactly."""
        return Fraction(step) if unit == "steps" else _total(self.segments, unit, self.batches.before(step))

    def steps_for(self, unit: str, value: Fraction) -> Fraction:
        """After how many steps, which may end within one, there were so many tokens, words or epochs."""
        return value if unit == "steps" else self.batches.steps(_position(self.segments, unit, value))

    def epochs(self, step: int) -> list[Fraction]:
        """How many times each part was gone through."""
        taken = self.taken(self.batches.before(step))
        return [Fraction(blocks, size) for blocks, size in zip(taken, self.sizes, strict=True)]


def lay_out(mixes: Sequence[Mix], sizes: Sequence[int], *, batch_size: int | BatchRamp, duration: Amount) -> Order:
    """The order of a run with these stages, and how many steps its duration is: as many as reach it.

    Raises RecipeError where a stage does not begin before it ends.
    """

    def batches(steps: int | None) -> BatchSizes:
        """In a run of so many steps."""
        if not isinstance(batch_size, BatchRamp):
            return BatchSizes(batch_size, batch_size)
        first, last, over = batch_size.from_, batch_size.to, batch_size.over
        if over.unit == "steps":
            return BatchSizes(first, last, int(over.value))
        if over.unit == "percent":
            assert steps is not None
            return BatchSizes(first, last, math.ceil(exact(over) / 100 * steps))

        def reached(over_steps: int) -> bool:
            growing = BatchSizes(first, last, over_steps)
            segments = _segments(mixes, sizes, growing, steps)[0]
            return Order(segments, sizes, growing, steps).total(over.unit, over_steps) >= exact(over)

        return BatchSizes(first, last, _least(reached, "train.batch_size.over", over))

    def order(steps: int | None) -> Order:
        growing = batches(steps)
        return Order(_segments(mixes, sizes, growing, steps)[0], sizes, growing, steps)

    steps = None
    if duration.unit == "steps":
        steps = max(1, math.ceil(exact(duration)))
    elif duration.unit != "seconds":
        # Where stages end, and how batches grow, may depend on the number of steps, so it is looked for.
        steps = _least(
            lambda steps: order(steps).total(duration.unit, steps) >= exact(duration), "train.duration", duration
        )
    ends = _segments(mixes, sizes, batches(steps), steps)[1]
    for number, (before, end) in enumerate(itertools.pairwise([Fraction(0), *ends])):
        if end <= before:
            raise RecipeError(
                f"data.stages.{number}.until: {mixes[number].until} is not after the stage before, "
                f"which lasts until {mixes[number - 1].until}",
                hint="give the stages in their order, best in percent of the run",
            )
    last = mixes[-1].until
    if last is not None and ends and steps is not None and ends[-1] < steps:
        key = f"data.stages.{len(mixes) - 1}.until"
        raise RecipeError(
            f"{key}: {last} is before the end of the run, {steps} steps", hint="leave it out of the last stage"
        )
    return order(steps)


def _least(enough: Callable[[int], bool], key: str, amount: Amount) -> int:
    """The least number of steps, at least 1, that is enough; RecipeError where none is."""
    low, steps = 0, 1
    while not enough(steps):
        low, steps = steps, steps * 2
        if steps > _NEVER:
            raise RecipeError(f"{key}: {amount} are never reached with this data")
    while steps - low > 1:
        middle = (low + steps) // 2
        low, steps = (low, middle) if enough(middle) else (middle, steps)
    return steps


def require_enough(order: Order) -> None:
    """Raises DataError where a stage, or the run, goes on by a step or more after all its sources were used up."""
    assert order.steps is not None or all(segment.parts for segment in order.segments)
    steps, whole = order.batches.steps, order.batches.before(order.steps or 0)
    for segment, following in itertools.zip_longest(order.segments, order.segments[1:]):
        end = whole if following is None else min(whole, following.start)
        if not segment.parts and steps(Fraction(end)) - steps(Fraction(segment.start)) >= 1:
            there = order.batches.step_at(segment.start)
            what = "train.duration" if following is None else f"data.stages.{segment.stage}.until"
            raise DataError(
                f"{what}: the sources, which are not to be repeated, are used up after step {there} "
                f"({segment.start} blocks of the run), and it goes on to step {order.batches.step_at(end)}",
                hint="make it shorter, or let a source repeat",
            )


def described(order: Order, mixes: Sequence[Mix], names: Sequence[str]) -> list[str]:
    """A line for each stage or mix, for each source that is used up, and for each that is repeated."""
    batches = order.batches
    end = None if order.steps is None else batches.before(order.steps)
    firsts = {segment.stage: segment for segment in reversed(order.segments)}
    lines = []
    for number, mix in enumerate(mixes):
        weights = zip(mix.parts, mix.weights, strict=True)
        shares = [f"{names[part]} {100 * weight / sum(mix.weights):.4g}%" for part, weight in weights]
        said = ", ".join(shares) if len(mix.parts) > 1 else names[mix.parts[0]]
        if len(mixes) == 1:
            lines += [f"shares: {said}"] if len(mix.parts) > 1 else []
        elif number not in firsts or (end is not None and firsts[number].start >= end):
            lines.append(f"data.stages.{number} is never reached: the run ends before it")
        else:
            begins = batches.step_at(firsts[number].start) + 1
            lines.append(f"data.stages.{number}, from step {begins} on: blocks of {mix.block_size}; {said}")
    before: set[int] = set()
    for segment in order.segments:
        if end is not None and segment.start >= end:
            break
        before = set(mixes[segment.stage].parts) if segment is firsts[segment.stage] else before
        others = ", ".join(names[part] for part in segment.parts)
        for part in sorted(before - set(segment.parts)):
            step = batches.step_at(segment.start) + 1
            lines.append(
                f"{names[part]} is used up: from step {step} on its share goes to {others}"
                if others
                else f"{names[part]} is used up in step {max(1, math.ceil(batches.steps(Fraction(segment.start))))}"
            )
        before = set(segment.parts)
    if order.steps is not None and len(order.sizes) > 1:
        epochs = zip(names, order.epochs(order.steps), strict=True)
        lines += [f"{name} is repeated: {float(each):.2f} epochs of it" for name, each in epochs if each > 1]
    return lines


def exact(amount: Amount) -> Fraction:
    """The number that was written, without a float's rounding."""
    return Fraction(str(amount.value))


def _segments(
    mixes: Sequence[Mix], sizes: Sequence[int], batches: BatchSizes, steps: int | None
) -> tuple[list[Segment], list[Fraction]]:
    """The segments, and the step at which each stage that says it ends, before rounding up to whole steps."""
    segments: list[Segment] = []
    ends: list[Fraction] = []
    start, taken = 0, tuple(0 for _ in sizes)
    for number, mix in enumerate(mixes):
        own = _of_stage(number, mix, sizes, start, taken)
        if mix.until is not None:
            if mix.until.unit == "percent":
                assert steps is not None
                ends.append(exact(mix.until) / 100 * steps)
            elif mix.until.unit == "steps":
                ends.append(exact(mix.until))
            else:
                ends.append(batches.steps(_position([*segments, *own], mix.until.unit, exact(mix.until))))
        if number == len(mixes) - 1:
            return [*segments, *own], ends
        end = max(start, batches.before(math.ceil(ends[-1])))
        if own := [segment for segment in own if segment.start < end]:
            taken = own[-1].after(end - own[-1].start)
        segments += own
        start = end
    raise AssertionError("a run has a stage")


def _of_stage(number: int, mix: Mix, sizes: Sequence[int], start: int, taken: tuple[int, ...]) -> list[Segment]:
    """The segments of a stage, as if it had no end: a new one begins where a source that is not repeated is used up."""
    found: list[Segment] = []
    blocks = sum(sizes[part] for part in mix.parts)
    while True:
        left = [
            (part, weight, repeat, words)
            for part, weight, repeat, words in zip(mix.parts, mix.weights, mix.repeat, mix.words_per_token, strict=True)
            if repeat or taken[part] < sizes[part]
        ]
        parts, weights = tuple(part for part, *_ in left), tuple(weight for _, weight, *_ in left)
        words = sum((each * weight for _, weight, _, each in left), Fraction(0)) / max(1, sum(weights))
        rates = {
            "tokens": Fraction(mix.block_size),
            "words": words * mix.block_size,
            "epochs": Fraction(1, blocks),
        }
        cycle = cycle_of(weights or (1,))
        segment = Segment(start=start, stage=number, parts=parts, cycle=cycle, taken=taken, rates=rates)
        found.append(segment)
        lengths = [
            cycle.positions(place, sizes[part] - taken[part])
            for place, (part, _, repeat, _) in enumerate(left)
            if not repeat
        ]
        if not lengths:
            return found
        taken = segment.after(min(lengths))
        start += min(lengths)


def _total(segments: Sequence[Segment], unit: str, position: int) -> Fraction:
    found = Fraction(0)
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        end = position if following is None else min(position, following.start)
        if end <= segment.start:
            break
        found += segment.rates[unit] * (end - segment.start)
    return found


def _position(segments: Sequence[Segment], unit: str, value: Fraction) -> Fraction:
    """Where the total in that unit comes to `value`."""
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        rate = segment.rates[unit]
        if following is None:
            return segment.start + (value / rate if rate else Fraction(_NEVER))
        worth = rate * (following.start - segment.start)
        if value <= worth:
            return segment.start + (value / rate if rate else Fraction(0))
        value -= worth
    raise AssertionError("a run has a segment")
