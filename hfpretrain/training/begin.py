"""The beginning of a run: where it is, taken from the newest checkpoint or from nothing, and what it says of itself."""

import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hfpretrain.amounts import count, span
from hfpretrain.errors import CheckpointError, RunError
from hfpretrain.evaluation import Evaluated
from hfpretrain.files import write_whole
from hfpretrain.recipe import dump
from hfpretrain.run import newest_whole
from hfpretrain.training.checkpoint import restore_checkpoint, set_aside_later
from hfpretrain.training.metrics import Window
from hfpretrain.training.micro_batch import seconds_of
from hfpretrain.training.publisher import Publisher
from hfpretrain.training.session import Session

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """How far a run is; saved with each checkpoint, beside model and optimizer."""

    step: int = 0
    seconds: float = 0.0
    window: Window = field(default_factory=Window)
    steady: Window = field(default_factory=Window)
    evaluated: Evaluated | None = None
    data: str | None = None
    """The fingerprint of the data."""
    micro_batch_size: int | None = None
    branch: str | None = None
    """Where this checkpoint is pushed to, if it is."""

    @staticmethod
    def of(saved: dict[str, Any]) -> "Progress":
        """From what `asdict` gave; keys of another version are left out. CheckpointError where it is something else."""
        try:
            known = {each.name for each in fields(Progress)}
            values = {key: value for key, value in saved.items() if key in known}
            values |= {key: Window(**values[key]) for key in ("window", "steady") if key in values}
            if values.get("evaluated"):
                values["evaluated"] = Evaluated(**values["evaluated"])
            return Progress(**values)
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"the progress that a checkpoint holds cannot be read: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def begin(session: Session) -> tuple[Progress, Path | None]:
    """Goes back to the newest whole checkpoint, if there is one, and makes the run directory.

    Returns the progress and the checkpoint. Raises RunError where the data is not what the run was started with.
    """
    recipe, run, accelerator = session.recipe, session.run, session.accelerator
    progress = Progress()
    checkpoint = newest_whole(run.checkpoints)
    if checkpoint is not None:
        progress = Progress.of(restore_checkpoint(checkpoint, accelerator, session.model))
        set_aside_later(checkpoint, accelerator)
        log.info("going on from %s", checkpoint)
    if progress.data not in (None, session.batches.fingerprint):
        raise RunError(
            f"the data is not what {run.path} was started with",
            hint="bring the old data back, or choose another output_dir for a new run",
        )
    own = recipe.train.batch_size // int(accelerator.num_processes)
    if recipe.train.micro_batch_size == "auto" and progress.micro_batch_size and own % progress.micro_batch_size == 0:
        session.micro_batch_size = progress.micro_batch_size  # dropout depends on it
    if accelerator.is_main_process:
        run.create()
        session.tokenizer.save_pretrained(run.path)
        write_whole(run.recipe_file, dump(recipe))
    announce(session, progress.step)
    return progress, checkpoint


def begin_pushing(session: Session, progress: Progress, checkpoint: Path | None) -> Publisher | None:
    """What pushes the run to the Hub, on the first process and where the recipe says so."""
    settings = session.recipe.hub
    if settings.repo_id is None or not session.accelerator.is_main_process:
        return None
    publisher = Publisher(session.run, settings)
    if checkpoint and progress.branch and settings.push == "checkpoints":
        publisher.offer(checkpoint, progress.branch)  # it may have been killed before it was put aside
    publisher.start()
    return publisher


def announce(session: Session, step: int) -> None:
    """A short summary before training: the model, the data, the plan and about how long it will take."""
    facts, plan, recipe = session.facts, session.plan, session.recipe
    log.info(
        "%s: %s with %s parameters on %s, %s",
        recipe.name,
        facts["architecture"],
        count(facts["parameters"]),
        facts["device"],
        facts["precision"],
    )
    log.info(
        "data: %s training tokens, %s held out; blocks of %d, packing %s",
        count(facts["training_tokens"]),
        count(facts["validation_tokens"]),
        recipe.data.block_size,
        facts["packing"],
    )
    if plan.steps is None:
        assert plan.seconds is not None
        log.info("plan: %s of steps of %s tokens", span(plan.seconds), count(plan.tokens_per_step))
        return
    left = (plan.steps - step) * seconds_per_step(session) if step < plan.steps else 0.0
    log.info(
        "plan: %d steps of %s tokens (%.2f epochs), about %s without evaluations",
        plan.steps,
        count(plan.tokens_per_step),
        plan.steps / plan.steps_per_epoch,
        span(left),
    )


def seconds_per_step(session: Session) -> float:
    """About how long a step takes: forward and backward of its micro-batches, without the optimizer."""
    own = session.batches.batch_size // int(session.accelerator.num_processes)
    return seconds_of(session, session.micro_batch_size) * -(-own // session.micro_batch_size)
