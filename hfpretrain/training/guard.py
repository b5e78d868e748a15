"""What keeps a step that goes wrong away from the weights: a loss or gradient that is no number, and a loss spike.

The judgement is made on the device, between the backward pass and the update, so that no step waits for it. What came
of it is heard of when metrics are gathered.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfpretrain.data.order import derived
from hfpretrain.errors import RecipeError, TrainingError
from hfpretrain.recipe import Train

if TYPE_CHECKING:
    from hfpretrain.training.metrics import Metrics, Window
    from hfpretrain.training.session import Session

log = logging.getLogger(__name__)

SPIKE_DEVIATIONS, SPIKE_STEPS = 6.0, 128
"""A loss that is so many standard deviations above the mean of so many steps before it is a spike."""
SPIKE_SHARE = 0.03
"""And at least so much of the mean above it: where losses are all but equal, any change is many deviations."""
NONFINITE_IN_A_ROW = 3
"""So many such steps are passed over where the recipe says so; one more in a row ends the run."""
OVERFLOWS_IN_A_ROW = 30
"""So many steps fp16's loss scale may leave out. Halved by each, 65536 at first, it is below all that helps by then."""
NAMED_DOCUMENTS = 5


@dataclass
class Judged:
    """What has been seen so far; saved with a checkpoint, so that a resumed run judges alike."""

    nonfinite: int = 0
    """Steps passed over, since their loss or gradient was no number."""
    in_a_row: int = 0
    overflows: int = 0
    """Steps left out by fp16's loss scale."""
    overflows_in_a_row: int = 0
    spikes: int = 0
    recent: list[float] = field(default_factory=list)
    """The mean losses of the last steps, at most SPIKE_STEPS."""


@dataclass(frozen=True)
class Step:
    """What one step came to, over all processes."""

    number: int
    loss: float
    """Summed over targets."""
    targets: int
    norm: float
    """Of the gradient, before clipping."""
    nonfinite: bool
    spike: bool
    overflow: bool
    """The gradient is infinite as fp16's loss scale was too large for it, which leaves the step out and is halved."""


class Guard:
    """Judges steps before their update."""

    def __init__(self, settings: Train, device: torch.device, *, scaled: bool) -> None:
        if scaled and settings.skip_spikes:
            raise RecipeError(
                "train.skip_spikes: does not go with fp16's loss scaling", hint="set train.precision: bf16"
            )
        self.settings = settings
        self.scaled = scaled
        """With fp16 a gradient may be infinite: such a step is left out by its scaler, and scaled otherwise."""
        self.recent = torch.full((SPIKE_STEPS,), math.nan, device=device)

    def remember(self, losses: Sequence[float]) -> None:
        """Takes the last losses of a run that goes on."""
        if losses:
            self.recent[-len(losses) :] = torch.tensor(losses)

    def judge(self, mean_loss: Tensor, norm: Tensor) -> Tensor:
        """Whether a step is no number, a spike, and to be left out: float32 [3] on the device.

        `mean_loss` [] is that of all processes, `norm` [] that of their common gradient.
        """
        finite = mean_loss.isfinite() if self.scaled else mean_loss.isfinite() & norm.isfinite()
        # Not a number, hence no spike, until there are enough.
        mean, deviation = self.recent.mean(), self.recent.std(correction=0)
        spike = mean_loss - mean > torch.maximum(SPIKE_DEVIATIONS * deviation, SPIKE_SHARE * mean)
        # A spike counts as well: where losses stay high, that is what they are now.
        self.recent = torch.where(mean_loss.isfinite(), torch.cat([self.recent[1:], mean_loss[None]]), self.recent)
        left_out = (~finite | spike) if self.settings.skip_spikes else ~finite
        return torch.stack([~finite, spike & finite, left_out]).float()

    def recent_losses(self) -> list[float]:
        """The last losses, the newest last. Waits for the device."""
        return [loss for loss in self.recent.tolist() if not math.isnan(loss)]


def leave_out(optimizers: Iterable[Any], left_out: Tensor) -> None:
    """Has the next step of the optimizers change nothing where `left_out` [] is 1, without looking at it here.

    By the attribute by which a gradient scaler tells the fused optimizers of infinite gradients.
    """
    for optimizer in optimizers:
        getattr(optimizer, "optimizer", optimizer).found_inf = left_out


