"""FSDP2: weights shared out among processes learn, evaluate, stop, go on and end as whole ones do."""

import json
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file
from several import cut_back, launched
from tiny import LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights
from transformers import AutoModelForCausalLM

from hfpretrain import CausalLM, load
from hfpretrain.recipe import dump
from hfpretrain.run import Run

BERT = LLAMA | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
OF = {
    "clm": [f"model={{architecture: llama, config: {LLAMA}}}"],
    "mlm": [f"model={{architecture: bert, config: {BERT}}}"],
}
SETTINGS = ["train.micro_batch_size=1", "train.duration=12", "checkpoints.every=5", "checkpoints.keep=3"]


def write(folder: Path, objective: str, *settings: str, name: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(dump(tiny_recipe(folder, objective, *OF[objective], *SETTINGS, *settings, name=name)))
    return file


def same(one: Run, other: Run, *, within: float = 1e-5, norms: float | None = None) -> None:
    """`norms`, of gradients, may differ by more: Muon makes small singular values as large as others, and rounding."""
    for single, double in zip(metrics(one), metrics(other), strict=True):
        double.pop("samples", None), single.pop("samples", None)
        if norms is not None and "gradient_norm" in single:
            assert single.pop("gradient_norm") == pytest.approx(double.pop("gradient_norm"), rel=norms)
        assert single == pytest.approx(double, abs=within, rel=within)


def test_shares_learn_what_a_whole_model_learns_and_go_on_in_any_number(tmp_path: Path) -> None:
    shown = "evaluation.prompts=[the quick]"
    whole = tiny_run(tmp_path, "clm", *OF["clm"], *SETTINGS, shown, name="whole")
    done = launched(write(tmp_path, "clm", shown, "parallel.strategy=fsdp", name="shared"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = Run(tmp_path / "runs" / "shared")
    assert ", 2 processes, fsdp\n" in done.stderr
    assert shared.report()["parallel"] == "fsdp"
    same(whole, shared)
    assert [line["samples"] for line in metrics(shared) if "samples" in line]
    # The model is whole, and a checkpoint is one too, with everyone's share of the optimizer's state.
    llm = load(shared.path)
    assert isinstance(llm, CausalLM)
    assert isinstance(llm.generate("the quick", max_new_tokens=2), str)
    checkpoint = shared.checkpoints / "step-00000010"
    assert isinstance(AutoModelForCausalLM.from_pretrained(checkpoint), torch.nn.Module)
    assert len(list((checkpoint / "optimizer").glob("*.safetensors"))) == 2
    for processes in (2, 1, 4):
        again = cut_back(shared, f"again-{processes}", 10)
        file = write(tmp_path, "clm", shown, "parallel.strategy=fsdp", name=again.path.name)
        done = launched(file, processes, "--resume")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "going on from" in done.stderr
        same(shared, again)
        if processes == 2:
            assert same_weights(weights(shared), weights(again))


def test_masked_models_with_muon_and_an_average(tmp_path: Path) -> None:
    """An update of Muon needs the whole matrix; the average is kept in shares. A whole run in two processes goes on."""
    settings = ["optimizer.name=muon", "averaging.method=ema", "parallel.strategy=fsdp"]
    whole = write(tmp_path, "mlm", *settings, "parallel.strategy=ddp", name="whole")
    assert launched(whole, 2).returncode == 0
    one = Run(tmp_path / "runs" / "whole")
    done = launched(write(tmp_path, "mlm", *settings, name="shared"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    two = Run(tmp_path / "runs" / "shared")
    same(one, two, within=1e-4, norms=5e-4)
    averages = [load_file(run.averaged / "model.safetensors") for run in (one, two)]
    assert averages[0].keys() == averages[1].keys()
    for name, tensor in averages[0].items():
        assert torch.allclose(tensor, averages[1][name], atol=1e-3)
        assert not torch.equal(tensor, weights(one)[name])
    # And from each way to train to the other.
    for run, strategy, processes in ((one, "fsdp", 2), (two, "ddp", 1)):
        again = cut_back(run, f"{strategy}-again", 10)
        changed = [*settings, f"parallel.strategy={strategy}"]
        done = launched(write(tmp_path, "mlm", *changed, name=again.path.name), processes, "--resume")
        assert done.returncode == 0, done.stderr[-3000:]
        same(run, again, within=1e-4, norms=5e-4)


def test_a_tied_average_and_starting_from_another_run_s_optimizer(tmp_path: Path) -> None:
    """Tied weights are saved once, and the average's are its own. A checkpoint starts another run, shared out."""
    tied = f"model={{architecture: gpt_neox, config: {LLAMA | {'tie_word_embeddings': True}}}}"
    settings = [tied, "averaging.method=ema", "train.duration=6"]
    for strategy in ("ddp", "fsdp"):
        file = write(tmp_path, "clm", *settings, f"parallel.strategy={strategy}", name=strategy)
        done = launched(file, 2)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Run(tmp_path / "runs" / strategy) for strategy in ("ddp", "fsdp"))
    for of in ("path", "averaged"):
        whole, shared = (load_file(getattr(run, of) / "model.safetensors") for run in (one, two))
        assert whole.keys() == shared.keys()
        assert all(torch.allclose(tensor, shared[name], atol=1e-4) for name, tensor in whole.items())
    assert weights(two).keys() == load_file(two.checkpoints / "step-00000005" / "model.safetensors").keys()
    for start in (one, two):  # of whole tensors, and of shares
        name = f"from-{start.path.name}"
        place = start.checkpoints / "step-00000005"
        given = [f"model={{from: {place}}}", "optimizer.from_checkpoint=true", "parallel.strategy=fsdp"]
        recipe = tiny_recipe(tmp_path, "clm", *SETTINGS, "train.duration=2", "tokenizer={}", *given, name=name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(dump(recipe))
        done = launched(file, 2)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "with its optimizer's state" in done.stderr
    same(*(Run(tmp_path / "runs" / f"from-{run.path.name}") for run in (one, two)), within=1e-4)


def test_a_share_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """The disk is full for the second process; all end, and nothing is left of the checkpoint."""
    hook = tmp_path / "hook.py"
    hook.write_text("""
import errno, os, sys
def full(event, arguments):
    if event == "open" and "/optimizer/" in str(arguments[0]) and "step-00000010" in str(arguments[0]):
        raise OSError(errno.ENOSPC, "No space left on device")
if os.environ.get("RANK") == "1":
    sys.addaudithook(full)
""")
    file = write(tmp_path, "clm", "parallel.strategy=fsdp", name="full")
    done = launched(file, 2, HFPRETRAIN_TEST_HOOK=str(hook))
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr[-3000:]
    assert "step-00000010 could not be written" in said[0]
    assert "No space left on device" in said[0]
    run = Run(tmp_path / "runs" / "full")
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000005"]
    done = launched(file, 2, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_architecture_can_be_shared_out() -> None:
    """Loss, gradients and weights of a step are those of the whole model, by the shortcuts that are proven for it.

    In bfloat16 as far as that goes; AdamW's first step only has the gradient's sign.
    """
    done = launched(Path(__file__).parent / "sharded_architectures.py", 2, script=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each[:2] for each in found] == [[name, how] for name, _ in ARCHITECTURES for how in ("fp32", "bf16")]
    for name, how, *off in found:
        within = (1e-6, 1e-5, 1e-4) if how == "fp32" else (1e-3, 0.05, 0.0021)
        assert all(each < most for each, most in zip(off, within, strict=True)), (name, how, off)


def test_replicas_of_shares(tmp_path: Path) -> None:
    """HSDP: two pairs of processes."""
    settings = ["parallel={strategy: fsdp, shard_within: 2, reshard_after_forward: false}", "train.duration=4"]
    settings += ["train.activation_checkpointing=true", "train.batch_size=8"]  # which accumulates
    whole = tiny_run(tmp_path, "clm", *OF["clm"], *SETTINGS, "train.duration=4", "train.batch_size=8", name="whole")
    done = launched(write(tmp_path, "clm", *settings, name="shared"), 4)
    assert done.returncode == 0, done.stderr[-3000:]
    same(whole, Run(tmp_path / "runs" / "shared"))
    done = launched(tmp_path / "shared.yaml", 2, "parallel.shard_within=3", "output_dir=other")
    assert "error: parallel.shard_within: 2 processes are no groups of 3" in done.stderr


def test_what_accelerate_was_configured_for(tmp_path: Path) -> None:
    """As `accelerate launch` tells it to the processes that it starts."""
    file = write(tmp_path, "clm", "train.duration=2", name="configured")
    done = launched(file, 2, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_RESHARD_AFTER_FORWARD="false")
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run(tmp_path / "runs" / "configured")
    assert run.report()["parallel"] == "fsdp"
    assert "reshard_after_forward: false" in run.recipe_file.read_text()
    asked = write(tmp_path, "clm", "train.duration=1", "parallel.strategy=ddp", name="asked")
    assert launched(asked, 2, ACCELERATE_USE_FSDP="true").returncode == 0
    assert Run(tmp_path / "runs" / "asked").report()["parallel"] == "ddp"
