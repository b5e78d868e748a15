"""What the commands that use a model share: which model is meant, and how predictions are printed."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from hfpretrain.process import prepare_environment

if TYPE_CHECKING:
    from hfpretrain.inference import CausalLM

log = logging.getLogger(__name__)

# Small, well-known models for when there is no run yet.
FALLBACKS = {"mlm": "distilbert/distilroberta-base", "clm": "HuggingFaceTB/SmolLM2-135M"}


def load_model(name: str | None, objective: Literal["clm", "mlm"]) -> Any:
    """The model to use: the one named, or the default, which one line on stderr says."""
    from hfpretrain.run import newest_finished

    prepare_environment()
    if name is None:
        name = os.environ.get("HFPRETRAIN_MODEL")
        if name is None:
            newest = newest_finished(Path("runs"), objective)
            name = str(newest.path) if newest else FALLBACKS[objective]
        log.info("model: %s", name)
    from hfpretrain.inference import load

    return load(name, objective=objective)


def print_next_words(causal: "CausalLM", prompt: str, top_k: int, as_json: bool) -> None:
    """The next words' probabilities; beside those of the everyday grammar where it knows the context."""
    from hfpretrain.data.everyday import CONTEXTS, next_words

    truth = next_words(prompt) if prompt in CONTEXTS and learnt_everyday(causal.name) else {}
    predictions = causal.next_words(prompt, top_k=top_k)
    if as_json:
        lines = [{"word": each.token, "probability": each.probability} for each in predictions]
        typer.echo(
            json.dumps([line | ({"grammar": truth.get(str(line["word"]), 0.0)} if truth else {}) for line in lines])
        )
        return
    width = max([len(each.token) for each in predictions] + [4])
    if truth:
        typer.echo(f"{'word':<{width}}   model  grammar")
    for each in predictions:
        beside = f"   {truth.get(each.token, 0.0):6.1%}" if truth else ""
        typer.echo(f"{each.token:<{width}}  {each.probability:6.1%}{beside}")


def learnt_everyday(name: str) -> bool:
    """Whether `name` is a run that was trained on the builtin corpus."""
    from hfpretrain.recipe import load

    file = Path(name) / "recipe.yaml"
    return file.is_file() and any(source.builtin == "everyday" for source in load(file).data.sources)


def vars_of(prediction: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(prediction)
