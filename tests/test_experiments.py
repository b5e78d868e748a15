"""Starting from another run, the learning-rate range test, and sweeps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.errors import RecipeError, RunError, Stopped
from hfpretrain.recipe import Recipe, dump, load
from hfpretrain.run import Run
from hfpretrain.training.lineage import load_from_run
from hfpretrain.training.loop import train
from hfpretrain.training.session import Session, open_accelerator, prepare_session

Command = Callable[..., Any]

CONSTANT = ["schedule.name=constant", "schedule.warmup=0%"]
LONG = [*CONSTANT, "train.duration=40", "checkpoints.every=20", "train.log_every=20", "evaluation.every=40"]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_recipe(folder: Path, recipe: Recipe) -> Path:
    """A recipe file without an output_dir, so that it is runs/<name> here."""
    path = folder / "recipe.yaml"
    lines = dump(recipe).splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("output_dir:")), encoding="utf-8")
    return path


def prepared(recipe: Recipe, folder: Path) -> Session:
    return prepare_session(recipe, Run(folder), open_accelerator(recipe))


def optimizer_states(checkpoint: Path) -> list[dict[str, Any]]:
    return [torch.load(file, weights_only=True)["state"] for file in sorted(checkpoint.glob("optimizer*.bin"))]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_with_the_moments_of_another_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    first = tiny_run(tmp_path, "clm", *LONG, f"optimizer.name={optimizer}", name="first")
    checkpoint = first.checkpoints / "step-00000040"
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", f"optimizer.name={optimizer}", name="second"))
    decay = ["schedule={name: linear, warmup: 0%}", "optimizer.lr=5e-4", "train.duration=8", "checkpoints.every=1"]
    recipe = load_from_run(file, [*decay, "checkpoints.keep=9"], str(first.path), with_optimizer=True)
    assert recipe.model.from_ == str(checkpoint)
    assert recipe.optimizer.from_checkpoint

    session = prepared(recipe, tmp_path / "unused")
    saved, taken = optimizer_states(checkpoint), [each.state_dict() for each in session.optimizers]
    assert len(saved) == len(taken) == (2 if optimizer == "muon" else 1)
    for one, other in zip(saved, taken, strict=True):
        assert one.keys() == other["state"].keys()
        for parameter, state in one.items():
            assert state.keys() == other["state"][parameter].keys()
            assert all(torch.equal(state[name], other["state"][parameter][name]) for name in state)
    assert {group["lr"] for each in session.optimizers for group in each.param_groups} == {5e-4}
    now = session.accelerator.unwrap_model(session.model).state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in weights(checkpoint).items())

    second = train(recipe)
    (*_, adam) = optimizer_states(second.checkpoints / "step-00000003")
    assert {int(state["step"]) for state in adam.values()} == {43}, "Adam's correction of its bias goes on"
    without = train(load_from_run(file, [*decay, "checkpoints.keep=9", "name=without"], str(first.path)))
    (*_, adam) = optimizer_states(without.checkpoints / "step-00000003")
    assert {int(state["step"]) for state in adam.values()} == {3}


def test_the_order_of_the_data_begins_anew(tmp_path: Path) -> None:
    first = tiny_run(tmp_path, "clm", name="first")
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", name="second"))

    def tokens(*overrides: str) -> torch.Tensor:
        batches = prepared(load_from_run(file, overrides, str(first.path)), tmp_path / "unused").batches
        return torch.tensor(np.array([row.block.token_ids for row in batches.rows(0, range(4))]))

    fresh = prepared(tiny_recipe(tmp_path, "clm", name="fresh"), tmp_path / "unused").batches.rows(0, range(4))
    assert torch.equal(tokens(), torch.tensor(np.array([row.block.token_ids for row in fresh])))
    assert not torch.equal(tokens(), tokens("seed=1"))


def test_a_run_that_began_from_another_goes_on_when_that_is_gone(tmp_path: Path, hfpretrain: Command) -> None:
    first = tiny_run(tmp_path, "mlm", name="first")
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "mlm", name="second"))
    arguments = ["--from-run", str(first.path), "--with-optimizer"]
    whole = hfpretrain("train", file, "name=whole", *arguments)
    assert whole.returncode == 0, whole.stderr
    said = "starting from first at step 12, which had seen 768 tokens of local files, with its optimizer's state"
    assert said in whole.stderr
    with pytest.raises(Stopped):
        train(load_from_run(file, [], str(first.path), with_optimizer=True), stop_after=6)
    shutil.rmtree(first.path)
    refused = hfpretrain("train", file, "--resume", *arguments, "model.config.num_hidden_layers=1")
    assert refused.returncode == 2
    assert f"is 1, and {first.path} has 2" in refused.stderr
    resumed = hfpretrain("train", file, "--resume", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    second = Run(tmp_path / "runs/second")
    assert same_weights(weights(second), weights(tmp_path / "runs/whole"))
    assert second.report()["lineage"] == Run(tmp_path / "runs/whole").report()["lineage"]
    assert "starting from" not in resumed.stderr


def test_of_an_unfinished_run_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "clm", name="first")
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", name="second"))
    with pytest.raises(RunError, match="there is no such run"):
        load_from_run(file, [], recipe.output_dir)
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    first = Run(Path(recipe.output_dir))
    newest = first.checkpoints / "step-00000007"
    assert load_from_run(file, [], str(first.path)).model.from_ == str(newest)
    older = first.checkpoints / "step-00000005"
    assert load_from_run(file, [], str(older)).model.from_ == str(older)
    (newest / "model.safetensors").write_bytes(b"damaged")
    assert load_from_run(file, [], str(first.path)).model.from_ == str(older)
    with pytest.raises(RunError, match=r"is damaged: model\.safetensors"):
        load_from_run(file, [], str(newest))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model={architecture: llama, config: {}}"], "is the text 'llama', and {run} is a gpt2"),
        (["model.config.n_embd=64"], "model.config.n_embd: is 64, and {run} has 32"),
        (["tokenizer.vocab_size=300"], "tokenizer.vocab_size: is 300, and {run} has 320"),
        (["objective=mlm", "fim=null"], "objective: is mlm, and {run} was trained with clm"),
        (["optimizer.name=muon"], "was trained with optimizer.name: adamw, and now it is muon"),
        (["output_dir={run}"], "is the run that this one would start from"),
        (["name=first"], "is the run that this one would start from"),
    ],
)
def test_what_does_not_fit_the_run_is_one_sentence(tmp_path: Path, overrides: list[str], said: str) -> None:
    first = tiny_run(tmp_path, "clm", "train.duration=2", name="first")
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", name="second"))
    with pytest.raises((RecipeError, RunError)) as caught:
        told = [each.replace("{run}", str(first.path)) for each in overrides]
        train(load_from_run(file, told, str(first.path), with_optimizer=True))
    assert said.replace("{run}", str(first.path)) in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert not Path("runs/second").exists()


def test_the_lineage_is_in_report_and_card(tmp_path: Path) -> None:
    first = tiny_run(tmp_path, "clm", name="first")
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", name="unused"))
    second = train(load_from_run(file, ["name=second"], str(first.path)))
    third = train(load_from_run(file, ["name=third"], str(second.path), with_optimizer=True))
    one, two = third.report()["lineage"]
    assert (one["run"], one["step"], one["tokens"], one["optimizer"]) == ("first", 12, 768, False)
    assert (two["run"], two["step"], two["data"], two["optimizer"]) == ("second", 12, ["local files"], True)
    card = third.card_file.read_text()
    assert "continued from the run second." in card
    assert "| started from | first, step 12, 768 tokens of local files |" in card
    assert "| started from | second, step 12, 768 tokens of local files, with its optimizer's state |" in card
    assert "base_model" not in card
    assert "from_checkpoint: true" in card
    assert str(tmp_path) not in card + json.dumps(third.report())
    with pytest.raises(RecipeError, match=r"is 400, and .* has 320"):
        load_from_run(file, ["tokenizer.vocab_size=400", "name=fourth"], str(third.path))


def test_the_optimizer_needs_a_checkpoint(tmp_path: Path, hfpretrain: Command) -> None:
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm"))
    alone = hfpretrain("train", file, "--with-optimizer")
    assert (alone.returncode, "goes with --from-run" in alone.stderr) == (2, True)
    first = tiny_run(tmp_path, "clm", name="first")
    recipe = load_from_run(file, ["optimizer.from_checkpoint=true"], str(first.path))
    with pytest.raises(RecipeError, match="is no checkpoint") as caught:
        train(recipe)
    assert str(first.checkpoints / "step-00000012") in str(caught.value.hint)
    with pytest.raises(RecipeError, match=r"from_checkpoint is for model\.from"):
        load(file, ["optimizer.from_checkpoint=true"])
