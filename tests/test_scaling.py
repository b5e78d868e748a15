"""Plans for machines that are not at hand: counts against known models, memory against what a real model keeps, time by
hand, and what a user sees of `check --gpus`."""

import dataclasses
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import GPT2, tiny_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from hfpretrain.check_gpus import Planned, plan_on
from hfpretrain.chips import CHIPS, chip_called, chip_of
from hfpretrain.errors import UserError
from hfpretrain.modeling.footprint import Footprint, footprint
from hfpretrain.recipe import Parallel, from_mapping, to_mapping
from hfpretrain.run import Run
from hfpretrain.scaling import Cluster, Job, best, memory_of, plans, seconds_of
from hfpretrain.training.estimate import _saved_bytes
from hfpretrain.training.optimizer import orthogonal
from hfpretrain.training.session import open_accelerator, prepare_session

SEVEN_BILLION = """\
objective: clm
model:
  architecture: llama
  config: {hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32, intermediate_size: 11008}
tokenizer: {algorithm: bpe, vocab_size: 32000}
data: {sources: [{files: nowhere.txt}], block_size: 4096}
train: {duration: 100B tokens, batch_size: 1024}
"""


def outline(model_type: str, objective: str = "clm", **settings: Any) -> PreTrainedModel:
    auto = AutoModelForCausalLM if objective == "clm" else AutoModelForMaskedLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(AutoConfig.for_model(model_type, **settings))
    return model


def again(model: Any) -> PreTrainedModel:
    """An outline of a model that is there."""
    with torch.device("meta"):
        made: PreTrainedModel = type(model)(model.config)
    return made


# Counts


@pytest.mark.parametrize(
    ("model_type", "objective", "block_size", "parameters"),
    [("llama", "clm", 512, 6_738_415_616), ("gpt2", "clm", 1024, 124_439_808), ("bert", "mlm", 512, 109_514_298)],
)
def test_known_models_have_their_numbers(model_type: str, objective: str, block_size: int, parameters: int) -> None:
    """Llama 2 7B, GPT-2 small and BERT base with its head, which are these architectures' defaults."""
    model = outline(model_type, objective)
    found = footprint(model, block_size=block_size)
    config = model.config
    assert found.parameters == parameters
    assert found.layers == config.num_hidden_layers
    assert found.outside + sum(map(_numbers, _layers(model))) == parameters
    # 6 for each weight that multiplies, the head among them, and 12 for each layer, unit and position.
    multiplies = sum(p.numel() for layer in _layers(model) for p in layer.parameters() if p.ndim == 2)
    multiplies += config.vocab_size * config.hidden_size + (config.hidden_size**2 if objective == "mlm" else 0)
    expected = 6 * multiplies + 12 * config.num_hidden_layers * config.hidden_size * block_size
    assert found.flops_per_token == pytest.approx(expected, rel=1e-3)  # rotations, and the head once more for each row


def _layers(model: PreTrainedModel) -> Any:
    return next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) > 11)


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Memory


KINDS = {
    "llama": ("clm", "{hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2}"),
    "gpt2": ("clm", str(GPT2 | {"n_layer": 3})),
    "bert": ("mlm", "{hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 128}"),
    "modernbert": ("mlm", "{hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 96}"),
}


@pytest.mark.parametrize(("packing", "precision"), [("concat", "fp32"), ("documents", "bf16")])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_that_a_real_model_keeps(tmp_path: Path, kind: str, packing: str, precision: str) -> None:
    """Counted without numbers, against the tensors that autograd keeps of a real micro-batch on this machine."""
    objective, config = KINDS[kind]
    settings = [f"model={{architecture: {kind}, config: {config}}}", f"data.packing={packing}"]
    settings += [f"train.precision={precision}", "data.block_size=64", "train.micro_batch_size=4"]
    recipe = tiny_recipe(tmp_path, objective, *settings)
    session = prepare_session(recipe, Run(tmp_path / "none"), open_accelerator(recipe))
    assert session.facts["shortcuts"] != "none"
    session.passes = nullcontext()  # as on a GPU, which is what is planned for
    real = _saved_bytes(session)
    model: Any = session.model
    found = footprint(
        again(model),
        block_size=64,
        half=precision == "bf16",
        targets=1.0 if objective == "clm" else 0.15,
        documents=packing == "documents",
        fused_attention=False,
    )
    assert found.counted
    assert found.parameters == session.facts["parameters"]
    counted = 4 * found.kept + found.copies + 4 * model.get_output_embeddings().weight.numel()
    assert counted == pytest.approx(real, rel=0.2)
    assert found.flops_per_token == pytest.approx(session.facts["flops_per_token"], rel=0.1)


