"""How far a run is, what is due, and the learning rate that goes with it."""

import logging
import math
from dataclasses import dataclass
from fractions import Fraction

from hfpretrain.data.mixing import Order, exact
from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Amount, Recipe, Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The amounts of a recipe as steps or seconds of this run. Exactly one of `steps` and `seconds` is set."""

    steps: int | None
    seconds: float | None
    order: Order
    """What a step comes to in tokens, words and epochs, which may change from stage to stage."""

    @staticmethod
    def of(recipe: Recipe, order: Order) -> "Plan":
        """Raises RecipeError where two amounts cannot be compared, e.g. a decay in steps of a run in minutes."""
        duration = recipe.train.duration
        plan = Plan(order.steps, duration.value if duration.unit == "seconds" else None, order)
        sizes = order.batches
        if order.steps is not None and sizes.last > sizes.first and sizes.over > order.steps:
            said = "train.batch_size: it grows over %d steps, and the run has %d, so that it comes to %d and not to %d"
            log.warning(said, sizes.over, order.steps, sizes.of(order.steps - 1), sizes.last)
        if plan.share(recipe.schedule.warmup, "schedule.warmup") >= 1:
            log.warning("schedule.warmup: %s is the whole run or more", recipe.schedule.warmup)
        if recipe.schedule.name == "wsd":
            plan.share(recipe.schedule.decay, "schedule.decay", at_end=True)
        return plan

    def tokens(self, step: int) -> int:
        """Tokens of so many steps."""
        return int(self.order.total("tokens", step))

    def words(self, step: int) -> Fraction:
        """Words of so many steps, by the words that go with a token of each source on average."""
        return self.order.total("words", step)

    def epochs(self, step: int) -> float:
        """Epochs of so many steps: how many times as many blocks were seen as the sources have."""
        return float(self.order.total("epochs", step))

    def in_seconds(self, amount: Amount) -> float | None:
        """An amount as seconds, or None if it is one of steps."""
        if amount.unit == "percent":
            return None if self.seconds is None else amount.value / 100 * self.seconds
        return amount.value if amount.unit == "seconds" else None

    def share(self, amount: Amount, key: str, *, at_end: bool = False) -> float:
        """An amount as a fraction of the run, at most 1: of its beginning, or of its end."""
        if amount.unit == "percent":
            return min(1.0, amount.value / 100)
        if self.steps is None and amount.unit == "seconds":
            assert self.seconds is not None
            return min(1.0, amount.value / self.seconds)
        if self.steps is None or amount.unit == "seconds":
            raise RecipeError(
                f"{key}: {amount} cannot be compared with a train.duration in {'steps' if self.steps else 'minutes'}",
                hint=f"give {key} in percent of the run, e.g. 10%",
            )
        value, whole = exact(amount), self.order.total(amount.unit, self.steps)
        if value >= whole:
            return 1.0
        if at_end:
            return float(1 - self.order.steps_for(amount.unit, whole - value) / self.steps)
        return float(self.order.steps_for(amount.unit, value) / self.steps)

    def done(self, step: int, seconds: float) -> float:
        """The fraction of the run that lies behind after `step` steps and `seconds`."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)

    def passed(self, every: Amount, step: int) -> int | None:
        """How many times `every` has gone by after so many steps; None if it is a time."""
        if every.unit == "percent":
            return None if self.steps is None else int(step * 100 // (exact(every) * self.steps))
        return None if every.unit == "seconds" else int(self.order.total(every.unit, step) // exact(every))

    def due(self, every: Amount, step: int, seconds: float, seconds_before: float) -> bool:
        """Whether something that happens `every` so often happens after this step."""
        now, before = self.passed(every, step), self.passed(every, step - 1)
        if now is not None and before is not None:
            return now > before
        period = self.in_seconds(every)
        assert period is not None
        return int(seconds / period) > int(seconds_before / period)


def learning_rate_factor(schedule: Schedule, plan: Plan, step: int, seconds: float) -> float:
    """The share of the peak learning rate for the step after `step` steps.

    wsd: warm-up, stable, decay with 1 - sqrt (Hägele et al. 2024) or in a straight line. cosine and linear:
    down from the end of the warm-up to the end of the run. The step itself counts in the warm-up, so that none is made
    with a rate of zero.
    """
    done = plan.done(step, seconds)
    warmup = plan.share(schedule.warmup, "schedule.warmup")
    after = plan.done(step + 1, seconds)
    if after < warmup:
        return after / warmup
    falling = (done - warmup) / (1 - warmup) if warmup < 1 else 1.0
    falling = max(0.0, falling)
    match schedule.name:
        case "wsd":
            decay = plan.share(schedule.decay, "schedule.decay", at_end=True)
            into = (done - (1 - decay)) / decay if decay else 0.0
            into = max(0.0, into)
            factor = 1 - (math.sqrt(into) if schedule.shape == "sqrt" else into)
        case "cosine":
            factor = (1 + math.cos(math.pi * falling)) / 2
        case "linear":
            factor = 1 - falling
        case "constant":
            return 1.0
    return schedule.final + (1 - schedule.final) * factor
