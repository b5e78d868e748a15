"""An average of the weights beside the model: what it is of, exact over a resume, evaluated, saved as a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.errors import RecipeError, RunError
from hfpretrain.evaluation import evaluate_model
from hfpretrain.inference import load
from hfpretrain.run import Run
from hfpretrain.training.loop import train

EMA = ["averaging.method=ema", "averaging.decay=0.8"]
MEAN = ["averaging.method=checkpoints", "averaging.last=3"]


def every_step(folder: Path, *settings: str) -> tuple[Run, list[dict[str, torch.Tensor]]]:
    """A run, and its weights after each step: of every checkpoint."""
    run = tiny_run(folder, "clm", "checkpoints.every=1", "checkpoints.keep=50", *settings, name="every")
    return run, [weights(run.checkpoints / f"step-{step:08d}") for step in range(1, 13)]


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[key], other[key], atol=1e-7) for key in one)


def test_an_ema_is_that_of_every_step(tmp_path: Path) -> None:
    run, steps = every_step(tmp_path, *EMA)
    average = dict(steps[0])
    for step, found in enumerate(steps[1:], start=2):
        decay = min(0.8, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * found[name] for name in average}
    assert close(weights(run.averaged), average)
    assert not close(weights(run.averaged), weights(run))


def test_the_mean_is_that_of_the_last_checkpoints(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", *MEAN, "checkpoints.keep=20", name="mean")  # after steps 5, 10 and 12
    parts = [weights(run.checkpoints / f"step-{step:08d}") for step in (5, 10, 12)]
    assert close(
        weights(run.averaged), {name: torch.stack([each[name] for each in parts]).mean(0) for name in parts[0]}
    )
    assert run.report()["averaged"]["steps"] == 3
    run, steps = every_step(tmp_path, *MEAN)
    assert close(
        weights(run.averaged), {name: torch.stack([each[name] for each in steps[-3:]]).mean(0) for name in steps[0]}
    )


@pytest.mark.parametrize("settings", [EMA, MEAN])
def test_a_run_that_goes_on_averages_the_same(tmp_path: Path, settings: list[str]) -> None:
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    recipe = tiny_recipe(tmp_path, "mlm", *settings, name="cut")
    shutil.copytree(whole.path, recipe.output_dir)
    cut = Run(Path(recipe.output_dir))
    cut.report_file.unlink()
    shutil.rmtree(cut.averaged)
    shutil.rmtree(cut.checkpoints / "step-00000012")
    train(recipe, resume=True)
    assert same_weights(weights(whole.averaged), weights(cut.averaged))
    assert whole.report()["averaged"] == cut.report()["averaged"]


def test_the_average_is_a_model_with_a_loss_of_its_own(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", *EMA)
    told = run.report()["averaged"]
    assert told["validation_loss"] != run.report()["validation_loss"]
    assert load(run.averaged, objective="clm").generate("the quick", max_new_tokens=2)
    shutil.copy(run.recipe_file, run.averaged)  # with it, it is looked at on the same held-out part
    assert evaluate_model(str(run.averaged))["loss"] == pytest.approx(told["validation_loss"], rel=1e-5)
    assert "averaged/model.safetensors" in json.loads(run.manifest_file.read_text())["files"]


def test_averaging_learns_nothing_else_and_stays_for_the_run(tmp_path: Path) -> None:
    plain, averaged = tiny_run(tmp_path, "clm", name="plain"), tiny_run(tmp_path, "clm", *EMA, name="averaged")
    assert same_weights(weights(plain), weights(averaged))
    assert not plain.averaged.exists()
    averaged.report_file.unlink()
    with pytest.raises(RunError, match=r"no run goes on with another averaging\.decay"):
        tiny_run(tmp_path, "clm", *EMA, "averaging.decay=0.9", name="averaged", resume=True)


def test_the_last_checkpoints_of_a_time_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not known beforehand"):
        tiny_recipe(tmp_path, "clm", *MEAN, "train.duration=10 minutes")