def test_recomputed_layers_keep_what_a_real_model_with_checkpointing_keeps(tmp_path: Path) -> None:
    settings = [f"model={{architecture: llama, config: {KINDS['llama'][1]}}}", "data.block_size=64"]
    settings += ["train.micro_batch_size=4", "train.activation_checkpointing=true", "data.packing=concat"]
    recipe = tiny_recipe(tmp_path, "clm", *settings)
    session = prepare_session(recipe, Run(tmp_path / "none"), open_accelerator(recipe))
    session.passes = nullcontext()  # as on a GPU, which is what is planned for
    real = _saved_bytes(session)
    model: Any = session.model
    found = footprint(again(model), block_size=64, half=False)
    kept = found.activations(4, checkpointing=True) - 4 * found.kept_in_layers // found.layers
    assert kept + 4 * model.get_output_embeddings().weight.numel() == pytest.approx(real, rel=0.2)
    assert found.activations(4, checkpointing=True) < found.activations(4, checkpointing=False)


def test_a_sharded_model_keeps_less() -> None:
    """All of it is computed in half precision, the residual stream too, which autocast leaves in float32."""
    found = footprint(outline("llama", num_hidden_layers=2), block_size=256)
    for checkpointing in (False, True):
        whole, sharded = (found.activations(2, checkpointing=checkpointing, sharded=each) for each in (False, True))
        assert 0.5 * whole <= sharded < whole
    assert found.throughout is not None
    assert found.throughout[2] == found.borders / 2


def test_activations_of_gpt_are_near_the_published_formula() -> None:
    """34 bytes per token, unit and layer (Korthikanti et al. 2022), with dropout as GPT-2 has it. Here the residual
    stream is float32, and GPT-2's GELU is written as several operations, each of which keeps what it saw."""
    found = footprint(outline("gpt2"), block_size=1024)
    each = found.kept_in_layers / (1024 * 768 * 12)
    assert 34 <= each <= 2 * 34


# Arithmetic


def small(**settings: Any) -> Footprint:
    numbers: dict[str, Any] = {
        "parameters": 1000,
        "matrices": 800,
        "largest_group": 400,
        "layers": 4,
        "largest_layer": 200,
        "outside": 200,
        "flops_per_token": 6000.0,
        "in_layers": 0.9,
        "copies": 2000,
        "kept": 100,
        "kept_in_layers": 80,
        "borders": 8,
        "loss": 50,
        "can_checkpoint": True,
    }
    return Footprint(**numbers | settings)


def test_memory_by_hand() -> None:
    model, job = small(), Job(batch_size=16, block_size=8)
    one = memory_of(model, job, shards=1, copies=1, blocks=2, checkpointing=False, libraries=0)
    assert (one.weights, one.gradients, one.optimizer, one.copies, one.gathered) == (4000, 4000, 8000, 2000, 0)
    assert one.activations == 2 * (100 + 20)
    assert one.total == 18000 + 240 + 50
    several = memory_of(model, job, shards=1, copies=4, blocks=2, checkpointing=True, libraries=0)
    assert several.gathered == 4000  # the buckets of ddp
    assert several.activations == 2 * (20 + 8 + 20)
    sharded = memory_of(model, job, shards=4, copies=1, blocks=2, checkpointing=False, libraries=0)
    assert (sharded.weights, sharded.gradients, sharded.optimizer, sharded.copies) == (1000, 1000, 2000, 0)
    assert sharded.gathered == 2 * (400 + 200) + 6 * 200
    by_muon = dataclasses.replace(job, optimizer="muon")
    muon = memory_of(model, by_muon, shards=1, copies=1, blocks=2, checkpointing=False, libraries=0)
    assert muon.optimizer == 4 * 800 + 8 * 200
    assert muon.other == 14 * 400 - 290
    # Sharded, each GPU has all matrices of a shape whole, as Muon's step stacks them.
    muon = memory_of(model, by_muon, shards=4, copies=1, blocks=2, checkpointing=False, libraries=0)
    assert muon.optimizer == (4 * 800 + 8 * 200) / 4
    assert muon.other == 14 * 400 - 290 - (2 * (400 + 200) + 6 * 200)


