"""Each architecture trains three steps with a finite loss, saves, and reloads to the same loss."""

import math
from pathlib import Path

import pytest
from architectures import CAUSAL, MASKED
from tiny import tiny_recipe

from hfpretrain.evaluation import evaluate_model
from hfpretrain.recipe import Recipe, dump, from_mapping
from hfpretrain.recipe import load as load_recipe
from hfpretrain.training.loop import train

NOT_ISOLATED = {"mamba", "deberta-v2"}
"""A state-space model carries its state over a document's end; DeBERTa takes no mask of pairs of tokens."""


@pytest.mark.parametrize(
    ("objective", "architecture"), [*(("mlm", name) for name in MASKED), *(("clm", name) for name in CAUSAL)]
)
def test_trains_saves_and_reloads(tmp_path: Path, objective: str, architecture: str) -> None:
    run = train(recipe_for(tmp_path, objective, architecture))
    report = run.report()
    assert report["steps"] == 3
    assert math.isfinite(report["loss"])
    assert report["loss"] < 2 * math.log(320)
    assert report["packing"] == ("concat" if architecture in NOT_ISOLATED else "documents")
    again = evaluate_model(str(run.path))
    assert again["loss"] == pytest.approx(report["validation_loss"], abs=1e-5)
    assert again["targets"] == report["validation_targets"]


def recipe_for(folder: Path, objective: str, architecture: str) -> Recipe:
    base = tiny_recipe(folder, objective, "train.duration=3", "evaluation.every=3")
    file = folder / "base.yaml"
    file.write_text(dump(base))
    config = (MASKED if objective == "mlm" else CAUSAL)[architecture]
    recipe = load_recipe(file, [f"model={{architecture: {architecture}, config: {config}}}"])
    assert isinstance(recipe, Recipe)
    return recipe


def test_the_table_is_the_promise() -> None:
    """The README names these; none may fall out of the list above unseen."""
    assert len(MASKED) + len(CAUSAL) == 16
    assert (
        from_mapping({"objective": "clm", "data": {"sources": [{"builtin": "everyday"}]}}).model.architecture in CAUSAL
    )
