"""The beginning of a run: where it is, taken from the newest checkpoint or from nothing, and what it says of itself."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hfpretrain.amounts import count, span
from hfpretrain.data.hub_sets import keep_commits
from hfpretrain.errors import CheckpointError, RecipeError, RunError
from hfpretrain.evaluation import Evaluated
from hfpretrain.files import move_files, remove, write_whole
from hfpretrain.modeling.parameters import in_words
from hfpretrain.recipe import Recipe, dump, from_mapping, load, to_mapping
from hfpretrain.recipe_stages import longest_block
from hfpretrain.run import PROGRESS, Run, State, newest_whole
from hfpretrain.training.changes import check_unchanged, compare_surroundings, surroundings
from hfpretrain.training.checkpoint import SMALL_FILES, prune, restore_checkpoint, set_aside_later, written_by_all
from hfpretrain.training.guard import Judged
from hfpretrain.training.lineage import told
from hfpretrain.training.lines import Lines, Written
from hfpretrain.training.metrics import Metrics, Window
from hfpretrain.training.micro_batch import seconds_of
from hfpretrain.training.publisher import Publisher
from hfpretrain.training.session import Session
from hfpretrain.training.trackers import open_trackers

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(kw_only=True)
class Progress:
    """How far a run is; saved with each checkpoint, beside model and optimizer."""

    step: int = 0
    tokens: int = 0
    """That were seen."""
    seconds: float = 0.0
    window: Window = field(default_factory=Window)
    steady: Window = field(default_factory=Window)
    evaluated: Evaluated | None = None
    evaluated_after: int | None = None
    """The step that this was after."""
    evaluated_all: bool = False
    """Whether it was on all that is held out, as the last one is to be."""
    evaluation_due: bool = False
    """Whether the evaluation after this step was given up for a signal, and is to be made first of all."""
    judged: Judged = field(default_factory=Judged)
    recipe: dict[str, Any] = field(default_factory=dict)
    """What it was trained with, every default written out."""
    data: str | None = None
    """The fingerprint of the data."""
    marks: dict[str, Any] = field(default_factory=dict)
    """From where streamed sources are read on."""
    bases: dict[str, Any] = field(default_factory=dict)
    """The facts of model and tokenizer that the run began with: whether they are local folders is not seen later."""
    micro_batch_size: int | None = None
    learning_rate: float | None = None
    """Its peak, which stays what it was where the recipe leaves it to be chosen."""
    surroundings: dict[str, str] = field(default_factory=dict)
    """What the last bits depend on beside recipe and data."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What was changed on the way, with the step after which it was, where that was allowed."""
    metrics: Written = field(default_factory=Written)
    """The lines of metrics up to here."""
    branch: str | None = None
    """Where this checkpoint is pushed to, if it is."""

    @staticmethod
    def read(checkpoint: Path) -> "Progress":
        """The progress that a whole checkpoint holds; CheckpointError where it is something else."""
        return Progress.of(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))

    @staticmethod
    def of(saved: dict[str, Any]) -> "Progress":
        """From what `asdict` gave; keys of another version are left out. CheckpointError where it is something else."""
        try:
            known = {each.name for each in fields(Progress)}
            values = {key: value for key, value in saved.items() if key in known}
            parts = {"window": Window, "steady": Window, "evaluated": Evaluated}
            parts |= {"judged": Judged, "metrics": Written}
            values |= {key: part(**values[key]) for key, part in parts.items() if values.get(key) is not None}
            return Progress(**values)
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"the progress that a checkpoint holds cannot be read: {error}") from error

    def trained_with(self, checkpoint: Path) -> Recipe:
        """The recipe that the checkpoint was trained with."""
        try:
            return from_mapping(self.recipe)
        except RecipeError as error:
            raise CheckpointError(f"the recipe that {checkpoint} was trained with cannot be read: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on. The first process decides it and tells the others, so that all do the same."""

    state: State
    recipe: Recipe
    """What was asked for, with the commits of data sets that the run began with."""
    checkpoint: Path | None = None
    """The newest whole one, if there is one."""
    progress: Progress = field(default_factory=Progress)
    """What it holds."""
    changes: tuple[str, ...] = ()
    """Of the recipe in what is learnt."""
    changes_allowed: bool = False


def find_start(run: Run, recipe: Recipe, held: ExitStack, *, resume: bool, allow_changes: bool) -> Start:
    """Locks the run, until `held` lets it go, and finds out where it is.

    Raises RunError where there is a run and `resume` is false, or one of another recipe, unless that is allowed;
    CheckpointError where no checkpoint is whole.
    """
    require_asked_for(run, resume=resume)
    held.enter_context(run.locked())
    state = require_asked_for(run, resume=resume)  # another process may have ended just now
    checkpoint = None if state == "finished" else newest_whole(run.checkpoints)
    if checkpoint is None:  # nothing is learnt yet, or nothing will be any more
        if run.recipe_file.exists():
            before = load(run.recipe_file)
            recipe = keep_commits(recipe, before)
            check_unchanged(before, recipe, run, allowed=allow_changes)
            if state == "finished" and before.train.duration != recipe.train.duration:
                said = "%s is finished: to train on, give its path as model.from to a run of its own"
                log.warning(said, run.path)
        return Start(state, recipe)
    progress = Progress.read(checkpoint)
    before = progress.trained_with(checkpoint)
    recipe = keep_commits(recipe, before)
    changes = check_unchanged(before, recipe, run, allowed=allow_changes)
    return Start(state, recipe, checkpoint, progress, tuple(changes), allow_changes)


def require_asked_for(run: Run, *, resume: bool) -> State:
    """The state of a run. Raises RunError where there is one, and nobody has said that it is to go on."""
    state = run.state
    if state != "empty" and not resume:
        if not run.recipe_file.exists():
            raise RunError(f"{run.path} holds files of something else", hint="choose another output_dir")
        raise RunError(
            f"{run.path} is not empty: a run is there already",
            hint="go on with it by --resume, or choose another output_dir",
        )
    return state


def told_to_all(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What the first process decides; or all raise its error, so that none waits for the others.

    Were each to look for itself, a file that cannot be read on one of their machines would part them.
    """
    decided: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            decided[0] = decide()
        except Exception as error:
            decided[1] = error
    result, failure = broadcast_object_list(decided)
    if failure is not None:
        raise failure
    told: T = result
    return told


def begin(session: Session, start: Start) -> Progress:
    """Goes back to the checkpoint, if there is one, and writes down the recipe. Returns how far the run is.

    Raises RunError where the data is not what the run was started with, unless that is allowed.
    """
    recipe, run, accelerator = session.recipe, session.run, session.accelerator
    checkpoint, progress, changes = start.checkpoint, start.progress, [*start.changes]
    if checkpoint is not None:
        require_time_left(session, progress, before=progress.trained_with(checkpoint))
        restore_checkpoint(checkpoint, accelerator, session.model, session.average)
        set_aside_later(checkpoint, accelerator)
        log.info("going on from %s", checkpoint)
    if progress.data not in (None, session.batches.fingerprint):
        what = f"the data is not what {run.path} was started with"
        if not start.changes_allowed:
            hint = "bring the old data back, choose another output_dir for a new run, or go on with --allow-changes"
            raise RunError(what, hint=hint)
        log.warning("%s; another order of other blocks follows from here on", what)
        changes.append("the data")
    if changes:
        progress.changes.append({"after_step": progress.step, "changed": changes})
    keep_learning_rate(session, progress)
    progress.recipe = to_mapping(recipe)
    now = surroundings(accelerator.num_processes, session.facts["device"])
    if checkpoint is not None:
        compare_surroundings(progress.surroundings, now)
    progress.surroundings = now
    session.batches.remember(progress.marks)
    session.facts |= {"changes": progress.changes, **progress.bases}
    progress.bases = {key: session.facts[key] for key in ("base_model", "base_tokenizer", "lineage")}
    session.judged = progress.judged
    session.guard.remember(progress.judged.recent)
    own = session.batches.sizes.last // session.place.of
    if recipe.train.micro_batch_size == "auto" and progress.micro_batch_size and own % progress.micro_batch_size == 0:
        session.micro_batch_size = progress.micro_batch_size  # dropout depends on it
    if session.plan.done(progress.step, progress.seconds) >= 1:
        evaluate_as_last(session, progress)
    if checkpoint is None and session.facts["lineage"]:
        with_state = ", with its optimizer's state" if recipe.optimizer.from_checkpoint else ""
        log.info("starting from %s%s", told(session.facts["lineage"]), with_state)
    if checkpoint is None and start.state == "started":
        log.info("%s has no checkpoint: it starts from the beginning", run.path)
    with written_by_all(accelerator, str(run.path), run.partial, SMALL_FILES):
        if accelerator.is_main_process:
            prune(run.checkpoints, recipe.checkpoints.keep)  # a kill may have come between saving one and this
            run.manifest_file.unlink(missing_ok=True)  # of an earlier end: it vouches for no file from now on
            remove(run.partial)
            session.tokenizer.save_pretrained(run.partial)
            move_files(run.partial, run.path)
            write_whole(run.recipe_file, dump(recipe))
    announce(session, progress.step)
    return progress


def keep_learning_rate(session: Session, progress: Progress) -> None:
    """A rate that is to be chosen stays what it was, though the run may be longer now and another would be chosen."""
    before = progress.learning_rate
    if before is None:  # begun with a version that chose none
        before = progress.recipe.get("optimizer", {}).get("lr")
    if session.recipe.optimizer.lr == "auto" and before is not None:
        if before != session.learning_rate:
            log.info("the learning rate stays %g, as the run began with it", before)
        session.learning_rate = session.facts["learning_rate"] = before
    progress.learning_rate = session.learning_rate


def require_time_left(session: Session, progress: Progress, *, before: Recipe) -> None:
    """Raises RunError where the run is beyond its end, since train.duration is less than before."""
    plan, duration = session.plan, session.recipe.train.duration
    beyond = plan.steps is not None and progress.step > plan.steps
    if plan.seconds is not None and duration != before.train.duration:  # its last step ends a little later
        beyond = beyond or progress.seconds > plan.seconds
    if beyond:
        done = f"{progress.step} steps in {span(progress.seconds)}"
        raise RunError(
            f"train.duration: {session.run.path} has trained {done} already, more than {duration}",
            hint=f"train.duration={progress.step} ends it where it is",
        )


def evaluate_as_last(session: Session, progress: Progress) -> None:
    """Has a run that is at its end evaluated, unless that was done: train.duration may be another than before."""
    evaluated = progress.evaluated_after == progress.step
    if not session.evaluator.looks or (evaluated and progress.evaluated_all):
        return
    if evaluated:
        progress.metrics.take_back()
    progress.evaluation_due = True


def open_metrics(session: Session, at: Progress) -> Metrics:
    """The run's metrics, as they were at that step, and the trackers that are told of them."""
    lines = trackers = None
    if session.accelerator.is_main_process:
        run, due = session.run, at.evaluation_due
        lines = Lines(run.metrics_file, at.metrics, upto_step=at.step)
        trackers = open_trackers(run, session.recipe, session.facts, at.step, evaluation_due=due)
    return Metrics(session.phases, at.window, at.steady, lines, trackers)


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
        "%s: %s with %s parameters on %s, %s%s",
        recipe.name,
        facts["architecture"],
        count(facts["parameters"]),
        facts["device"],
        facts["precision"],
        f", {facts['processes']} processes, {facts['parallel']}" if facts["parallel"] else "",
    )
    log.info("model: %s, %s", sizes_in_words(facts), rate_in_words(session))
    log.info(
        "data: %s, %s held out; blocks of %d, packing %s",
        "streamed" if facts["training_tokens"] is None else f"{count(facts['training_tokens'])} training tokens",
        count(facts["validation_tokens"]),
        recipe.data.block_size,
        facts["packing"],
    )
    for line in session.batches.mixing:
        log.info("%s", line)
    if plan.steps is not None:
        log.info("budget: %s", budget_in_words(session))
    if plan.steps is None:
        assert plan.seconds is not None
        log.info("plan: %s of steps of %s tokens", span(plan.seconds), tokens_per_step(session))
        return
    largest = session.batches.sizes.last * longest_block(recipe.data)[1]
    left = (plan.tokens(plan.steps) - plan.tokens(step)) / largest * seconds_per_step(session)
    log.info(
        "plan: %d steps of %s tokens%s, about %s without evaluations",
        plan.steps,
        tokens_per_step(session),
        "" if facts["training_tokens"] is None else f" ({plan.epochs(plan.steps):.2f} epochs)",
        span(max(0.0, left)),
    )


def tokens_per_step(session: Session) -> str:
    """Of the first step, in words; and, where batches grow, of the largest."""
    sizes, first, steps = session.batches.sizes, session.plan.tokens(1), session.plan.steps
    largest = sizes.last if steps is None else sizes.of(steps - 1)
    if largest == sizes.first:
        return count(first)
    return f"{count(first)} to {count(first // sizes.first * largest)}"


def sizes_in_words(facts: Mapping[str, Any]) -> str:
    """The sizes of the model, and how much of it is in the layers."""
    shape, layers = in_words(facts["shape"]), facts["parameters_without_embeddings"]
    return f"{shape}{', ' if shape else ''}{count(layers)} parameters without embeddings"


def rate_in_words(session: Session) -> str:
    """The learning rate, and whether it was chosen."""
    return f"learning rate {session.learning_rate:g}" + (" (auto)" if session.recipe.optimizer.lr == "auto" else "")


def budget_in_words(session: Session) -> str:
    """What a run of a known number of steps comes to, in tokens, tokens per parameter and counted operations."""
    assert session.plan.steps is not None
    tokens, facts = session.plan.tokens(session.plan.steps), session.facts
    each = f"{tokens / facts['parameters']:.3g} per parameter"
    return f"{count(tokens)} tokens, {each}, {facts['flops_per_token'] * tokens:.3g} FLOPs"


def seconds_per_step(session: Session) -> float:
    """About how long a step of the largest blocks takes: forward and backward, without the optimizer."""
    own = session.batches.sizes.last // session.place.of
    return seconds_of(session, session.micro_batch_size) * -(-own // session.micro_batch_size)
