"""A step whose loss is no number, or jumps, is kept from the weights, named, and counted."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny import LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.errors import Stopped, TrainingError
from hfpretrain.recipe import Recipe, Train
from hfpretrain.run import Run
from hfpretrain.training import loop
from hfpretrain.training.guard import SPIKE_STEPS, Guard
from hfpretrain.training.loop import train
from hfpretrain.training.session import open_accelerator

SETTINGS = ["tokenizer={algorithm: char}", "data.validation=0%", "checkpoints={every: 1, keep: 100}", "seed=9"]


def broken_at_one_letter(folder: Path) -> Path:
    """A model whose loss is not a number wherever the letter Q is read, which one document of the corpus holds."""
    corpus = folder / "corpus.jsonl"
    lines = [json.dumps({"text": f"the cat sleeps near river number {number}"}) for number in range(60)]
    lines[41] = json.dumps({"text": "the Quick fox"})
    corpus.write_text("\n".join(lines))
    settings = [f"model={{architecture: llama, config: {LLAMA | {'tie_word_embeddings': False}}}}", "train.duration=1"]
    run = tiny_run(folder, "clm", *SETTINGS, *settings, name="model")
    from transformers import AutoTokenizer

    letter = AutoTokenizer.from_pretrained(run.path).convert_tokens_to_ids("Q")
    broken = weights(run)
    broken["model.embed_tokens.weight"][letter] = math.nan
    save_file(broken, run.path / "model.safetensors", metadata={"format": "pt"})
    return run.path


def same_checkpoints(one: Path, other: Path) -> bool:
    """Whether weights and optimizer are equal bit for bit; what is not a number equals itself."""
    optimizers = [torch.load(path / "optimizer.bin") for path in (one, other)]
    models = [load_file(path / "model.safetensors") for path in (one, other)]
    states = [optimizer["state"][0] for optimizer in optimizers]
    return all(torch.equal(models[0][key].nan_to_num(), models[1][key].nan_to_num()) for key in models[0]) and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.mark.parametrize(("optimizer", "micro_batches"), [("adamw", 2), ("muon", 1)])
def test_a_step_that_is_no_number_is_kept_from_the_weights(tmp_path: Path, optimizer: str, micro_batches: int) -> None:
    """It stops the run and names the document; resumed with skip, it is passed over and counted.

    It is in the second block of a step, so that of two micro-batches the first is the bad one.
    """
    model = broken_at_one_letter(tmp_path)
    settings = [
        *SETTINGS,
        f"model={{from: {model}}}",
        "tokenizer={}",
        "train.duration=8",
        f"optimizer.name={optimizer}",
        f"train.micro_batch_size={4 // micro_batches}",
    ]
    recipe = tiny_recipe(tmp_path, "clm", *settings, name="stopped")
    with pytest.raises(
        TrainingError, match=r"the loss is not a finite number.*document 42 \('the Quick fox'\)"
    ) as error:
        train(recipe)
    step = int(error.value.message.split(":")[0].removeprefix("step "))
    assert "document 1 " not in error.value.message, "only what gives such a loss by itself is named"
    run = Run(Path(recipe.output_dir))
    newest = max(run.checkpoints.iterdir())
    assert newest.name == f"step-{step - 1:08d}"
    skipping = tiny_recipe(tmp_path, "clm", *settings, "train.on_nonfinite=skip", name="stopped")
    train(skipping, resume=True)
    assert same_checkpoints(newest, run.checkpoints / f"step-{step:08d}")
    assert not same_checkpoints(newest, run.checkpoints / f"step-{step + 1:08d}")
    report = run.report()
    lines = {line["step"]: line for line in metrics(run)}
    assert report["nonfinite_steps"] == sum("nonfinite_steps" in line for line in lines.values()) >= 1
    assert "loss" not in lines[step]
    assert all(math.isfinite(line["loss"]) for line in lines.values() if "loss" in line)
    whole = tiny_run(tmp_path, "clm", *settings, "train.on_nonfinite=skip", name="whole")
    assert metrics(whole) == metrics(run)


def test_more_than_three_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=1", name="first")
    broken = weights(run)
    broken["transformer.wpe.weight"][12] = math.inf
    save_file(broken, run.path / "model.safetensors", metadata={"format": "pt"})
    settings = [f"model={{from: {run.path}}}", "tokenizer=null", "train.on_nonfinite=skip"]
    with pytest.raises(TrainingError, match=r"step 4: .* and so were those of the 3 steps before"):
        tiny_run(tmp_path, "clm", *settings, name="second")


@pytest.mark.parametrize("skip", [False, True])
def test_a_jump_of_the_loss_is_said_and_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, skip: bool
) -> None:
    """One document of noise among many that are alike, met again after the loss has become steady."""
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": "the cat sat on the mat, " * (1 + number % 2)}) for number in range(330)]
    lines[40] = json.dumps({"text": "zq!xj;vk?wy:zq!xj;vk?wy:zq!xj;vk?wy:zq!xj;vk?wy"})
    corpus.write_text("\n".join(lines))
    settings = [
        *("tokenizer={algorithm: char}", "data.validation=0%", "train.duration=180", "train.batch_size=2", "seed=10"),
        *("optimizer.lr=1e-2", "evaluation.every=100%", "checkpoints.every=100%", "train.log_every=7"),
        f"train.skip_spikes={str(skip).lower()}",
    ]
    run = tiny_run(tmp_path, "clm", *settings, name="said")
    said = [record.message for record in caplog.records if "the loss jumped" in record.message]
    assert said
    assert all(("its update is left out" in sentence) == skip for sentence in said)
    assert run.report()["loss_spikes"] == len(said)
    step = int(said[0].split(":")[0].removeprefix("step "))
    assert step > SPIKE_STEPS
    recipe = tiny_recipe(tmp_path, "clm", *settings, name="again")
    for number in (step - 1, step, step + 1):
        with pytest.raises(Stopped):
            train(recipe, resume=True, stop_after=number)
        (tmp_path / f"step-{number}").mkdir()
        for file in ("model.safetensors", "optimizer.bin"):
            shutil.copy(
                run.path.with_name("again") / "checkpoints" / f"step-{number:08d}" / file, tmp_path / f"step-{number}"
            )
    assert same_checkpoints(tmp_path / f"step-{step - 1}", tmp_path / f"step-{step}") == skip
    assert not same_checkpoints(tmp_path / f"step-{step}", tmp_path / f"step-{step + 1}")


def test_what_counts_as_a_jump() -> None:
    """Six deviations above the mean of 128 losses; nothing before there are so many, and not again once it lasts."""
    guard = Guard(Train(skip_spikes=True), torch.device("cpu"), scaled=False)
    norm = torch.tensor(1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(SPIKE_STEPS - 1):
        assert guard.judge(2 + 0.1 * torch.randn((), generator=generator), norm).tolist() == [0, 0, 0]
    assert guard.judge(torch.tensor(9.0), norm).tolist() == [0, 0, 0], "too early to know"
    for _ in range(SPIKE_STEPS):
        guard.judge(2 + 0.1 * torch.randn((), generator=generator), norm)
    assert guard.judge(torch.tensor(2.5), norm).tolist() == [0, 0, 0]
    again = Guard(Train(skip_spikes=True), torch.device("cpu"), scaled=False)
    again.remember(guard.recent_losses())
    for each in (guard, again):
        assert each.judge(torch.tensor(3.0), norm).tolist() == [0, 1, 1]
        assert each.judge(torch.tensor(math.nan), norm).tolist() == [1, 0, 1]
        assert each.judge(torch.tensor(2.0), torch.tensor(math.inf)).tolist() == [1, 0, 1]
    assert sum(int(guard.judge(torch.tensor(3.0), norm)[1]) for _ in range(SPIKE_STEPS)) < 10


@pytest.mark.parametrize(("level", "small", "large"), [(2.0, 0.01, 0.2), (1e-6, 1e-8, 1e-6), (0.0, 0.0, 0.1)])
def test_a_loss_that_hardly_changes_does_not_jump(level: float, small: float, large: float) -> None:
    """Where losses are all but equal, anything is many deviations; only what is a share of the loss itself counts."""
    guard = Guard(Train(skip_spikes=True), torch.device("cpu"), scaled=False)
    norm = torch.tensor(1.0)
    for _ in range(SPIKE_STEPS):
        guard.judge(torch.tensor(level), norm)
    assert guard.judge(torch.tensor(level + small), norm).tolist() == [0, 0, 0]
    assert guard.judge(torch.tensor(level + large), norm).tolist() == [0, 1, 1]


def scale_losses(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Has runs train in fp16, whose losses are scaled, on a CPU: Accelerate offers that on a GPU alone."""

    def opened(recipe: Recipe) -> Accelerator:
        accelerator = open_accelerator(recipe)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return accelerator

    monkeypatch.setattr(loop, "open_accelerator", opened)