def test_time_by_hand() -> None:
    """Two nodes of four: the ring of eight crosses between nodes over four network cards at once."""
    chip = dataclasses.replace(chip_called("h100"), bf16=1e-6, bandwidth=1e-6, link=1e-3, network=8e-3)
    cluster = Cluster(chip=chip, gpus=8, per_node=4, network=8e-3, mfu=0.5)
    model, job = small(), Job(batch_size=16, block_size=8)
    ddp = seconds_of(model, job, cluster, shards=1, blocks=1, checkpointing=False)
    assert ddp.compute == pytest.approx(6000 * 16 * 8 / 8 / 0.5e6)
    assert ddp.memory == pytest.approx(2 * 18 * 1000 / 1e6)
    assert ddp.update == pytest.approx(40 * 1000 / 1e6)
    sent = 2 * 7 / 8 * 4000
    assert (ddp.link, ddp.network) == pytest.approx((sent / 1e6, sent / 4 / 1e6))
    fsdp = seconds_of(model, job, cluster, shards=8, blocks=1, checkpointing=True)
    assert fsdp.compute == pytest.approx(1.3 * ddp.compute)
    sent = 2 * 7 / 8 * 8000  # two micro-batches: gathered twice in half precision, scattered once in float32
    assert (fsdp.link, fsdp.network) == pytest.approx((sent / 1e6, sent / 4 / 1e6))
    hybrid = seconds_of(model, job, cluster, shards=4, blocks=2, checkpointing=False)
    assert hybrid.link == pytest.approx(3 / 4 * 8000 / 1e6)
    assert hybrid.network == pytest.approx(2 * 1 / 2 * 1000 / 1e6)
    assert hybrid.step == max(hybrid.compute, hybrid.memory, hybrid.link, hybrid.network) + hybrid.update
    by_muon = dataclasses.replace(job, optimizer="muon")
    orthogonal = small(orthogonal=3e6)  # by each GPU, of all matrices, whether they are sharded or not
    for shards in (1, 8):
        muon = seconds_of(orthogonal, by_muon, cluster, shards=shards, blocks=1, checkpointing=False)
        assert muon.update == pytest.approx(40 * 1000 / shards / 1e6 + 3e6 / 0.5e6)
    assert seconds_of(orthogonal, job, cluster, shards=1, blocks=1, checkpointing=False).update == ddp.update
    assert dataclasses.replace(muon, compute=1.0).bound == "update"
    alone = Cluster(chip=chip, gpus=1, per_node=1, network=8e-3)
    assert seconds_of(model, job, alone, shards=1, blocks=1, checkpointing=False).network == 0


def test_the_fastest_that_fits_is_taken_and_of_equals_the_simplest() -> None:
    cluster = Cluster(chip=chip_called("h100"), gpus=16, per_node=8, network=400)
    job = Job(batch_size=64, block_size=8)
    found = plans(small(flops_per_token=6e9), job, cluster)
    assert [plan.name for plan in found] == [
        *("ddp", "ddp, checkpointing", "hybrid", "hybrid, checkpointing", "fsdp", "fsdp, checkpointing")
    ]
    taken = best(found)
    assert taken is not None
    assert (taken.name, taken.micro_batch_size) == ("ddp", 4)
    assert not any("parallel" in each for each in taken.overrides())
    large = small(parameters=7_000_000_000, largest_layer=200_000_000, copies=14_000_000_000, flops_per_token=6e9)
    taken = best(plans(large, job, cluster))
    assert taken is not None
    assert taken.overrides()[0] == "parallel.strategy=fsdp"
    assert best(plans(small(parameters=10**13), job, cluster)) is None


