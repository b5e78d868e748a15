"""DeepSpeed's ZeRO: what is shared out among processes learns, stops, goes on and ends as whole models do."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from architectures import ARCHITECTURES
from safetensors.torch import load_file
from several import cut_back, launched
from test_guard import broken_at_one_letter
from test_sharding import OF, SETTINGS, same, write
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights
from transformers import AutoModelForCausalLM

from hfpretrain.errors import RecipeError
from hfpretrain.run import Run
from hfpretrain.training.launched import as_launched

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


def zero(stage: int) -> str:
    return f"parallel={{strategy: deepspeed, zero_stage: {stage}}}"


@needs_deepspeed
@pytest.mark.parametrize(("stage", "objective"), [(1, "mlm"), (2, "clm"), (3, "mlm")])
def test_a_stage_learns_what_one_process_learns_and_goes_on(tmp_path: Path, stage: int, objective: str) -> None:
    """With two micro-batches in each process, an average, two rates, and samples. A resumed run has the same bits."""
    settings = ["averaging.method=ema", "train.batch_size=8", "evaluation.prompts=['the quick [MASK]']"]
    settings += ["optimizer.lr_factors={embeddings: 0.5}", "train.micro_batch_size=2"]
    whole = tiny_run(tmp_path, objective, *OF[objective], *SETTINGS, *settings, name="whole")
    done = launched(write(tmp_path, objective, *settings, zero(stage), name="shared"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    said = (done.stdout + done.stderr).lower()
    assert said.count("deepspeed") == 1, "that it is used, and nothing of its own"
    assert "warning" not in said
    shared = Run(tmp_path / "runs" / "shared")
    assert shared.report()["parallel"] == "deepspeed"
    same(whole, shared)
    assert [line["samples"] for line in metrics(shared) if "samples" in line]
    assert shared.report()["averaged"] == pytest.approx(whole.report()["averaged"], rel=1e-5)
    for folder in ("", whole.averaged.name):
        one, two = (load_file(run.path / folder / "model.safetensors") for run in (whole, shared))
        assert one.keys() == two.keys()
        assert all((tensor - two[name]).abs().max() < 1e-5 for name, tensor in one.items())
    again = cut_back(shared, "again", 10)
    done = launched(write(tmp_path, objective, *settings, zero(stage), name="again"), 2, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from" in done.stderr
    assert "warning" not in done.stderr.lower()
    same(shared, again)
    assert same_weights(weights(shared), weights(again))
    assert same_weights(*(load_file(run.averaged / "model.safetensors") for run in (shared, again)))


@needs_deepspeed
def test_from_one_strategy_to_the_other(tmp_path: Path) -> None:
    """One process, ZeRO in two, FSDP2, ZeRO in four and in two, one process: each goes on from the one before."""
    whole = tiny_run(tmp_path, "clm", *OF["clm"], *SETTINGS, "checkpoints.every=2", "checkpoints.keep=6", name="whole")
    run = whole
    ways = ((2, zero(3), 2), (2, "parallel.strategy=fsdp", 4), (4, zero(2), 6), (2, zero(1), 8))
    for number, (processes, parallel, step) in enumerate(ways):
        run = cut_back(run, f"run-{number}", step)
        file = write(tmp_path, "clm", "checkpoints.every=2", "checkpoints.keep=6", parallel, name=run.path.name)
        done = launched(file, processes, "--resume")
        assert done.returncode == 0, done.stderr[-3000:]
        same(whole, run)
    assert isinstance(AutoModelForCausalLM.from_pretrained(run.checkpoints / "step-00000010"), object)
    back = cut_back(run, "back", 10)
    tiny_run(tmp_path, "clm", *OF["clm"], *SETTINGS, "checkpoints.every=2", resume=True, name="back")
    same(whole, back)


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_that_is_no_number_is_left_out(tmp_path: Path, stage: int) -> None:
    model = broken_at_one_letter(tmp_path)
    settings = [f"model={{from: {model}}}", "tokenizer={}", "data.validation=0%", "train.duration=8", "seed=9"]
    settings += ["train.on_nonfinite=skip", "checkpoints={every: 50%, keep: 2}"]
    whole = tiny_run(tmp_path, "clm", *settings, name="whole")
    done = launched(write(tmp_path, "clm", *settings, zero(stage), name="shared"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = Run(tmp_path / "runs" / "shared")
    same(whole, shared)
    assert 1 <= shared.report()["nonfinite_steps"] < 4
    assert all(math.isfinite(line["loss"]) for line in metrics(shared) if "loss" in line)
    assert "passed over, 1 in a row; documents of that step: " in done.stderr


@needs_deepspeed
def test_every_architecture_by_every_stage() -> None:
    """Loss, gradients and weights of a step are those of the whole model; in bfloat16 as far as that goes."""
    done = launched(Path(__file__).parent / "zero_architectures.py", 2, script=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    ways = [[1, "fp32"], [2, "fp32"], [3, "fp32"], [3, "bf16"]]
    assert [each[:3] for each in found] == [[name, *way] for name, _ in ARCHITECTURES for way in ways]
    for name, stage, how, *off in found:
        within = (1e-6, 1e-5, 1e-4) if how == "fp32" else (1e-3, 0.05, 0.0021)
        assert all(each < most for each, most in zip(off, within, strict=True)), (name, stage, how, off)


@needs_deepspeed
def test_bfloat16(tmp_path: Path) -> None:
    """Stage 1 computes as ddp does; the others near it, in weights that are rounded from what is kept and saved."""
    settings = ["train.precision=bf16", "train.duration=6"]
    for name, parallel in (("ddp", "parallel.strategy=ddp"), ("one", zero(1)), ("two", zero(2))):
        done = launched(write(tmp_path, "clm", *settings, parallel, name=name), 2)
        assert done.returncode == 0, done.stderr[-3000:]
    ddp, one, two = (Run(tmp_path / "runs" / name) for name in ("ddp", "one", "two"))
    same(ddp, one)
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in (ddp, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    kept = weights(two)["model.embed_tokens.weight"]
    assert not kept.equal(kept.bfloat16().float())
    assert json.loads((two.path / "config.json").read_text())["dtype"] == "float32"


@needs_deepspeed
def test_what_accelerate_was_configured_for(tmp_path: Path) -> None:
    """As `accelerate launch` tells it to the processes that it starts."""
    file = write(tmp_path, "clm", "train.duration=2", name="configured")
    stage = {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
    done = launched(file, 2, script=False, ACCELERATE_USE_DEEPSPEED="true", **stage)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "asks for offloading, which is not there" in done.stderr
    run = Run(tmp_path / "runs" / "configured")
    assert run.report()["parallel"] == "deepspeed"
    assert "zero_stage: 3" in run.recipe_file.read_text()


def test_without_it_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    recipe = tiny_recipe(tmp_path, "clm", zero(2))
    assert as_launched(recipe) == recipe, "one process has nothing to share out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"parallel\.strategy: deepspeed is not installed") as error:
        as_launched(recipe)
    assert 'pip install "hfpretrain[deepspeed]"' in str(error.value)


def test_one_process_trains_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hfpretrain")
    run = tiny_run(tmp_path, "clm", "train.duration=1", zero(3))
    assert "parallel: one process has nothing to share out" in caplog.messages
    assert run.report()["parallel"] is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.precision=fp16", "fp16's loss scaling does not go with parallel.strategy: deepspeed"),
        ("optimizer.name=muon", "muon needs whole matrices"),
        ("train.compile=true", "true does not go with parallel.strategy: deepspeed"),
        ("parallel.shard_within=2", "shard_within is for fsdp, and the strategy is deepspeed"),
        ("parallel.zero_stage=4", "at most 3"),
    ],
)
def test_what_does_not_go_with_it(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tmp_path, "clm", zero(2), setting)
