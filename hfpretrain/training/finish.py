"""The end of a run: the model in the run's root, what it came to in report.json, and its card."""

import contextlib
import json
import logging
import os
from typing import Any

from torch import Tensor

from hfpretrain import hardware
from hfpretrain.amounts import span
from hfpretrain.card import LOCAL, NEUTRAL, write_card
from hfpretrain.errors import CheckpointError
from hfpretrain.evaluation import Evaluated
from hfpretrain.files import damage, move_files, remove, write_manifest, write_whole
from hfpretrain.recipe_stages import validation_sources
from hfpretrain.run import FINISHED, Run
from hfpretrain.training.checkpoint import require_room, saved_bytes, written_by_all
from hfpretrain.training.metrics import Metrics
from hfpretrain.training.reporting import add_page, floor_of
from hfpretrain.training.samples import example_texts, samples_of
from hfpretrain.training.session import Session, describe, utilisation
from hfpretrain.training.sharding import save_whole, whole_weights

log = logging.getLogger(__name__)


def finish(session: Session, metrics: Metrics, step: int, seconds: float, evaluated: Evaluated | None) -> None:
    """Saves the model into the run's root, then report.json, which says that the run is finished, then the card."""
    accelerator, run = session.accelerator, session.run
    needed = saved_bytes(session.model) * (2 if session.average else 1)
    what = f"the model of {run.path}"
    averaged = evaluate_average(session)
    weights = whole_weights(session.model)
    of_average = session.average.whole(session.model) if session.average else {}
    with written_by_all(accelerator, what, run.partial, needed):
        if accelerator.is_main_process:
            require_room(what, run.path, needed)
            report = what_it_came_to(session, metrics, step, seconds, evaluated) | averaged
            save_final(session, report, weights, of_average)
    if accelerator.is_main_process:
        add_page(run, session)  # before the card, by which `complete` sees that nothing is left
        add_card(run)
        log.info("finished %d steps in %s; the run is in %s", step, span(seconds), run.path)
    accelerator.wait_for_everyone()


def complete(run: Run) -> None:
    """Does what is left to do where a run was killed just after its report was in place.

    Raises CheckpointError where a file is not what was saved; its recipe may be edited, for the card's sake.
    """
    run.check_own()
    what = damage(run.path, of=FINISHED, covers=lambda name: name != run.recipe_file.name)
    if what and run.manifest_file.exists():
        raise CheckpointError(
            f"{run.path} is finished, and damaged: {what}",
            hint=f"remove {run.report_file}, and the same command makes it anew from the newest checkpoint; "
            f"or, if you changed it on purpose, remove {run.manifest_file}",
        )
    with contextlib.suppress(OSError):
        remove(run.partial)
    if not run.card_file.exists():
        add_page(run)
        add_card(run)


def add_card(run: Run) -> None:
    """Writes the card of a finished run: a picture that cannot be drawn must not fail it, as the model is there."""
    try:
        write_card(run)
    except Exception as error:
        log.warning("the model card could not be written (%s: %s); a push tries again", type(error).__name__, error)


def evaluate_average(session: Session) -> dict[str, Any]:
    """What the average of the weights is of, and comes to on all that is held out; nothing where there is none.

    Every process calls it.
    """
    average, model = session.average, session.accelerator.unwrap_model(session.model, keep_torch_compile=True)
    if average is None:
        return {}
    found: dict[str, Any] = {"steps": average.steps}
    if session.evaluator.looks:
        with average.in_place(model):
            evaluated = session.evaluator(model, micro_batch_size=session.micro_batch_size)
        assert evaluated is not None
        found |= evaluated.as_dict()
        log.info("averaged: %s", evaluated)
    return {"averaged": found}


def save_final(
    session: Session, report: dict[str, Any], weights: dict[str, Tensor] | None, of_average: dict[str, Tensor]
) -> None:
    """Writes model, tokenizer and report whole beside their place, then moves them there, the report last.

    Of a sharded model its whole `weights` are given, and those `of_average`; of another one None, and it has its own.

    A run that was killed meanwhile has no report, so that --resume ends it again.
    """
    run, model = session.run, session.accelerator.unwrap_model(session.model, keep_torch_compile=False)
    session.tokenizer.save_pretrained(run.partial)
    save_whole(model, run.partial, weights)
    if session.average is not None:
        beside = run.partial / run.averaged.name
        if weights is not None:
            save_whole(model, beside, of_average)
        else:
            with session.average.in_place(model):
                model.save_pretrained(beside)
        session.tokenizer.save_pretrained(run.partial / run.averaged.name)
    beginnings = example_texts(session)
    held_out = [describe(source) for _, source in validation_sources(session.recipe.data)]
    public = all(source["name"] != LOCAL for source in [*session.facts["sources"], *held_out])
    examples = session.recipe.hub.examples or (beginnings if public else [NEUTRAL[session.recipe.objective]])
    report |= {
        "example": (session.recipe.evaluation.prompts or beginnings)[0],
        "samples": samples_of(run.partial, examples),
    }
    write_whole(run.partial / run.report_file.name, json.dumps(report, indent=1) + "\n")
    also = [file for file in (run.recipe_file, run.metrics_file) if file.is_file() and os.access(file, os.R_OK)]
    write_manifest(run.partial, of=FINISHED, also=also)
    move_files(run.partial, run.path, last=run.report_file.name)


def what_it_came_to(
    session: Session, metrics: Metrics, step: int, seconds: float, evaluated: Evaluated | None
) -> dict[str, Any]:
    """The report of the run, but for its samples."""
    run, plan, facts = session.run, session.plan, session.facts
    lines = run.metrics() if os.access(run.metrics_file, os.R_OK) else []
    if unsafe := metrics.save().unsafe:
        log.warning("lines that could not be written to %s: %d", run.metrics_file, len(unsafe))
        lines += map(json.loads, unsafe)
    logged = [line for line in lines if all(isinstance(line.get(key), float) for key in ("loss", "tokens_per_second"))]
    tokens = plan.tokens(step)
    tokens_per_second = logged[-1]["tokens_per_second"] if logged else 0.0  # where only the end was left to do
    if metrics.seconds_per_step:
        tokens_per_second = tokens / step / metrics.seconds_per_step
    return {
        "state": "finished",
        **facts,
        "steps": step,
        "tokens": tokens,
        "epochs": session.batches.epochs(step),
        "words": round(plan.words(step)),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens_per_second, 1),
        "mfu": round(utilisation(session, tokens_per_second), 4),
        "flops": facts["flops_per_token"] * tokens,
        "loss": logged[-1]["loss"] if logged else None,
        **(evaluated.as_dict() if evaluated else {}),
        "validation_floor": floor_of(session),
        "peak_memory_bytes": hardware.peak_memory(session.accelerator.device),
        "mask_token": session.tokenizer.mask_token,
    }