# Chips


def test_chips_are_known_by_their_drivers_names_and_by_peoples() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA H200": "h200",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "NVIDIA A10G": "a10g",
        "NVIDIA GeForce RTX 4090": "rtx-4090",
        "AMD Instinct MI300X": "mi300x",
    }
    for device, name in names.items():
        chip = chip_of(device)
        assert chip is not None
        assert chip.name == name
    assert chip_of("NVIDIA Quadro") is None
    assert chip_called("RTX 4090") == chip_called("rtx-4090")
    assert chip_called("H100").memory == 80
    for chip in CHIPS:
        assert chip.fp32 <= chip.tf32 <= chip.bf16
    with pytest.raises(UserError, match=r"did you mean .*a100-80 or a100-40\? known are b200, "):
        chip_called("A100")
    with pytest.raises(UserError, match="hint: known are b200, "):
        chip_called("")


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_parts_and_variants_of_a_chip_are_not_that_chip(device: str) -> None:
    """Their rate is measured then."""
    assert chip_of(device) is None


def test_cards_have_the_links_of_cards() -> None:
    """The same silicon on a card has no NVLink between all of a node, and may be slower."""
    cards = {
        "NVIDIA A100 80GB PCIe": ("a100-80-pcie", 80),
        "NVIDIA A100-PCIE-40GB": ("a100-40-pcie", 40),
        "NVIDIA H200 NVL": ("h200-nvl", 141),
    }
    for device, (name, memory) in cards.items():
        chip = chip_of(device)
        assert chip is not None
        assert (chip.name, chip.memory) == (name, memory)
        assert chip.link_name.startswith("PCIe")
        assert chip.link < chip_called(name.removesuffix("-pcie").removesuffix("-nvl")).link
    assert chip_called("h200-nvl").bf16 == 835


# The recipe's own settings


def small_plan(gpus: int = 16, gpu: str = "h100", optimizer: str = "adamw", **sections: Any) -> Planned:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    mapping = {
        "objective": "clm",
        "model": {"architecture": "llama", "config": config},
        "data": {"sources": [{"files": "nowhere.txt"}], "block_size": 64},
        "train": {"duration": "100 steps", "batch_size": 64},
        "optimizer": {"name": optimizer},
    }
    return plan_on(from_mapping(mapping | sections), gpus=gpus, gpu=gpu)


def settings_of(planned: Planned) -> Parallel:
    """What the recipe says of `parallel` after what the plan says to set, without the shell's quotes."""
    mapping = to_mapping(planned.recipe)
    return from_mapping(mapping, planned.as_json()["take"]["set"]).parallel


def test_muons_operations_are_those_of_its_five_steps() -> None:
    planned = small_plan(optimizer="muon")
    found: list[int] = []
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        for layer in (each for each in _layers_of(planned) for each in each.parameters()):
            if layer.ndim == 2:
                orthogonal(layer[None], torch.bfloat16)
                found.append(layer.numel())
    assert planned.model.matrices == sum(found)
    assert planned.model.orthogonal == counter.get_total_flops()


def _layers_of(planned: Planned) -> Any:
    config = planned.recipe.model.config
    return outline("llama", vocab_size=planned.words, **config).model.layers


def test_muon_of_seven_billion_does_not_fit_on_40_gb_however_it_is_sharded() -> None:
    """The gate and up matrices of 32 layers are 2.9 billion numbers, of 14 bytes each while Muon works on them."""
    recipe = from_mapping(yaml.safe_load(SEVEN_BILLION), ["optimizer.name=muon"])
    planned = plan_on(recipe, gpu="a100-40", gpus=64)
    assert best(planned.plans) is None
    assert "nothing fits" in str(planned)
    by_adamw = dataclasses.replace(planned.job, optimizer="adamw")
    assert best(plans(planned.model, by_adamw, planned.cluster)) is not None


