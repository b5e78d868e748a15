"""The training loop: from a recipe to a finished run."""

import gc
import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hfpretrain.data.hub_sets import at_commits
from hfpretrain.data.mixing import exact
from hfpretrain.data.order import derived
from hfpretrain.data.row_stream import Interrupted
from hfpretrain.errors import RunError, Stopped
from hfpretrain.failures import restarted
from hfpretrain.modeling.objective import IGNORED, MicroBatch
from hfpretrain.recipe import Recipe
from hfpretrain.run import Run
from hfpretrain.training.begin import Progress, begin, begin_pushing, find_start, open_metrics, told_to_all
from hfpretrain.training.checkpoint import save_checkpoint, saved_bytes
from hfpretrain.training.console import Display
from hfpretrain.training.evaluating import evaluate_now
from hfpretrain.training.finish import complete, finish
from hfpretrain.training.guard import gathered, leave_out
from hfpretrain.training.launched import as_launched
from hfpretrain.training.metrics import Metrics
from hfpretrain.training.optimizer import set_learning_rate
from hfpretrain.training.publisher import Publisher
from hfpretrain.training.reporting import refresh_page
from hfpretrain.training.schedule import Plan, learning_rate_factor
from hfpretrain.training.session import Session, open_accelerator, prepare_session, utilisation
from hfpretrain.training.sharding import backward, clip_gradients, gradients_kept
from hfpretrain.training.signals import SAVED, StopNow, StopRequest, stop_on_signals
from hfpretrain.training.together import at_leisure, meeting_others, together, wait_less
from hfpretrain.training.trackers import check_trackers

log = logging.getLogger(__name__)

HEEDS_SIGNALS_EVERY = 0.5
"""Seconds, while data is waited for."""
WAITS_AFTER_SIGNAL = 5.0
"""Seconds, for data that is being read."""
WAITS_FOR_DATA = 0.1
"""The share of the time from which on waiting for data is said."""


def train(recipe: Recipe, *, resume: bool = False, allow_changes: bool = False, stop_after: int | None = None) -> Run:
    """Trains what the recipe says and returns the finished run.

    With `resume`, or in processes that a launcher has started anew, a run that was stopped goes on where it was, and a
    finished one is returned as it is; with `allow_changes` even where the recipe or the data changed in what is learnt.
    After the step `stop_after` the run is saved and stopped. Raises RunError where the run directory is not empty and
    `resume` is false, Stopped after a signal, after train.max_time and after that step, LostProcess where another
    process of the run has failed.
    """
    recipe = as_launched(recipe)
    run, limit = Run(Path(recipe.output_dir)), recipe.train.max_time
    with meeting_others():
        accelerator = open_accelerator(recipe)
    try:
        with (
            stop_on_signals(after_step=stop_after, seconds=limit.value if limit else None) as request,
            ExitStack() as held,
            together(accelerator, request),
        ):
            resume = bool(agreed(accelerator, resume or restarted()))
            told_to_all(accelerator, lambda: check_trackers(recipe.trackers))
            start = told_to_all(
                accelerator, lambda: find_start(run, recipe, held, resume=resume, allow_changes=allow_changes)
            )
            if start.state == "finished":
                publisher = None
                if accelerator.is_main_process:
                    complete(run)
                    publisher = unfinished_pushes(recipe, run)
                log.info("%s is finished%s", run.path, "" if publisher else "; nothing to do")
            else:
                recipe = told_to_all(accelerator, lambda: at_commits(start.recipe))
                session = prepare_session(recipe, run, accelerator, start.checkpoint)
                at = begin(session, start)
                publisher = run_loop(session, at, start.checkpoint, request)
    except StopNow as stop:
        raise Stopped(str(stop), signal=stop.signal) from None
    finally:
        # The wrapped model has to go before the process group, and both before the process ends: gloo hangs or
        # aborts otherwise.
        accelerator.free_memory()
        accelerator.end_training()
    if publisher:  # no other process waits for this
        push_the_rest(publisher, run, request)
    return run


