"""Starting from another run, the learning-rate range test, and sweeps."""

import dataclasses
import json
import re
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from tiny import same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.cli_experiments import HEIGHT, drawn
from hfpretrain.errors import RecipeError, RunError, Stopped, TrainingError, UserError
from hfpretrain.recipe import Recipe, dump, load
from hfpretrain.recipe_stages import with_sources
from hfpretrain.run import Run, list_checkpoints
from hfpretrain.sweep import Outcome, named, parse, plan_sweep
from hfpretrain.training.lineage import load_from_run
from hfpretrain.training.loop import train
from hfpretrain.training.range_test import Point, conclude, diverged, range_test
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
        (["model.size=60k"], "model.size: is the text '60k', and that of {run} was none"),
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


def test_the_file_of_a_run_with_a_size_starts_another_from_it(tmp_path: Path) -> None:
    """Its size is that of the first run, however it is written, and also two runs later."""
    sized = tiny_recipe(tmp_path, "clm", "model={architecture: gpt2, size: 60k}", "train.duration=2", name="first")
    file = write_recipe(tmp_path, sized)
    first = train(sized)
    second = train(load_from_run(file, ["name=second", "model.size=60000"], str(first.path)))
    assert second.report()["parameters"] == first.report()["parameters"]
    assert load_from_run(file, ["name=third"], str(second.path)).model.from_ == str(second.path)
    again = load_from_run(file, ["name=second"], str(first.path), resume=True)
    assert again.model.from_ == str(first.path)
    for size in ("70k", "big"):
        with pytest.raises(RecipeError, match=f"model.size: is the text '{size}', and that of .* was the text '60k'"):
            load_from_run(file, ["name=third", f"model.size={size}"], str(second.path))


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


LR = ["train.batch_size=8", "data.block_size=32", "train.duration=60"]


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_the_rate_that_is_found_is_better_than_a_tenth_and_ten_times(tmp_path: Path, objective: str) -> None:
    found = range_test(tiny_recipe(tmp_path, objective, *LR))
    rates = [point.rate for point in found.points]
    assert rates[0] == 1e-6
    assert all(after / before == pytest.approx(10 ** (6 / 99)) for before, after in pairwise(rates))
    smoothed = found.points[0].smoothed
    assert smoothed == pytest.approx(found.points[0].loss), "the bias of the mean is corrected"
    assert found.suggestion < found.least.rate

    def loss(factor: float) -> float:
        settings = [*LR, f"optimizer.lr={found.suggestion * factor}", "evaluation.every=60", "checkpoints.every=60"]
        return float(tiny_run(tmp_path, objective, *settings, name=f"times-{factor:g}").report()["validation_loss"])

    assert loss(1) < min(loss(0.1), loss(10))
    picture = drawn(found).splitlines()
    assert picture[0].startswith(f"{max(point.smoothed for point in found.points):.3f} |*")
    assert sum(":" in line for line in picture) >= HEIGHT - 2
    assert "1e-5" in picture[-1]


def test_the_test_ends_where_the_loss_rises_again() -> None:
    losses = [5.0] * 10 + [5.0 - 0.2 * step for step in range(10)] + [3.2 + 0.2 * step for step in range(10)]
    points = [Point(10 ** (step / 10 - 3), loss, loss) for step, loss in enumerate(losses)]
    ends = next(end for end in range(1, len(points) + 1) if diverged(points[:end]))
    assert losses[ends - 1] == pytest.approx(3.8), "a quarter of what it had fallen, 1.8, above 3.2"
    found = conclude(points[:ends], steps_per_decade=10)
    assert found.least.loss == pytest.approx(3.2)
    assert points[10].rate < found.suggestion < points[20].rate
    with pytest.raises(TrainingError, match="nothing to suggest"):
        conclude([Point(1.0, 5.0 + step, 5.0 + step) for step in range(20)], steps_per_decade=10)


