"""Each architecture trains three steps with a finite loss, saves, and reloads to the same loss."""

import math
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_recipe

from hfpretrain.evaluation import evaluate_model
from hfpretrain.recipe import Recipe, dump, from_mapping
from hfpretrain.recipe import load as load_recipe
from hfpretrain.training.loop import train

PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MASKED: dict[str, dict[str, Any]] = {
    "bert": PLAIN,
    "roberta": PLAIN,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "modernbert": PLAIN,
    "electra": PLAIN | {"embedding_size": 32},
    "albert": PLAIN | {"embedding_size": 16},
    "deberta-v2": PLAIN | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": PLAIN,
    "qwen3": PLAIN | {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": PLAIN | {"num_key_value_heads": 1, "head_dim": 16},
    "gpt_neox": PLAIN,
    "olmo2": PLAIN,
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mixtral": PLAIN | {"num_key_value_heads": 1, "num_local_experts": 4},
}
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