def push_the_rest(publisher: Publisher, run: Run, request: StopRequest) -> None:
    """Pushes what is left of a finished run; Stopped after a signal, which is not waited for."""
    try:
        if request.signal:
            raise StopNow(request.signal, SAVED)
        publisher.finish()
    except StopNow as stop:
        publisher.abandon()
        hint = "the same command with --resume pushes it"
        raise Stopped(f"{run.path} is finished, and not pushed yet", signal=stop.signal, hint=hint) from None


def unfinished_pushes(recipe: Recipe, run: Run) -> Publisher | None:
    """What pushes the rest of a finished run that the Hub, or a signal, did not let be pushed."""
    if recipe.hub.repo_id is None or not run.unpushed.is_dir():
        return None
    publisher = Publisher(run, recipe.hub)
    publisher.start()
    return publisher


def run_loop(session: Session, at: Progress, checkpoint: Path | None, request: StopRequest) -> Publisher | None:
    """Trains from where the run is to the end of the plan, and saves the model.

    Returns what pushes it to the Hub, on the first process and where the recipe says so.
    """
    recipe, plan, accelerator = session.recipe, session.plan, session.accelerator
    publisher = begin_pushing(session, at, checkpoint)
    metrics = open_metrics(session, at)
    refresh_page(session, at, begins=True)
    origin = time.monotonic() - at.seconds
    done = plan.done(at.step, at.seconds)
    request.training_begins()
    wait_less(accelerator)
    freezes = gc.get_freeze_count() == 0  # what others have frozen stays so
    if freezes:
        # Imports leave hundreds of thousands of objects; looking through them for garbage takes 0.2 s each time.
        gc.collect(1)
        gc.freeze()
    try:
        with Display(enabled=accelerator.is_main_process, done=done, steps=plan.steps) as display:
            if at.evaluation_due:
                evaluate_now(session, metrics, display, at, request, everything=done >= 1)
                if stopped_by := int(agreed(accelerator, request.asked(at.step))):
                    raise stopped(at.step, stopped_by)
            for micro_batches, targets in upcoming(session, at.step, request):
                if done >= 1:
                    break
                rate = session.learning_rate * learning_rate_factor(recipe.schedule, plan, at.step, at.seconds)
                outcome = train_step(session, at.step, micro_batches, targets, rate)
                metrics.add(at.step + 1, targets, outcome)
                before, at.seconds = at.seconds, agreed(accelerator, time.monotonic() - origin)
                at.step += 1
                done = plan.done(at.step, at.seconds)
                if at.step % recipe.train.log_every == 0 or done >= 1:
                    log_window(session, metrics, display, step=at.step, done=done, rate=rate)
                if session.evaluator.looks and (
                    done >= 1 or plan.due(recipe.evaluation.every, at.step, at.seconds, before)
                ):
                    evaluate_now(session, metrics, display, at, request, everything=done >= 1)
                stopped_by = int(agreed(accelerator, request.asked(at.step)))
                due = done >= 1 or plan.due(recipe.checkpoints.every, at.step, at.seconds, before)
                if stopped_by or due:
                    pushed = due and recipe.hub.push == "checkpoints"
                    at.branch = branch_name(recipe, plan, at.step) if pushed else None
                    save_now(session, metrics, publisher, at)
                if stopped_by:
                    raise stopped(at.step, stopped_by)
            else:  # there is no data just now
                assert request.signal is not None
                if at.step and not (session.run.checkpoints / f"step-{at.step:08d}").exists():
                    save_now(session, metrics, publisher, at)
                raise stopped(at.step, request.signal)
        judged = session.judged
        session.facts |= {"nonfinite_steps": judged.nonfinite, "loss_spikes": judged.spikes}
        session.facts |= {"overflow_steps": judged.overflows}
        with at_leisure(accelerator):
            finish(session, metrics, at.step, at.seconds, at.evaluated)
    except BaseException:
        if publisher:
            publisher.abandon()
        raise
    finally:
        if freezes:
            gc.unfreeze()
        metrics.finish()
    return publisher


