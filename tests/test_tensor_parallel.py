"""Tensor parallelism: matrices cut among neighbouring processes learn, stop, go on and end as whole ones do."""

import json
from pathlib import Path

import pytest
from several import cut_back, errors, launched
from tiny import GPT2, LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.errors import RecipeError
from hfpretrain.place import Place
from hfpretrain.recipe import Parallel, dump
from hfpretrain.run import Run

SETTINGS = [f"model={{architecture: llama, config: {LLAMA}}}", "evaluation.prompts=[the quick]"]
SETTINGS += ["train.micro_batch_size=1", "train.duration=12", "checkpoints.every=5", "checkpoints.keep=3"]
SETTINGS += ["averaging.method=ema"]


def write(folder: Path, *settings: str, name: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(dump(tiny_recipe(folder, "clm", *SETTINGS, *settings, name=name)))
    return file


def same(one: Run, other: Run, *, within: float = 1e-5) -> None:
    for single, double in zip(metrics(one), metrics(other), strict=True):
        double.pop("samples", None), single.pop("samples", None)
        assert single == pytest.approx(double, abs=within, rel=within)


@pytest.mark.parametrize(
    ("processes", "strategy", "only"), [(2, "auto", ()), (4, "fsdp", ("llama", "qwen3", "gpt_neox"))]
)
def test_every_gradient_is_that_of_the_whole_model(processes: int, strategy: str, only: tuple[str, ...]) -> None:
    """And loss, norm and updates by AdamW and Muon, accumulated over micro-batches; in bfloat16 as far as that goes."""
    script = Path(__file__).parent / "tensor_steps.py"
    done = launched(script, processes, strategy, *only, script=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == (len(only) or 7)
    for name, off, rough in found:
        assert off < 1e-5, name
        assert rough < 0.01, name


def test_a_run_learns_what_one_process_learns_and_goes_on_in_any_way(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path, "clm", *SETTINGS, name="whole")
    done = launched(write(tmp_path, "parallel.tensor=2", name="cut"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    cut = Run(tmp_path / "runs" / "cut")
    same(whole, cut)
    reports = [run.report() for run in (whole, cut)]
    assert reports[1]["parallel"] == "ddp, tensor 2"
    assert reports[0]["flops_per_token"] == reports[1]["flops_per_token"]
    assert reports[0]["averaged"] == pytest.approx(reports[1]["averaged"], rel=1e-5)
    assert [line["samples"] for line in metrics(cut) if "samples" in line]
    assert {name: each.shape for name, each in weights(whole).items()} == {
        name: each.shape for name, each in weights(cut).items()
    }
    ways = [
        (cut, 2, "parallel.tensor=2"),
        (cut, 1, "parallel.tensor=1"),
        (cut, 4, "parallel={tensor: 2, strategy: fsdp}"),
        (whole, 2, "parallel.tensor=2"),
    ]
    for number, (run, processes, setting) in enumerate(ways):
        again = cut_back(run, f"again-{number}", 10)
        done = launched(write(tmp_path, setting, name=again.path.name), processes, "--resume")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "going on from" in done.stderr
        same(run, again)
        if number == 0:
            assert same_weights(weights(cut), weights(again))


def test_groups_that_are_replicas(tmp_path: Path) -> None:
    """Two pairs without fsdp, layers computed again, Muon."""
    settings = ["train.duration=4", "optimizer.name=muon", "train.activation_checkpointing=true", "train.batch_size=6"]
    whole = tiny_run(tmp_path, "clm", *SETTINGS, *settings, name="whole")
    done = launched(write(tmp_path, *settings, "parallel.tensor=2", name="pairs"), 4)
    assert done.returncode == 0, done.stderr[-3000:]
    same(whole, Run(tmp_path / "runs" / "pairs"), within=1e-4)


def test_what_cannot_be_cut_is_one_sentence(tmp_path: Path) -> None:
    gpt2 = f"model={{architecture: gpt2, config: {GPT2}}}"
    grouped = f"model={{architecture: llama, config: {LLAMA | {'num_key_value_heads': 1}}}}"
    for settings, said in (
        ([gpt2, "parallel.tensor=2"], "no plan by which to cut the matrices of gpt2"),
        ([grouped, "parallel.tensor=2"], "the 1 key-value heads of llama do not divide by 2"),
        (["parallel.tensor=3"], "parallel.tensor: 2 processes are no groups of 3"),
    ):
        done = launched(write(tmp_path, *settings, name="refused"), 2)
        assert done.returncode != 0
        (error,) = errors(done.stderr)
        assert said in error
    with pytest.raises(RecipeError, match="shard_within"):
        tiny_recipe(tmp_path, "clm", "parallel={strategy: fsdp, tensor: 2, shard_within: 2}")
    with pytest.raises(RecipeError, match="precision"):
        tiny_recipe(tmp_path, "clm", "parallel.tensor=2", "train.precision=fp16")


def test_one_process_alone_has_nothing_to_share_out(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", *SETTINGS, "train.duration=1", "parallel.tensor=2")
    assert run.report()["parallel"] is None


def test_neighbours_are_in_one_place() -> None:
    class Processes:
        num_processes = 6

        def __init__(self, number: int) -> None:
            self.process_index = number

    places = [Place.in_run(Processes(number), Parallel(tensor=2)) for number in range(6)]
    assert [(place.number, place.of, place.member) for place in places] == [
        *((0, 3, 0), (0, 3, 1), (1, 3, 0), (1, 3, 1), (2, 3, 0), (2, 3, 1))
    ]
