"""Shortcuts to the loss give what the plain way gives, and are left alone where they would not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import MASKED, SIZES, recipe_for, tokenizer_for
from tiny import LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.errors import RecipeError
from hfpretrain.modeling import loss as losses
from hfpretrain.modeling.attention import proof_batch
from hfpretrain.modeling.flops import estimated_flops_per_token, flops_per_token
from hfpretrain.modeling.loss import FusedCrossEntropy, Loss, Shortcuts, fused_cross_entropy
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import IGNORED, target_places
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.training.loop import train
from hfpretrain.training.optimizer import orthogonal

QUIET = {
    "mlm": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    "clm": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
}  # fmt: skip


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_shortcuts_change_nothing_that_is_learnt(tmp_path: Path, objective: str) -> None:
    """50 steps with and without them, accuracy and evaluation too."""
    common = [f"model.config={json.dumps(QUIET[objective])}", "train.duration=50", "train.batch_size=8"]
    plain = tiny_run(tmp_path, objective, *common, "train.shortcuts=none", name="plain")
    short = tiny_run(tmp_path, objective, *common, name="short")
    used = "last layer and head on targets, fused cross-entropy" if objective == "mlm" else "fused cross-entropy"
    assert (plain.report()["shortcuts"], short.report()["shortcuts"]) == ("none", used)
    assert len(metrics(plain)) > 50
    for one, other in zip(metrics(plain), metrics(short), strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-6)
    assert short.report()["validation_accuracy"] > 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_fused_cross_entropy_is_the_cross_entropy(monkeypatch: pytest.MonkeyPatch, bias: bool, rows: int) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 50 * rows)  # chunks of so many rows
    monkeypatch.setattr(losses, "CHUNK_ROWS", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(33, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    offset = torch.randn(50, generator=generator, requires_grad=True) if bias else None
    labels = torch.randint(50, (33,), generator=generator)
    labels[::4] = IGNORED
    inputs = [tensor for tensor in (hidden, weight, offset) if tensor is not None]
    logits = torch.nn.functional.linear(hidden, weight, offset)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    found = FusedCrossEntropy.apply(hidden, weight, offset, labels, True)  # type: ignore[no-untyped-call]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(
        torch.autograd.grad(expected / 7, inputs), torch.autograd.grad(found / 7, inputs), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)
    again = FusedCrossEntropy.apply(hidden, weight, offset, labels, False)  # type: ignore[no-untyped-call]
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_token_that_is_all_but_impossible_costs_what_it_should() -> None:
    """Its probability is no number in float32."""
    hidden, weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[300.0, 3.0], [0.0, 1.0], [-50.0, 2.0]])
    hidden.requires_grad_()
    labels = torch.tensor([2, 1])
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    found = fused_cross_entropy(hidden, weight, None, labels, True, 0.0)
    assert expected.item() > 350
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    one, other = (torch.autograd.grad(each, hidden)[0] for each in (expected, found))
    assert torch.allclose(one, other)


def test_it_works_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    labels = torch.randint(50, (40,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FusedCrossEntropy.apply(hidden, weight, None, labels, True)  # type: ignore[no-untyped-call]
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    for one, other in zip(
        torch.autograd.grad(expected, [hidden, weight]), torch.autograd.grad(found, [hidden, weight]), strict=True
    ):
        assert other.dtype == torch.float32
        assert (one - other).norm() < 0.02 * one.norm()


def model_of(objective: Any, architecture: str, **config: Any) -> Any:
    """A model built as a run would build it."""
    return build_model(recipe_for(architecture, objective, config), tokenizer_for(objective))


@pytest.mark.parametrize("architecture", MASKED)
def test_on_every_masked_architecture_the_head_runs_on_the_targets(architecture: str) -> None:
    model = model_of("mlm", architecture, **MASKED[architecture])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shortcuts = prove_shortcuts(model, None, on_targets=True)
    assert shortcuts.on_targets
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not model.base_model._forward_hooks
    loss = Loss(model, None, shortcuts)
    documents, input_ids = proof_batch(model) or (None, None)
    assert documents is not None
    assert input_ids is not None
    labels = torch.full_like(input_ids, IGNORED)
    labels[0, 3] = labels[1, 5] = 40
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    batch = {"input_ids": input_ids, "labels": labels, "document_ids": documents, "targets": target_places(labels)}
    loss(model, batch)
    assert seen[0][:2] in ((1, 2), (1, 1)), "no more positions than targets"


@pytest.mark.parametrize(
    ("architecture", "config"), [("gemma2", {"head_dim": 16}), ("cohere", {}), ("granite", {"logits_scaling": 4.0})]
)
def test_what_changes_logits_behind_the_output_embedding_is_seen(architecture: str, config: dict[str, Any]) -> None:
    model = model_of("clm", architecture, **SIZES, **config)
    assert not prove_shortcuts(model, None, on_targets=False).fused


def test_a_model_that_is_built_otherwise_is_left_as_it_is() -> None:
    """A head whose result is not used gives no loss that could be equal."""
    model = model_of("clm", "llama", **SIZES)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.001)
    assert prove_shortcuts(model, None, on_targets=False) == Shortcuts()
    model = model_of("mlm", "bert", **SIZES)
    model.bert.register_forward_hook(lambda module, inputs, output: None)
    assert prove_shortcuts(model, None, on_targets=True).on_targets


@pytest.mark.parametrize(("objective", "architecture"), [("mlm", "bert"), ("clm", "llama")])
def test_operations_are_6n_plus_attention(objective: str, architecture: str) -> None:
    model = model_of(objective, architecture, **SIZES | {"hidden_size": 64, "intermediate_size": 256})
    documents, input_ids = proof_batch(model) or (None, None)
    assert documents is not None
    assert input_ids is not None
    batch = {"input_ids": input_ids, "labels": input_ids, "document_ids": documents}
    counted = flops_per_token(model, Loss(model, None), batch)
    assert counted == pytest.approx(estimated_flops_per_token(model, block_size=24), rel=0.02)


def test_muon_makes_updates_orthogonal() -> None:
    matrices = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.linalg.svdvals(orthogonal(matrices, dtype))
        assert ((values > 0.6) & (values < 1.3)).all()
    wide = orthogonal(matrices.mT.contiguous(), torch.float32)
    assert torch.allclose(wide, orthogonal(matrices, torch.float32).mT, atol=1e-4)


def test_muon_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    import shutil

    settings = ["optimizer={name: muon, lr: 1e-2}", "train.duration=40", "checkpoints={every: 20, keep: 5}"]
    whole = tiny_run(tmp_path, "clm", *settings, name="whole")
    losses = [line["loss"] for line in metrics(whole) if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    recipe = tiny_recipe(tmp_path, "clm", *settings, name="resumed")
    resumed = Path(recipe.output_dir)
    shutil.copytree(whole.path, resumed)
    (resumed / "report.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "step-00000040")
    assert same_weights(weights(whole), weights(train(recipe, resume=True)))


def test_activation_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    common = [f"model={{architecture: llama, config: {LLAMA}}}", "train.duration=4"]
    plain = tiny_run(tmp_path, "clm", *common, name="plain")
    again = tiny_run(tmp_path, "clm", *common, "train.activation_checkpointing=true", name="again")
    for one, other in zip(metrics(plain), metrics(again), strict=True):
        assert one == pytest.approx(other, abs=1e-6, rel=1e-6)


def test_where_the_time_goes(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "mlm")
    lines = [line for line in run.metrics() if "time" in line]
    assert lines
    for line in lines:
        assert line["time"].keys() == {"data", "forward_backward", "optimizer", "other"}
        assert sum(line["time"].values()) == pytest.approx(1, abs=1e-3)
        assert line["time"]["forward_backward"] > 0
        assert line["mfu"] > 0
    report = run.report()
    assert report["tokens_per_second"] > 0
    assert report["mfu"] == pytest.approx(
        report["flops_per_token"] * report["tokens_per_second"] / report["hardware_flops_per_second"], abs=1e-4
    )


def test_a_size_that_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the run, and for later runs of the same recipe, which would otherwise differ in their last bits."""
    from hfpretrain.training import micro_batch

    monkeypatch.setenv("HFPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(micro_batch, "ENOUGH_SECONDS", 0.0)
    run = tiny_run(tmp_path, "clm", "train.batch_size=6", "train.duration=5", name="first")
    (size,) = json.loads((tmp_path / "cache" / "micro_batch_sizes.json").read_text()).values()
    assert size in (1, 2, 3, 6)
    progress = json.loads((run.checkpoints / "step-00000005" / "progress.json").read_text())
    assert progress["micro_batch_size"] == size
    file = tmp_path / "cache" / "micro_batch_sizes.json"
    key = next(iter(json.loads(file.read_text())))
    file.write_text(json.dumps({key: 2}))
    again = tiny_run(tmp_path, "clm", "train.batch_size=6", "train.duration=5", name="again")
    progress = json.loads((again.checkpoints / "step-00000005" / "progress.json").read_text())
    assert progress["micro_batch_size"] == 2


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_is_whole_and_learns_the_same(tmp_path: Path) -> None:
    """With its hooks in the compiled graph, and without a break in it."""
    import torch._dynamo.utils as dynamo

    common = [
        f"model.config={json.dumps(QUIET['mlm'])}",
        "train.duration=3",
        "data.validation=0%",
        "train.micro_batch_size=2",
    ]
    plain = tiny_run(tmp_path, "mlm", *common, name="plain")
    dynamo.counters.clear()
    compiled = tiny_run(tmp_path, "mlm", *common, "train.compile=true", name="compiled")
    assert not dynamo.counters["graph_break"]
    assert dynamo.counters["stats"]["unique_graphs"] == 1, "shapes stay the same"
    assert dynamo.counters["stats"]["calls_captured"] > 40, "the model, not pieces of it"
    for one, other in zip(metrics(plain), metrics(compiled), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_resumed_run_keeps_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found on the machine where it goes on: dropout depends on it."""
    from test_training import cut_back

    from hfpretrain.training import micro_batch

    monkeypatch.setenv("HFPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(micro_batch, "ENOUGH_SECONDS", 0.0)
    settings = ["train.batch_size=6", "train.duration=10", "checkpoints.keep=5"]
    tiny_run(tmp_path, "mlm", *settings, name="first")
    file = tmp_path / "cache" / "micro_batch_sizes.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: 3}))
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    file.write_text(json.dumps({key: 2}))
    recipe = tiny_recipe(tmp_path, "mlm", *settings, name="resumed")
    cut_back(whole, Path(recipe.output_dir), 5)
    assert same_weights(weights(whole), weights(train(recipe, resume=True)))
    assert not same_weights(weights(whole), weights(tiny_run(tmp_path, "mlm", *settings, name="other")))


def test_sizes_of_several_recipes_are_kept_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFPRETRAIN_CACHE", str(tmp_path / "cache"))
    for number, size in enumerate((4, 6, 4)):
        tiny_run(tmp_path, "clm", f"train.batch_size={size}", "train.duration=1", name=f"run-{number}")
    assert len(json.loads((tmp_path / "cache" / "micro_batch_sizes.json").read_text())) == 2


def test_a_run_of_which_only_the_end_was_left_has_a_true_speed(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=5", "train.log_every=50")
    before = run.report()
    run.report_file.unlink()
    after = tiny_run(tmp_path, "clm", "train.duration=5", "train.log_every=50", resume=True).report()
    assert after["tokens_per_second"] == pytest.approx(before["tokens_per_second"], rel=1e-3)


def test_muon_and_loss_scaling_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="muon does not go with fp16"):
        tiny_run(tmp_path, "clm", "optimizer.name=muon", "train.precision=fp16")