def save_now(session: Session, metrics: Metrics, publisher: Publisher | None, at: Progress) -> None:
    """Saves a checkpoint, and has it pushed where the recipe says so."""
    at.window, at.steady = gathered(session, metrics), metrics.steady
    at.judged.recent = session.guard.recent_losses()
    at.data, at.micro_batch_size = session.batches.fingerprint, session.micro_batch_size
    at.marks, at.tokens = session.batches.marks(at.step), session.plan.tokens(at.step)
    at.metrics = metrics.save()  # before the checkpoint: after a power loss no line up to it is missing
    with at_leisure(session.accelerator):
        saved = save_checkpoint(
            session.run.checkpoints,
            session.accelerator,
            session.tokenizer,
            at.as_dict(),
            keep=session.recipe.checkpoints.keep,
            needed=saved_bytes(session.model, session.optimizers),
            model=session.model,
            optimizers=session.optimizers,
            average=session.average,
        )
    if publisher and at.branch:
        publisher.offer(saved, at.branch)
    refresh_page(session, at)
    metrics.restart_clock()


def stopped(step: int, number: int) -> Stopped:
    """What a run ends with that was asked to stop."""
    why = "train.max_time is over" if number == signal.SIGALRM else f"stopped by signal {number}"
    hint = "the same command with --resume goes on"
    return Stopped(f"{why} after step {step}; the run is saved", signal=number, hint=hint)


def branch_name(recipe: Recipe, plan: Plan, step: int) -> str:
    """What the branch of a checkpoint is called on the Hub: by its step, or by the words seen, as chck_10M."""
    if recipe.hub.name_by == "step":
        return f"step-{step}"
    words, every = plan.words(step), recipe.checkpoints.every
    if every.unit == "words" and plan.due(every, step, 0, 0):
        words = words // exact(every) * exact(every)  # a step goes a little beyond it
    # Written out, so that no two are called the same: chck_1234M, not chck_1.23B.
    scale, unit = (10**6, "M") if words >= 10**6 else (10**3, "k")
    return f"chck_{round(words) / scale:.12g}{unit}"


def train_step(session: Session, step: int, micro_batches: list[MicroBatch], targets: int, rate: float) -> torch.Tensor:
    """One optimizer step. Returns [5] on the device: the summed loss of all processes, the gradient's norm, and
    whether (1 or 0) they are no numbers, the loss jumped, and fp16's loss scale left the step out, as `Step` has it.

    The gradient is that of the summed loss divided by the targets of the whole step, over all micro-batches and
    processes; the gradients of those that see other rows are averaged, hence their number as a factor.
    """
    accelerator, model = session.accelerator, session.model
    set_learning_rate(session.optimizers, rate)
    total = torch.zeros((), device=accelerator.device)
    with session.phases("forward_backward"), session.passes:
        for number, batch in enumerate(micro_batches):
            # Dropout follows from the place in the run, so there is no generator to save.
            torch.manual_seed(derived(session.recipe.seed, "dropout", step, number, session.place.number))
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            last = number == len(micro_batches) - 1
            with nullcontext() if last else gradients_kept(model, accelerator):
                with accelerator.autocast():
                    loss = session.loss(model, batch)
                backward(model, accelerator, loss * (session.place.of / max(targets, 1)))
            total += loss.detach()
    with session.phases("optimizer"):
        if accelerator.num_processes > 1:
            total = accelerator.reduce(session.place.once(total), reduction="sum")
        clip = session.recipe.train.gradient_clip or float("inf")
        norm = clip_gradients(model, accelerator, clip)
        verdict = session.guard.judge(total / max(targets, 1), norm)
        overflow = torch.zeros_like(norm)
        if accelerator.scaler is None:
            leave_out(session.optimizers, verdict[2])
        else:  # fp16: its scaler leaves out such a step by itself, and the next has a smaller loss scale
            overflow = (1 - verdict[0]) * ~norm.isfinite()
        for optimizer in session.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if session.average is not None:
            session.average.add(accelerator.unwrap_model(model), step + 1)
    return torch.stack([total, norm, *verdict[:2], overflow])