def gathered(session: "Session", metrics: "Metrics") -> "Window":
    """What the steps since the last logged one came to; TrainingError if one was no number and that is not allowed."""
    window = metrics.gather()
    steps, metrics.unheard = metrics.unheard, []
    heed(session, steps)
    return window


def heed(session: "Session", steps: Sequence[Step]) -> None:
    """Says what the guard has seen in these steps; raises TrainingError where training is not to go on."""
    judged = session.judged
    for step in steps:
        judged.in_a_row = judged.in_a_row + 1 if step.nonfinite else 0
        judged.nonfinite += step.nonfinite
        judged.spikes += step.spike
        if step.spike:
            done = "its update is left out" if session.recipe.train.skip_spikes else "training goes on"
            log.warning("step %d: the loss jumped to %.4f; %s", step.number, step.loss / max(step.targets, 1), done)
        heed_overflow(session, step)
        if not step.nonfinite:
            continue
        what = "loss" if not math.isfinite(step.loss) else "gradient"
        problem = f"step {step.number}: the {what} is not a finite number"
        stops = session.recipe.train.on_nonfinite == "stop"
        if stops or judged.in_a_row > NONFINITE_IN_A_ROW:
            row = "" if stops else f", and so were those of the {NONFINITE_IN_A_ROW} steps before"
            raise TrainingError(
                f"{problem}{row}; the weights were not changed by it, and checkpoints are intact"
                f"{documents_of(session, step.number)}",
                hint="look at those documents; --resume with train.on_nonfinite=skip passes over such steps, and a new "
                "run with a lower optimizer.lr or a longer schedule.warmup may not come to them",
            )
        log.warning("%s: passed over, %d in a row%s", problem, judged.in_a_row, documents_of(session, step.number))


def heed_overflow(session: "Session", step: Step) -> None:
    """Says it once; raises TrainingError where no loss scale helps, so that no update would ever be made."""
    judged = session.judged
    judged.overflows_in_a_row = judged.overflows_in_a_row + 1 if step.overflow else 0
    judged.overflows += step.overflow
    if judged.overflows_in_a_row > OVERFLOWS_IN_A_ROW:
        raise TrainingError(
            f"step {step.number}: the gradient is not a finite number in fp16, whatever the loss scale, and so were "
            f"those of the {OVERFLOWS_IN_A_ROW} steps before; the weights were not changed by them",
            hint="start a new run with train.precision: bf16, or fp32",
        )
    if step.overflow and judged.overflows == 1:
        log.info(
            "step %d: the gradient is too large for fp16: its update is left out and the loss scale halved; more such "
            "steps are counted in metrics.jsonl",
            step.number,
        )


def documents_of(session: "Session", step: int) -> str:
    """The documents of the blocks that give such a loss by themselves, or of the whole step, named for a person.

    `step` counts from 1, as everything that is shown does.
    """
    rows = range(session.batches.sizes.of(step - 1))
    guilty = [place for place in rows if not _finite(session, step - 1, place)] or list(rows)
    found = {each: None for place in guilty for each in session.batches.documents(step - 1, place)}
    named = [
        f"{session.batches.source_keys[source]} document {number + 1} ({_beginning(session, source, number)!r})"
        for source, number in list(found)[:NAMED_DOCUMENTS]
    ]
    more = f", and {len(found) - len(named)} more" if len(found) > len(named) else ""
    return f"; documents of that step: {', '.join(named)}{more}" if named else ""


@torch.no_grad()
def _finite(session: "Session", step: int, place: int) -> bool:
    """Whether one block alone has a finite loss."""
    accelerator = session.accelerator
    batch = session.collator(session.batches.rows(step, range(place, place + 1)))
    batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
    torch.manual_seed(derived(session.recipe.seed, "dropout", step, place, 0))
    with session.passes, accelerator.autocast():
        loss = session.loss(accelerator.unwrap_model(session.model, keep_torch_compile=False), batch)
    return math.isfinite(loss.item())


def _beginning(session: "Session", source: int, number: int) -> str:
    """How a document begins."""
    tokens = session.batches.beginning(source, number, 24)
    text = " ".join(session.tokenizer.decode(tokens.tolist(), skip_special_tokens=True).split())
    return text if len(text) <= 60 else text[:57] + "..."