def test_with_tensor_parallelism_groups_share_out_the_blocks() -> None:
    planned = small_plan(parallel={"tensor": 8}, train={"duration": "100 steps", "batch_size": 24}, gpus=64)
    (note,) = planned.notes
    assert note.startswith("parallel.tensor 8 is not planned: all else here is without it, and for steps of 64 blocks")
    assert planned.job.tokens == 100 * 24 * 64
    assert [plan.name for plan in planned.plans if not plan.checkpointing] == ["ddp", "fsdp"]
    assert "shard_within" not in str(planned)
    assert settings_of(planned).tensor == 8
    with pytest.raises(UserError, match=r"4 blocks do not divide by 8 groups of 8 GPUs\n.*train.batch_size=8"):
        small_plan(parallel={"tensor": 8}, train={"batch_size": 4}, gpus=64)
    with pytest.raises(UserError, match="16 GPUs are no groups of 3"):
        small_plan(parallel={"tensor": 3})


@pytest.mark.parametrize(
    ("stage", "precision", "each"), [(1, "auto", 8.75), (2, "auto", 5), (3, "auto", 1.125), (3, "fp32", 1)]
)
def test_of_deepspeed_what_is_known_is_said(stage: int, precision: str, each: float) -> None:
    """And what to set makes a recipe that holds: zero_stage does not go with fsdp."""
    train = {"duration": "100 steps", "batch_size": 64, "precision": precision}
    planned = small_plan(parallel={"strategy": "deepspeed", "zero_stage": stage}, train=train)
    (note,) = planned.notes
    assert f"deepspeed is not planned: of each parameter a process of 16 keeps {each:.3g} bytes" in note
    within = 8 if planned.as_json()["take"]["strategy"] == "hybrid" else None
    assert settings_of(planned) == Parallel(strategy="fsdp", shard_within=within)
    assert "'parallel={strategy: fsdp" in str(planned)


def test_what_to_set_takes_the_place_of_other_settings() -> None:
    planned = small_plan(gpus=1, parallel={"strategy": "fsdp", "shard_within": 4})
    assert settings_of(planned) == Parallel(strategy="ddp")


def test_the_first_batch_of_a_ramp_has_to_divide() -> None:
    """As in training; the last is a multiple of it."""
    ramp = {"batch_size": {"from": 32, "to": 1024, "over": "50 steps"}, "duration": "100 steps"}
    with pytest.raises(UserError, match=r"32 blocks do not divide by 64 GPUs\n.*train.batch_size.from=64"):
        small_plan(gpus=64, train=ramp)
    assert small_plan(gpus=32, train=ramp).job.batch_size == 1024


@pytest.mark.parametrize("method", ["ema", "checkpoints"])
def test_an_average_is_kept_beside_the_weights(method: str) -> None:
    without, planned = small_plan(), small_plan(averaging={"method": method})
    assert planned.plans[0].memory.weights == 2 * without.plans[0].memory.weights


# What a user sees