def upcoming(session: Session, step: int, request: StopRequest | None = None) -> Iterator[tuple[list[MicroBatch], int]]:
    """From `step` on: this process's micro-batches of each step, and the targets of all processes.

    A thread prepares the next step while the current one trains. It ends where a signal comes and a streamed source
    cannot be read just now: if there are other processes, by an error, as they may have gone on.
    """
    accelerator = session.accelerator

    def load(step: int) -> tuple[list[MicroBatch], int]:
        own = session.batches.sizes.of(step) // session.place.of
        first = own * session.place.number
        rows = session.batches.rows(step, range(first, first + own))
        size = session.micro_batch_size
        micro_batches = [session.collator(rows[start : start + size]) for start in range(0, own, size)]
        if accelerator.device.type == "cuda":  # from pinned memory the device copies by itself
            micro_batches = [{name: each.pin_memory() for name, each in batch.items()} for batch in micro_batches]
        return micro_batches, sum(int((batch["labels"] != IGNORED).sum()) for batch in micro_batches)

    worker = ThreadPoolExecutor(max_workers=1)
    try:
        following = worker.submit(load, step)
        while True:
            with session.phases("data", on_device=False):
                seconds = 0.0
                while not wait([following], HEEDS_SIGNALS_EVERY).done and seconds < WAITS_AFTER_SIGNAL:
                    if request is not None and request.signal is not None:
                        session.batches.interrupt()
                        seconds += HEEDS_SIGNALS_EVERY
                if not following.done() or isinstance(following.exception(), Interrupted):
                    if accelerator.num_processes > 1:
                        hint = "the same command with --resume goes on from the last checkpoint"
                        raise RunError("the data cannot be read just now, and a signal came", hint=hint)
                    return
                micro_batches, targets = following.result()
            step += 1
            following = worker.submit(load, step)
            if accelerator.num_processes > 1:
                total = session.place.once(torch.tensor(targets, device=accelerator.device))
                targets = int(accelerator.reduce(total, reduction="sum"))
            yield micro_batches, targets
    finally:
        session.batches.interrupt()
        # After a signal nothing is waited for: a library may be waiting for an answer itself.
        worker.shutdown(wait=request is None or request.signal is None)


def agreed(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes, so that they decide alike."""
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())


def log_window(session: Session, metrics: Metrics, display: Display, *, step: int, done: float, rate: float) -> None:
    """Writes and shows what the steps since the last time came to."""
    window = gathered(session, metrics)
    loss = window.loss / max(window.targets, 1)
    found: dict[str, Any] = {"nonfinite_steps": window.nonfinite} if window.nonfinite else {}
    found |= {"loss_spikes": window.spikes} if window.spikes else {}
    found |= {"overflow_steps": window.overflows} if window.overflows else {}
    if finite := window.steps - window.nonfinite:
        found |= {"loss": loss}
        if updates := finite - window.overflows:
            found |= {"gradient_norm": window.gradient_norm / updates}
    plan = session.plan
    tokens_per_second = (plan.tokens(step) - plan.tokens(step - window.steps)) / max(window.seconds, 1e-9)
    metrics.write(
        {
            "step": step,
            "tokens": plan.tokens(step),
            "epochs": session.batches.epochs(step),
            **found,
            "lr": rate,
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": round(utilisation(session, tokens_per_second), 4),
            "time": window.shares,
        }
    )
    if window.shares["data"] > WAITS_FOR_DATA and not session.said_waiting:
        session.said_waiting = True
        log.warning("%.0f%% of the time is spent waiting for data", 100 * window.shares["data"])
    metrics.start_window()
    display.update(step, done, loss, tokens_per_second)
