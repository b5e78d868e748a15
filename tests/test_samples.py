"""At each evaluation the model is shown on a few texts, in the metrics and on the screen; nothing is learnt by it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.errors import RecipeError
from hfpretrain.inference import load
from hfpretrain.run import Run
from hfpretrain.training.loop import train
from hfpretrain.training.samples import samples_now
from hfpretrain.training.session import open_accelerator, prepare_session

PROMPTS = {"clm": ["the quick", "a dog"], "mlm": ["the quick [MASK] jumps over", "a <mask> [MASK]"]}


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_each_evaluation_shows_the_prompts(tmp_path: Path, objective: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="hfpretrain")
    enough = ["train.duration=60", "evaluation.every=30", "optimizer.lr=5e-3"]
    run = tiny_run(tmp_path, objective, *enough, f"evaluation.prompts={PROMPTS[objective]}", name="shown")
    shown = [line["samples"] for line in metrics(run) if "samples" in line]
    assert [[each["text"] for each in samples] for samples in shown] == [PROMPTS[objective]] * 2  # steps 30 and 60
    assert shown[0] != shown[1], "it has learnt between them"
    last, text = shown[1][0], PROMPTS[objective][0]
    if objective == "clm":
        assert last["continuation"] == load(run.path, objective="clm").generate(text, max_new_tokens=24)
        assert last["continuation"].split()[0] in caplog.text
    else:
        predictions = load(run.path, objective="mlm").fill(text, top_k=3)[0]
        assert [token for token, _ in last["fills"]] == [each.token for each in predictions]
        assert [chance for _, chance in last["fills"]] == pytest.approx([each.probability for each in predictions])
        assert f"{text} → {last['fills'][0][0]} {last['fills'][0][1]:.1%}" in caplog.text
    hidden = tiny_run(tmp_path, objective, *enough, name="hidden")
    assert same_weights(weights(run), weights(hidden))
    config = "generation_config.json"
    assert not (hidden.path / config).exists() or (run.path / config).read_text() == (hidden.path / config).read_text()


def test_without_prompts_held_out_texts_are_begun(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "clm", "evaluation.prompts=null", name="default")
    run = train(recipe)
    shown = [line["samples"] for line in metrics(run) if "samples" in line]
    assert len(shown) == 2
    assert all(len(each["text"].split()) == 5 for each in shown[0])
    shutil.rmtree(run.checkpoints / "step-00000012")
    before = metrics(run)
    Run(run.path).report_file.unlink()
    train(recipe, resume=True)
    assert metrics(run) == before
    examples = tiny_run(tmp_path, "clm", "evaluation.prompts=null", "hub.examples=[the lazy]", name="examples")
    assert metrics(examples)[-1]["samples"][0]["text"] == "the lazy"


def test_a_prompt_that_cannot_be_shown_fails_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(tmp_path, "clm", f"evaluation.prompts=['{'the quick ' * 600}']")
    assert run.state == "finished"
    assert "the model cannot be shown on its prompts (UserError: the prompt is" in caplog.text
    with pytest.raises(RecipeError, match=r"evaluation\.prompts\.1: there is no \[MASK\] to fill in 'the fox'"):
        tiny_recipe(tmp_path, "mlm", "evaluation.prompts=['the [MASK]', 'the fox']")


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_showing_texts_compiles_nothing(tmp_path: Path, objective: str) -> None:
    """A compiled model would be compiled for their lengths, which takes longer than much training."""
    recipe = tiny_recipe(tmp_path, objective, "evaluation.prompts=null")
    session = prepare_session(recipe, Run(tmp_path / "run"), open_accelerator(recipe))
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    session.model.compile(backend=backend)
    assert samples_now(session)
    assert not compiled
