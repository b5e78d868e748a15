"""The end of a run: the model in the run's root, what it came to in report.json, and its card."""

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfpretrain import hardware
from hfpretrain.amounts import span
from hfpretrain.card import LOCAL, NEUTRAL, write_card
from hfpretrain.data.blocks import PADDING, Block, BoolArray, IntArray
from hfpretrain.errors import CheckpointError
from hfpretrain.evaluation import Evaluated, evaluate
from hfpretrain.files import damage, move_files, remove, write_manifest, write_whole
from hfpretrain.inference import CausalLM, load
from hfpretrain.recipe_stages import validation_sources
from hfpretrain.run import FINISHED, Run
from hfpretrain.training.checkpoint import require_room, saved_bytes, written_by_all
from hfpretrain.training.metrics import Metrics
from hfpretrain.training.session import Session, describe, utilisation

log = logging.getLogger(__name__)

SAMPLES = 3
WORDS, TOKENS = {"clm": 5, "mlm": 12}, 64
"""Of a document that a sample shows: so many words, which are among so many tokens."""
LOOKED_AT = 50
"""Blocks in which beginnings of documents are looked for."""


def finish(session: Session, metrics: Metrics, step: int, seconds: float, evaluated: Evaluated | None) -> None:
    """Saves the model into the run's root, then report.json, which says that the run is finished, then the card."""
    accelerator, run = session.accelerator, session.run
    needed = saved_bytes(session.model) * (2 if session.average else 1)
    what = f"the model of {run.path}"
    averaged = evaluate_average(session)
    with written_by_all(accelerator, what, run.partial, needed):
        if accelerator.is_main_process:
            require_room(what, run.path, needed)
            save_final(session, what_it_came_to(session, metrics, step, seconds, evaluated) | averaged)
    if accelerator.is_main_process:
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
    if session.batches.validation is not None:
        with average.in_place(model):
            evaluated = evaluate(
                model,
                session.loss,
                session.batches,
                session.collator,
                session.accelerator,
                micro_batch_size=session.micro_batch_size,
            )
        assert evaluated is not None
        found |= evaluated.as_dict()
        log.info("averaged: validation loss %.4f, perplexity %.2f", evaluated.loss, evaluated.perplexity)
    return {"averaged": found}


def save_final(session: Session, report: dict[str, Any]) -> None:
    """Writes model, tokenizer and report whole beside their place, then moves them there, the report last.

    A run that was killed meanwhile has no report, so that --resume ends it again.
    """
    run, model = session.run, session.accelerator.unwrap_model(session.model, keep_torch_compile=False)
    session.tokenizer.save_pretrained(run.partial)
    model.save_pretrained(run.partial)
    if session.average is not None:
        with session.average.in_place(model):
            model.save_pretrained(run.partial / run.averaged.name)
        session.tokenizer.save_pretrained(run.partial / run.averaged.name)
    beginnings = example_texts(session)
    held_out = [describe(source) for _, source in validation_sources(session.recipe.data)]
    public = all(source["name"] != LOCAL for source in [*session.facts["sources"], *held_out])
    examples = session.recipe.hub.examples or (beginnings if public else [NEUTRAL[session.recipe.objective]])
    report |= {"example": beginnings[0], "samples": samples(run.partial, examples)}
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
        "peak_memory_bytes": hardware.peak_memory(session.accelerator.device),
        "mask_token": session.tokenizer.mask_token,
    }


def example_texts(session: Session) -> list[str]:
    """Texts to try the model with: how documents of the held-out data, if there is some, begin."""
    batches = session.batches
    blocks = batches.validation or batches.parts[0].blocks
    looked_at = [blocks[number] for number in range(min(LOOKED_AT, len(blocks)))]
    found = [tokens for block in looked_at if len(tokens := beginning(block, paired=blocks.paired))]
    found = found[:SAMPLES] or [looked_at[0].token_ids[looked_at[0].documents == 0]]
    return [example_text(session, tokens) for tokens in found]


def beginning(block: Block, *, paired: bool) -> IntArray:
    """The longest document that begins in the block, or nothing if it is short; of a pair the prompt."""
    shown: BoolArray = (block.documents == 0) & ~block.targets
    if not paired:
        lengths = np.bincount(block.documents[block.documents != PADDING])
        lengths[0] = 0  # it may have begun in the block before
        shown = (block.documents == lengths.argmax()) & (lengths.max() > 2 * WORDS["clm"])
    tokens: IntArray = block.token_ids[shown]
    return tokens


def example_text(session: Session, tokens: IntArray) -> str:
    """The first words that the tokens spell; for mlm at most a sentence, with a word in the middle masked."""
    objective = session.recipe.objective
    words = session.tokenizer.decode(tokens[:TOKENS].tolist(), skip_special_tokens=True).split() or ["The"]
    words = words[: WORDS[objective]]
    if objective == "mlm":
        ends = [number for number, word in enumerate(words, start=1) if word[-1] in ".!?"]
        words = words[: ends[0] if ends else None]
        words[(len(words) - 1) // 2] = "[MASK]"
    return " ".join(words)


def samples(model: Path, examples: Sequence[str]) -> list[dict[str, Any]]:
    """What the saved model makes of the examples: the proof that it loads, too."""
    found: list[dict[str, Any]] = []
    try:
        llm = load(model, device="cpu")
        for text in examples:
            if isinstance(llm, CausalLM):
                found.append({"text": text, "continuation": llm.generate(text, max_new_tokens=24)})
            else:
                first_mask = llm.fill(text, top_k=3)[0]
                found.append({"text": text, "fills": [[each.token, each.probability] for each in first_mask]})
    except Exception as error:  # the model is saved: what cannot be shown of it must not fail the run
        log.warning("the card will lack samples (%s: %s)", type(error).__name__, error)
    return found
