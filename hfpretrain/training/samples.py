"""Seeing it learn: what the model makes of a few texts, at each evaluation and at the end."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfpretrain.data.blocks import PADDING, Block, BoolArray, IntArray
from hfpretrain.inference import CausalLM, MaskedLM, load
from hfpretrain.training.session import Session

log = logging.getLogger(__name__)

SAMPLES = 3
WORDS, TOKENS = {"clm": 5, "mlm": 12}, 64
"""Of a document that a sample shows: so many words, which are among so many tokens."""
LOOKED_AT = 50
"""Blocks in which beginnings of documents are looked for."""


def samples_now(session: Session) -> list[dict[str, Any]]:
    """What the model, as it is now, makes of the prompts of the recipe, or else of how held-out documents begin.

    The model is left as it was. One process alone may call it.
    """
    given = session.recipe.evaluation.prompts
    texts = (session.recipe.hub.examples or example_texts(session)) if given is None else given
    model = session.accelerator.unwrap_model(session.model, keep_torch_compile=False)
    was_training, own = model.training, getattr(model, "generation_config", None)
    model.eval()
    try:
        of = CausalLM if session.recipe.objective == "clm" else MaskedLM
        with torch.compiler.set_stance("force_eager"):  # compiling for the lengths of a few texts takes minutes
            return _samples(of(model, session.tokenizer, session.recipe.name), texts) if texts else []
    except Exception as error:  # what cannot be shown must not fail the run
        log.warning("the model cannot be shown on its prompts (%s: %s)", type(error).__name__, error)
        return []
    finally:
        if own is not None:  # a CausalLM puts its own there
            model.generation_config = own
        model.train(was_training)


def samples_of(model: Path, examples: Sequence[str]) -> list[dict[str, Any]]:
    """What the saved model makes of the examples: the proof that it loads, too."""
    try:
        return _samples(load(model, device="cpu"), examples)
    except Exception as error:  # the model is saved: what cannot be shown of it must not fail the run
        log.warning("the card will lack samples (%s: %s)", type(error).__name__, error)
        return []


def _samples(llm: CausalLM | MaskedLM, texts: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for text in texts:
        if isinstance(llm, CausalLM):
            found.append({"text": text, "continuation": llm.generate(text, max_new_tokens=24)})
        else:
            first_mask = llm.fill(text, top_k=3)[0]
            found.append({"text": text, "fills": [[each.token, each.probability] for each in first_mask]})
    return found


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