MEASURED = """
import resource, sys
from hfpretrain.cli import main
try:
    main()
finally:
    print("MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def test_seven_billion_parameters_are_planned_on_a_small_machine(tmp_path: Path) -> None:
    """Without the data, which is nowhere, and without their 27 GB of weights."""
    (tmp_path / "seven.yaml").write_text(SEVEN_BILLION)
    command = [sys.executable, "-c", MEASURED, "check", "seven.yaml", "--gpus", "64", "--gpu", "h100"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 2000
    lines = done.stdout.splitlines()
    assert "6.74B parameters (6738415616)" in lines[1]
    rows = {line.split("  ")[0]: line for line in lines if line.endswith(("fit", "fits"))}
    assert [name for name, line in rows.items() if line.endswith(" fits")] == [
        *("hybrid", "hybrid, checkpointing", "fsdp", "fsdp, checkpointing")
    ]
    assert rows["ddp"].endswith("of 80: does not fit")
    (taken,) = (line for line in lines if line.startswith("take"))
    assert "parallel.strategy=fsdp" in taken


def test_the_plan_as_json(tmp_path: Path, hfpretrain: Any) -> None:
    (tmp_path / "seven.yaml").write_text(SEVEN_BILLION)
    options = ["--gpus", "64", "--gpu", "A100-80", "--network", "100", "--mfu", "0.5", "--json"]
    smaller = ["train.activation_checkpointing=true", "model.config.num_hidden_layers=2"]
    done = hfpretrain("check", "seven.yaml", *smaller, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"]["parameters"] == 6738415616 - 30 * 202383360
    cluster = told["cluster"]
    assert (cluster["nodes"], cluster["chip"]["name"], cluster["network"]) == (8, "a100-80", 100)
    assert [plan["strategy"] for plan in told["plans"]] == ["ddp", "hybrid", "fsdp"]
    assert all(plan["checkpointing"] for plan in told["plans"])
    taken = told["take"]
    assert taken["fits"]
    assert taken["days"] == pytest.approx(1e11 / taken["tokens_per_second"] / 86400)
    # No faster than the chips: 64 x 312e12 operations a second at half of that, a third of the layers' again.
    assert taken["tokens_per_second"] < 64 * 312e12 * 0.5 / (told["model"]["flops_per_token"] * 1.2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gpus", "64", "--gpu", "h10"], "error: --gpu h10: no such chip is known\n  hint: did you mean h100"),
        (["--gpus", "48"], "train.batch_size: 1024 blocks do not divide by 48 GPUs\n  hint: set a multiple of 48"),
        (["--gpus", "12"], "--gpus 12 do not make whole nodes of 8"),
        (["--gpu", "h100"], "--gpu goes with --gpus"),
        (["--json"], "--json goes with --gpus"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    tmp_path: Path, hfpretrain: Any, options: list[str], sentence: str
) -> None:
    (tmp_path / "seven.yaml").write_text(SEVEN_BILLION)
    done = hfpretrain("check", "seven.yaml", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_what_cannot_be_followed_without_numbers_is_said() -> None:
    """Experts are chosen by numbers."""
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    data = {"sources": [{"files": "nowhere.txt"}], "block_size": 64}
    mapping = {"objective": "clm", "model": {"architecture": "mixtral", "config": config}, "data": data}
    planned = plan_on(from_mapping(mapping), gpus=1, gpu="l4")
    assert not planned.model.counted
    assert planned.model.kept_in_layers == 34 * 64 * 64 * 2
    assert any("cannot be followed without numbers" in note for note in planned.notes)
    assert "cannot be followed" in str(planned)


def test_durations_that_follow_from_the_recipe() -> None:
    def tokens(duration: str) -> float | None:
        data = {"sources": [{"files": "nowhere.txt"}], "block_size": 64}
        mapping = {"objective": "mlm", "data": data, "train": {"duration": duration, "batch_size": 16}}
        planned = plan_on(from_mapping(mapping), gpus=8, gpu="l4")
        assert bool(planned.notes) == (planned.job.tokens is None)
        return planned.job.tokens

    assert tokens("50 steps") == 50 * 16 * 64
    assert tokens("3M tokens") == 3e6
    assert tokens("3 epochs") is None
    assert tokens("10 minutes") is None
    each = tokens("1 tokens per parameter")
    assert each is not None
    assert tokens("20 tokens per parameter") == 20 * each


def test_groups_that_share_weights_divide_the_gpus(tmp_path: Path, hfpretrain: Any) -> None:
    (tmp_path / "seven.yaml").write_text(SEVEN_BILLION)
    done = hfpretrain(
        "check", "seven.yaml", "parallel={strategy: fsdp, shard_within: 5}", "--gpus", "64", "--gpu", "h100"
    )
    assert done.returncode == 2
    assert "error: parallel.shard_within: 64 GPUs are no groups of 5" in done.stderr
