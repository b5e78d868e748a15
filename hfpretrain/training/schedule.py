"""How far a run is, what is due, and the learning rate that goes with it."""

import logging
import math
from dataclasses import dataclass

from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Amount, Recipe, Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The amounts of a recipe as steps or seconds of this run. Exactly one of `steps` and `seconds` is set."""

    steps: int | None
    seconds: float | None
    tokens_per_step: int
    steps_per_epoch: float
    words_per_step: float

    @staticmethod
    def of(recipe: Recipe, blocks_per_epoch: int, words_per_token: float) -> "Plan":
        """Raises RecipeError where two amounts cannot be compared, e.g. a decay in steps of a run in minutes."""
        tokens_per_step = recipe.train.batch_size * recipe.data.block_size
        steps_per_epoch = blocks_per_epoch / recipe.train.batch_size
        rates = (tokens_per_step, steps_per_epoch, tokens_per_step * words_per_token)
        duration = recipe.train.duration
        if duration.unit == "seconds":
            plan = Plan(None, duration.value, *rates)
        else:
            steps = Plan(None, None, *rates).in_steps(duration)
            assert steps is not None
            plan = Plan(max(1, math.ceil(steps - 1e-9)), None, *rates)
        if plan.share(recipe.schedule.warmup, "schedule.warmup") >= 1:
            log.warning("schedule.warmup: %s is the whole run or more", recipe.schedule.warmup)
        if recipe.schedule.name == "wsd":
            plan.share(recipe.schedule.decay, "schedule.decay")
        return plan

    def in_steps(self, amount: Amount) -> float | None:
        """An amount as a number of steps, or None if it is one of seconds."""
        match amount.unit:
            case "steps":
                return amount.value
            case "tokens":
                return amount.value / self.tokens_per_step
            case "words":
                return amount.value / self.words_per_step
            case "epochs":
                return amount.value * self.steps_per_epoch
            case "percent":
                return None if self.steps is None else amount.value / 100 * self.steps
            case _:
                return None

    def in_seconds(self, amount: Amount) -> float | None:
        """An amount as seconds, or None if it is one of steps."""
        if amount.unit == "percent":
            return None if self.seconds is None else amount.value / 100 * self.seconds
        return amount.value if amount.unit == "seconds" else None

    def share(self, amount: Amount, key: str) -> float:
        """An amount as a fraction of the run, at most 1."""
        mine, whole = (
            (self.in_seconds(amount), self.seconds) if self.steps is None else (self.in_steps(amount), self.steps)
        )
        if mine is None or whole is None:
            raise RecipeError(
                f"{key}: {amount} cannot be compared with a train.duration in {'steps' if self.steps else 'minutes'}",
                hint=f"give {key} in percent of the run, e.g. 10%",
            )
        return min(1.0, mine / whole)

    def done(self, step: int, seconds: float) -> float:
        """The fraction of the run that lies behind after `step` steps and `seconds`."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)

    def due(self, every: Amount, step: int, seconds: float, seconds_before: float) -> bool:
        """Whether something that happens `every` so often happens after this step."""
        steps = self.in_steps(every)
        if steps is not None:
            return passed(step, steps) > passed(step - 1, steps)
        period = self.in_seconds(every)
        assert period is not None
        return int(seconds / period) > int(seconds_before / period)


def passed(amount: float, every: float) -> int:
    """How many times `every` has gone by after `amount`; an `every` that was divided may be off by rounding."""
    return int(amount / every + 1e-9)


def learning_rate_factor(schedule: Schedule, plan: Plan, step: int, seconds: float) -> float:
    """The share of the peak learning rate for the step after `step` steps.

    wsd: warm-up, stable, decay with 1 - sqrt (Hägele et al. 2024). cosine and linear: down from the end of the
    warm-up to the end of the run. The step itself counts in the warm-up, so that none is made with a rate of zero.
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
            decay = plan.share(schedule.decay, "schedule.decay")
            into = (done - (1 - decay)) / decay if decay else 0.0
            factor = 1 - math.sqrt(max(0.0, into))
        case "cosine":
            factor = (1 + math.cos(math.pi * falling)) / 2
        case "linear":
            factor = 1 - falling
        case "constant":
            return 1.0
    return schedule.final + (1 - schedule.final) * factor
