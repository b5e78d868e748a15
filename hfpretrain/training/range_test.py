"""The learning-rate range test (Smith 2017): a few steps on a copy of the start of a run, each with a higher rate.

Nothing is written into the run directory, and the model is thrown away.
"""

import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hfpretrain.errors import TrainingError
from hfpretrain.recipe import Recipe
from hfpretrain.run import Run
from hfpretrain.training.loop import train_step, upcoming
from hfpretrain.training.session import open_accelerator, prepare_session

log = logging.getLogger(__name__)

SMOOTHING = 0.8
"""The share of the smoothed loss that stays at a step: a mean over about five steps."""
RISEN, RISEN_AT_LEAST = 0.25, 0.05
"""The test ends where the smoothed loss has risen again by this share of all that it had fallen, and by this share of
the first loss: more than noise. What higher rates make of a model that is spoilt tells nothing."""
WARMING_UP = 5
"""Steps before which nothing is concluded."""


@dataclass(frozen=True)
class Point:
    """One step of the test."""

    rate: float
    loss: float
    """Mean over the targets of the step, in nats."""
    smoothed: float


@dataclass(frozen=True)
class RangeTest:
    """What came of it."""

    points: tuple[Point, ...]
    least: Point
    """Where the smoothed loss is least."""
    suggestion: float
    """The middle of the half decade of rates up to there over which it falls the most."""


def range_test(recipe: Recipe, *, first: float = 1e-6, last: float = 1.0, steps: int = 100) -> RangeTest:
    """Trains up to `steps` steps from where the run would start, with rates from `first` to `last`.

    Each step's rate is the one before by the same factor. Ends where the loss is no number or rises again, and where
    data that is not repeated does not fill a step any more. Raises TrainingError where the loss did not fall at any
    rate.
    """
    recipe = replace(recipe, train=replace(recipe.train, skip_spikes=False))
    points: list[Point] = []
    average = 0.0
    with tempfile.TemporaryDirectory() as folder:
        session = prepare_session(recipe, Run(Path(folder)), open_accelerator(recipe))
        for step, (micro_batches, targets) in zip(range(steps), upcoming(session, 0), strict=False):
            if session.batches.order.place(session.batches.sizes.before(step + 1) - 1) is None:
                log.warning("the data, which is not to be repeated, is used up: the test ends after %d steps", step)
                break
            rate = first * (last / first) ** (step / (steps - 1))
            loss = float(train_step(session, step, micro_batches, targets, rate)[0]) / max(targets, 1)
            if not math.isfinite(loss):
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            points.append(Point(rate, loss, average / (1 - SMOOTHING ** (step + 1))))
            if diverged(points):
                break
    return conclude(points, steps_per_decade=(steps - 1) / math.log10(last / first))


def diverged(points: Sequence[Point]) -> bool:
    """Whether the smoothed loss has risen so far from its least that the test ends."""
    first, least, now = points[0].smoothed, min(point.smoothed for point in points), points[-1].smoothed
    return len(points) > WARMING_UP and now - least > max(RISEN * (first - least), RISEN_AT_LEAST * first)


def conclude(points: Sequence[Point], *, steps_per_decade: float) -> RangeTest:
    """The suggestion that follows from the points of a test.

    The steepest fall, and not a tenth of the rate at the minimum: where the loss of a language model stays near that of
    word frequencies at any higher rate, its minimum lies anywhere there.
    """
    span = max(1, round(steps_per_decade / 2))
    least = min(range(len(points)), key=lambda place: points[place].smoothed, default=0)
    if least < span:
        said = f"the loss fell at no rate from {points[0].rate:.2g} on" if points else "the first loss is no number"
        raise TrainingError(
            f"{said}: there is nothing to suggest", hint="try other rates with --from and --to, or give more --steps"
        )
    ends = range(span, least + 1)
    end = max(ends, key=lambda place: points[place - span].smoothed - points[place].smoothed)
    suggestion = math.sqrt(points[end - span].rate * points[end].rate)
    return RangeTest(tuple(points), points[least], float(f"{suggestion:.1e}"))