def test_steps_that_a_loss_scale_leaves_out_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """fp16 with a scale that is too large at first: each step with an infinite gradient halves it."""
    caplog.set_level("INFO", "hfpretrain")
    scale_losses(monkeypatch, 2.0**26)
    run = tiny_run(tmp_path, "clm", "checkpoints={every: 1, keep: 100}")
    lines = [line for line in metrics(run) if "loss" in line]
    left_out = [line["step"] for line in lines if "overflow_steps" in line]
    assert 1 <= len(left_out) < len(lines)
    for line in lines:
        assert ("gradient_norm" in line) == (line["step"] not in left_out)
        assert line.get("gradient_norm", 1.0) > 0
    steps = [run.checkpoints / f"step-{line['step']:08d}" for line in lines]
    for before, after in pairwise(steps):
        same = same_weights(weights(before), weights(after))
        assert same == (int(after.name.removeprefix("step-")) in left_out)
    assert run.report()["overflow_steps"] == len(left_out)
    said = [record.message for record in caplog.records if "too large for fp16" in record.message]
    assert len(said) == 1
    assert said[0].startswith(f"step {left_out[0]}:")


def test_a_loss_scale_that_helps_nothing_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one update would be made, and training go on to its end."""
    scale_losses(monkeypatch, 2.0**120)
    with pytest.raises(TrainingError, match=r"step 31: the gradient .* whatever the loss scale"):
        tiny_run(tmp_path, "clm", "train.duration=40")
