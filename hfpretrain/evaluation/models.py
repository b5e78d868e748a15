"""Evaluating any model: a run, a folder or one on the Hub, on what a run held out or on a file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hfpretrain.data.batches import open_batches
from hfpretrain.data.formats import TEXT, kind_of
from hfpretrain.errors import RunError, UserError
from hfpretrain.evaluation.evaluator import prepare_evaluator
from hfpretrain.inference import MaskedLM, load
from hfpretrain.inference.words import positions_of
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.objective import Collator
from hfpretrain.recipe import Recipe, Source, from_mapping
from hfpretrain.recipe import load as load_recipe
from hfpretrain.recipe_stages import training_sources
from hfpretrain.terminal import Bar, Clock, wanted

log = logging.getLogger(__name__)

ONLY_FILES: dict[str, Any] = dict.fromkeys(
    ("builtin", "size", "tokens", "dtype", "hub", "subset", "commit", "weight", "min_chars", "max_chars", "drop_list")
) | {"deduplicate": False, "repeat": True, "streaming": False}
"""What a source has to lose to name other files, all of which count."""


def evaluate_model(
    name: str,
    data: str | None = None,
    *,
    pairs: str | None = None,
    pseudo_perplexity: bool = False,
    metrics: tuple[str, ...] = (),
    micro_batch_size: int = 8,
) -> dict[str, Any]:
    """Evaluates a run, a model folder or a Hub id on a local file or folder, or a run on what it held out.

    With `pairs`, a file of minimal pairs, on these, and on text only if there is `data`. `metrics` are others of the
    evaluate library; those that a run's recipe names are not loaded, as they are code. The result holds what
    `Evaluated.values` gives, and of pairs what `Pairs.look` gives.
    """
    file = Path(name) / "recipe.yaml"
    if data is None and pairs is None and not file.is_file():
        raise RunError(f"{name} is not a run, so it has no held-out data of its own", hint="name a file with --data")
    llm = load(name)
    masked = isinstance(llm, MaskedLM)
    if pseudo_perplexity and not masked:
        said = f"{name} is a causal language model, whose perplexity is no pseudo-perplexity"
        raise UserError(said, hint="leave --pseudo-perplexity out")
    recipe = _recipe(file, llm, data)
    settings = replace(recipe.evaluation, pseudo_perplexity=pseudo_perplexity, metrics=metrics, pairs=pairs)
    recipe = replace(recipe, evaluation=settings)
    how = None if recipe.data.packing == "concat" else prove_document_masking(llm.model, recipe.objective)
    batches = collator = None
    if data is not None or pairs is None:
        batches = open_batches(recipe, llm.tokenizer, training=False)
        collator = Collator(recipe, llm.tokenizer, isolated=how is not None)
        if batches.validation is None:
            raise RunError(f"{name} held no data out", hint="name a file with --data")
    evaluator = prepare_evaluator(
        recipe,
        llm.tokenizer,
        llm.model,
        Loss(llm.model, how),
        Accelerator(),
        batches=batches,
        collator=collator,
        text_begins=not file.is_file(),
    )
    with bar_of_batches("evaluating") as tell:
        result = evaluator(llm.model, micro_batch_size=micro_batch_size, tell=tell)
    assert result is not None
    if result.targets == 0:
        log.warning("none of the tokens is one that the model is asked for, so that there is no loss: give more text")
    return result.values() | (
        {"pairs": result.pairs["pairs"], "groups": result.pairs["groups"]} if result.pairs else {}
    )


@contextmanager
def bar_of_batches(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, where somebody is there to see it, that is told how many micro-batches were looked at, and of how many."""
    if not wanted(log):
        yield lambda done, of: None
        return
    clock = Clock()
    with Bar(what) as bar:

        def tell(done: int, of: int) -> None:
            nonlocal clock
            if done == 1:  # the next part of what is looked at
                clock = Clock()
            bar.update(done / of, f"{done}/{of} batches", clock.left(done / of))

        yield tell


def _recipe(file: Path, llm: Any, data: str | None) -> Recipe:
    """The run's recipe, or one that goes with a model that is none; the files of `data`, if given, are held out."""
    if file.is_file():
        recipe = load_recipe(file)
    else:
        positions = positions_of(llm.model) or 512
        objective = "mlm" if isinstance(llm, MaskedLM) else "clm"
        mapping = {"sources": [{"files": data} if data else {"builtin": "everyday"}], "block_size": min(positions, 512)}
        recipe = from_mapping({"objective": objective, "data": mapping})
    if data is None:
        return recipe
    seen = training_sources(recipe.data)[0][1]  # its columns are what the model knows
    plain = kind_of(Path(data)) in TEXT
    sources = (Source(files=data) if plain or not file.is_file() else replace(seen, **ONLY_FILES, files=data),)
    return replace(recipe, data=replace(recipe.data, sources=sources, stages=(), validation=sources))