def test_find_lr_writes_nothing_into_the_run(tmp_path: Path, hfpretrain: Command) -> None:
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", *LR))
    result = hfpretrain(
        "find-lr", file, "train.batch_size=4", "--from", "1e-5", "--to", "0.1", "--steps", "40", "--json"
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["points"][0]["rate"] == pytest.approx(1e-5)
    assert told["points"][0]["rate"] < told["suggestion"] < told["least"]["rate"] <= 0.1
    assert not Path("runs").exists()
    shown = hfpretrain(
        "find-lr", file, "train.batch_size=4", "optimizer.lr=1", "--from", "1e-5", "--to", "0.1", "--steps", "40"
    )
    assert f"suggestion  {told['suggestion']:.1e}, where the loss falls the most; the recipe has 1.0\n" in shown.stdout
    assert (
        f"next        hfpretrain train {file} train.batch_size=4 optimizer.lr={told['suggestion']:.1e}\n"
        in shown.stdout
    )
    assert hfpretrain("find-lr", file, "--from", "1", "--to", "0.1").returncode == 2


def test_find_lr_ends_with_the_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Steps without data have no loss, and so nothing that falls."""
    source = "data.sources.0.repeat=false"
    recipe = tiny_recipe(tmp_path, "clm", source, "train.batch_size=16", "train.duration=2", "data.validation=0%")
    with caplog.at_level("WARNING"), pytest.raises(TrainingError, match="nothing to suggest"):
        range_test(recipe, first=1e-8, last=1e-7, steps=60)
    (said,) = [each.getMessage() for each in caplog.records if "is used up" in each.getMessage()]
    assert 1 < int(re.findall(r"after (\d+) steps", said)[0]) < 12


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("optimizer.lr=1e-3,3e-3", ["1e-3", "3e-3"]),
        ("optimizer.betas=[0.9, 0.95],[0.9, 0.99]", ["[0.9, 0.95]", "[0.9, 0.99]"]),
        ("data.sources=[{files: a, weight: 2}, {files: b}]", ["[{files: a, weight: 2}, {files: b}]"]),
        ("name='a,b'", ["'a,b'"]),
        ("name=it's,x", ["it's", "x"]),
        ("train.duration=50", ["50"]),
    ],
)
def test_values_are_split_at_commas_that_are_in_nothing(override: str, values: list[str]) -> None:
    assert parse(override) == (override.partition("=")[0], values)


def test_names_of_the_runs_of_a_sweep_differ() -> None:
    assert named({"optimizer.lr": "1e-3", "model.config.n_layer": "2"}) == "lr=1e-3,n_layer=2"
    assert named({"model.from": "a", "tokenizer.from": "b"}) == "model.from=a,tokenizer.from=b"
    one, other = (named({"data.sources.0.files": f"{name}/x.txt"}) for name in ("a", "a/b"))
    assert "/" not in one + other
    assert len({one, other, named({"k": "a" * 300}), named({"k": "a" * 301})}) == 4


def test_a_sweep_is_a_table_with_the_best_first(tmp_path: Path, hfpretrain: Command) -> None:
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", "evaluation.every=100%", name="tiny"))
    arguments = ["sweep", file, "model.config.n_head=3,1,2", "train.batch_size=2", "--steps"]
    result = hfpretrain(*arguments, "6")
    assert result.returncode == 0, result.stderr
    head, best, second, failed, last = result.stdout.splitlines()
    assert head.split() == ["model.config.n_head", "validation", "training", "tokens", "time", "run"]
    assert failed.split()[:3] == ["3", "runs/tiny-sweep/n_head=3:", "failed:"]
    reports = {heads: Run(Path(f"runs/tiny-sweep/n_head={heads}")).report() for heads in "12"}
    assert {report["steps"] for report in reports.values()} == {6}
    ranked = sorted(reports, key=lambda heads: float(reports[heads]["validation_loss"]))
    for line, heads in zip((best, second), ranked, strict=True):
        assert line.split()[:2] == [heads, f"{reports[heads]['validation_loss']:.4f}"]
    assert last == f"best in full  hfpretrain train {file} model.config.n_head={ranked[0]} train.batch_size=2"

    again = hfpretrain(*arguments, "6")
    assert again.returncode == 0, again.stderr
    assert again.stdout == result.stdout
    assert again.stderr.count("is finished") == 2
    refused = hfpretrain(*arguments, "8")
    assert refused.returncode == 2
    assert "n_head=1 is finished, and of a recipe with another train" in refused.stderr


def test_a_sweep_that_was_stopped_goes_on(tmp_path: Path, hfpretrain: Command) -> None:
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm", "train.log_every=1", name="tiny"))
    values = ["optimizer.lr=1e-3,1e-2", "data.validation=0%"]
    command: list[str | Path] = ["-m", "hfpretrain", "sweep", file, *values, "--steps", "2000"]
    with warm.popen(command, cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "the sweep is stopped by signal 2" in said
    first, second = (Run(Path("runs/tiny-sweep") / name) for name in ("lr=1e-3", "lr=1e-2"))
    saved = list_checkpoints(first.checkpoints)[0]
    assert not second.path.exists()
    steps = int(saved.name.removeprefix("step-")) + 4

    result = hfpretrain("sweep", file, *values, "--steps", str(steps), "--json")
    assert result.returncode == 0, result.stderr
    assert f"going on from {saved}" in result.stderr
    told = json.loads(result.stdout)
    losses = [each["loss"] for each in told["runs"]]
    assert losses == sorted(losses)
    assert [each["state"] for each in told["runs"]] == ["finished", "finished"]
    assert first.report()["steps"] == second.report()["steps"] == steps
    best = told["runs"][0]["values"]["optimizer.lr"]
    assert told["command"] == f"hfpretrain train {file} optimizer.lr={best} data.validation=0%"


def test_a_sweep_pushes_nothing(tmp_path: Path) -> None:
    """Else each of its short runs would be pushed over the user's model."""
    file = tmp_path / "recipe.yaml"
    hub = "hub: {repo_id: me/model, push: checkpoints, name_by: words, license: mit}"
    file.write_text(f"objective: clm\ndata: {{sources: [{{builtin: everyday}}]}}\n{hub}\n")
    for trial in plan_sweep(file, ["optimizer.lr=1e-3,2e-3", "hub.repo_id=me/other"]):
        for recipe in (trial.recipe, load(file, trial.overrides)):
            assert recipe.hub.repo_id is None
            assert (recipe.hub.push, recipe.hub.license) == ("final", "mit")


def test_a_sweep_goes_on_where_runs_hold_the_commits_of_their_data(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("objective: clm\ndata: {sources: [{hub: org/set}]}\n")
    first, _ = trials = plan_sweep(file, ["optimizer.lr=1e-3,2e-3"])
    data = with_sources(first.recipe.data, lambda source: dataclasses.replace(source, commit="a" * 40))
    first.run.path.mkdir(parents=True)
    first.run.recipe_file.write_text(dump(dataclasses.replace(first.recipe, data=data)))
    first.run.report_file.write_text('{"state": "finished"}')
    assert plan_sweep(file, ["optimizer.lr=1e-3,2e-3"]) == trials
    file.write_text(f"objective: clm\ndata: {{sources: [{{hub: org/set, commit: {'b' * 40}}}]}}\n")
    with pytest.raises(RunError, match="is finished, and of a recipe with another data"):
        plan_sweep(file, ["optimizer.lr=1e-3,2e-3"])


def test_a_loss_that_is_no_number_is_not_the_best() -> None:
    losses = {"spoilt": float("nan"), "second": 2.0, "best": 1.0, "infinite": float("inf")}
    found = [Outcome({}, run, "finished", validation_loss=loss) for run, loss in losses.items()]
    ranked = sorted([Outcome({}, "failed", "failed"), *found], key=lambda outcome: outcome.rank)
    assert [outcome.run for outcome in ranked[:2]] == ["best", "second"]


def test_what_is_no_sweep_is_one_sentence(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, tiny_recipe(tmp_path, "clm"))
    for overrides, said in (
        (["optimizer.lr=1e-3"], "no key has several values"),
        (["optimizer.lr=1e-3,,2e-3"], "a value is empty"),
        (["optimizer.lr=1e-3,1e-3"], "a value is there twice"),
        (["optimizer.lr=1e-3,2e-3", "optimizer.lr=1,2"], "optimizer.lr is there twice"),
        (["optimizer.lr=1e-3,fast"], "optimizer.lr"),
        (["output_dir=one,two"], "output_dir has several values"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            plan_sweep(file, overrides)
