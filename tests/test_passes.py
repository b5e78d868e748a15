"""What a CPU trains in to be faster: dropout, norms and rotations that stand in for the libraries' own."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CAUSAL, MASKED, SIZES, recipe_for, tokenizer_for
from test_training import cut_back
from tiny import BERT, GPT2, LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hfpretrain.modeling.attention import proof_batch
from hfpretrain.modeling.dropout import attention, dropout, faster_dropout
from hfpretrain.modeling.elementwise import faster_rotations, rms_norm, rotated
from hfpretrain.modeling.loss import Loss, Shortcuts
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import IGNORED, target_places
from hfpretrain.modeling.passes import Replaced, faster_passes, nothing_dropped
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.training.loop import train


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_as_often_as_asked_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    count = 400_000
    ones = torch.ones(1000, 400, requires_grad=True)
    with Replaced(faster_dropout()):
        found = functional.dropout(ones, probability)
    (slope,) = torch.autograd.grad(found.sum(), ones)
    assert torch.equal(slope, found.detach()), "the gradient is that of what was kept"
    dropped = found.detach() == 0
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert float(dropped.float().mean()) == pytest.approx(probability, abs=5 * deviation)
    assert float(found.detach().mean()) == pytest.approx(1, abs=5 * deviation / (1 - probability))
    assert sorted(set(found[~dropped].tolist())) == [pytest.approx(1 / (1 - probability), rel=1e-3 / (1 - probability))]


def test_what_is_dropped_is_independent_of_everything_around() -> None:
    """Neighbours, rows, what is dropped a call later, and the four elements that come from one random word."""
    torch.manual_seed(0)
    ones = torch.ones(1024, 1024)
    with Replaced(faster_dropout()):
        first, second = ((functional.dropout(ones, 0.5) > 0).double() for _ in range(2))
    pairs = [(first, second), (first[1:], first[:-1]), (first[:, 1:], second[:, :-1])]
    pairs += [(first[:, distance:], first[:, :-distance]) for distance in (1, 2, 3, 4, 8, 64)]
    for one, other in pairs:
        correlation = ((one - 0.5) * (other - 0.5)).mean() / 0.25
        assert abs(float(correlation)) < 5 / one.numel() ** 0.5


def test_what_is_dropped_follows_from_the_generators_state() -> None:
    ones = torch.ones(64, 64)
    torch.manual_seed(3)
    one, other = dropout(ones, 0.3), dropout(ones, 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(ones, 0.3), one)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (1.0, True), (0.5, False)])
@pytest.mark.parametrize("rows", [0, 4])
def test_where_nothing_is_drawn_it_is_pytorchs(probability: float, training: bool, rows: int) -> None:
    values = torch.randn(rows, 5)
    assert dropout(torch.empty(0, 5), 0.5).shape == (0, 5)
    assert torch.equal(dropout(values, probability, training), functional.dropout(values, probability, training))


def test_in_place_is_in_place() -> None:
    values = torch.ones(50, 50)
    assert dropout(values, 0.5, inplace=True) is values
    assert 0 < int((values == 0).sum()) < 2500


def test_dropout_is_looked_for_in_the_configuration() -> None:
    without = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    for architecture, config, has in (("gpt2", GPT2, True), ("gpt2", GPT2 | without, False), ("llama", SIZES, False)):
        model = model_of("clm", architecture, **config)
        assert prove_shortcuts(model, None, on_targets=False, elementwise=True).dropout is has


def test_dropout_is_the_librarys_where_training_differs_in_more() -> None:
    """Here layers are left out at random, which a pass without dropout does not show."""
    for probability, same in ((0.0, True), (1.0, False)):
        model = model_of("clm", "opt", **CAUSAL["opt"], layerdrop=probability)
        assert prove_shortcuts(model, None, on_targets=False, elementwise=True).dropout is same


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("groups", "causal", "scale"), [(4, False, None), (2, False, 0.3), (1, True, None)])
def test_attention_that_drops_is_pytorchs_where_nothing_happens_to_be_dropped(
    masked: bool, groups: int, causal: bool, scale: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 7, 8), (2, groups, 7, 8), (2, groups, 7, 8)]
    inputs: list[Any] = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    mask: Any = None
    if masked:
        mask = torch.rand(2, 1, 7, 7, generator=generator) < 0.5
        mask[0, 0, 2] = False  # one sees nothing
        mask, causal = mask & torch.ones(7, 7, dtype=torch.bool).tril() if causal else mask, False
    options: Any = {"attn_mask": mask, "is_causal": causal, "scale": scale, "enable_gqa": groups < 4}
    with nothing_dropped():
        found = attention(inputs[0], inputs[1], inputs[2], dropout_p=0.1, **options)
    expected = functional.scaled_dot_product_attention(*inputs, **options)
    slope = torch.randn(found.shape, generator=generator)
    assert torch.allclose(found, expected, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_attention_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 64, 16) for _ in range(3))
    plain = functional.scaled_dot_product_attention(query, key, value)
    with Replaced(faster_dropout()):
        assert functional.scaled_dot_product_attention is attention
        found = [functional.scaled_dot_product_attention(query, key, value, dropout_p=0.2) for _ in range(2000)]
    assert not torch.equal(found[0], found[1])
    mean, spread = torch.stack(found).mean(0), torch.stack(found).std(0)
    assert bool(((mean - plain).abs() < 6 * spread / 2000**0.5).all())


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_half_precision_is_as_exact_as_pytorchs(autocast: bool) -> None:
    """Which rounds what comes in and what goes out."""
    generator = torch.Generator().manual_seed(0)
    inputs: list[Any] = [2 * torch.randn(2, 4, 128, 32, generator=generator) for _ in range(3)]
    exact = functional.scaled_dot_product_attention(*inputs)
    if not autocast:
        inputs = [each.bfloat16() for each in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), nothing_dropped():
        found = attention(inputs[0], inputs[1], inputs[2], dropout_p=0.1)
        expected = functional.scaled_dot_product_attention(*inputs)
    assert found.dtype == expected.dtype == torch.bfloat16
    errors = [float((each.float() - exact).square().mean().sqrt()) for each in (found, expected)]
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_layers_that_are_run_again_drop_the_same_again(tmp_path: Path, objective: str) -> None:
    """They do so in the backward pass, in the same dropout as in the forward pass, and all on all positions."""
    common = ["train.duration=4", "train.micro_batch_size=2"]
    common += [f"model.config={BERT | {'hidden_dropout_prob': 0.0}}"] if objective == "mlm" else []
    plain = tiny_run(tmp_path, objective, *common, name="plain")
    again = tiny_run(tmp_path, objective, *common, "train.activation_checkpointing=true", name="again")
    told = plain.report()["shortcuts"]
    assert "fast dropout" in told
    assert again.report()["shortcuts"] == told.replace("last layer and ", "")
    assert metrics(plain)
    for one, other in zip(metrics(plain), metrics(again), strict=True):
        assert one == pytest.approx(other, abs=1e-6, rel=1e-6)


def test_a_run_trains_in_its_own_dropout(tmp_path: Path) -> None:
    own = tiny_run(tmp_path, "clm", name="own")
    librarys = tiny_run(tmp_path, "clm", "train.shortcuts=none", name="librarys")
    assert "fast dropout" in own.report()["shortcuts"]
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in (own, librarys)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4), "what is dropped differs"
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_resumed_run_drops_what_the_undisturbed_one_does(tmp_path: Path) -> None:
    settings = ["train.duration=10", "checkpoints={every: 5, keep: 5}"]
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    recipe = tiny_recipe(tmp_path, "mlm", *settings, name="resumed")
    cut_back(whole, Path(recipe.output_dir), 5)
    assert same_weights(weights(whole), weights(train(recipe, resume=True)))


def model_of(objective: Any, architecture: str, **config: Any) -> Any:
    return build_model(recipe_for(architecture, objective, config), tokenizer_for(objective))


def test_gradients_of_norms_and_rotations_are_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, generator=generator, requires_grad=True)
    torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-6), (x, weight))
    angle = torch.rand(3, 4, dtype=torch.float64, generator=generator).repeat(1, 2)
    torch.autograd.gradcheck(lambda x: rotated(x, angle.cos(), angle.sin()), (x,))


NORMS = {"llama", "qwen3", "gemma3_text", "olmo2", "mixtral", "mamba"}
ROTATIONS = {"llama", "qwen3", "gemma3_text", "gpt_neox", "olmo2", "mixtral", "modernbert"}


@pytest.mark.parametrize(
    ("architecture", "objective"), [*((name, "clm") for name in CAUSAL), *((name, "mlm") for name in MASKED)]
)
def test_norms_and_rotations_are_replaced_where_they_give_the_same(architecture: str, objective: str) -> None:
    config = (CAUSAL | MASKED)[architecture]
    model = model_of(objective, architecture, **config)
    with torch.no_grad():  # of a new model all weights of norms are alike
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name.lower():
                parameter.add_(0.2 * torch.randn(len(parameter), generator=torch.Generator().manual_seed(0)))
    shortcuts = prove_shortcuts(model, None, on_targets=False, elementwise=True)
    assert (shortcuts.norms, shortcuts.rotations) == (architecture in NORMS, architecture in ROTATIONS)
    assert not prove_shortcuts(model, None, on_targets=False).norms, "only where it is asked for"


class CentredRMSNorm(torch.nn.Module):
    """Called and built as Llama's, and another norm."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(states, states.shape[-1:], self.weight, eps=self.variance_epsilon)


def test_a_norm_of_another_kind_is_left_alone() -> None:
    model = model_of("clm", "llama", **SIZES)
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.__class__ = CentredRMSNorm
    shortcuts = prove_shortcuts(model, None, on_targets=False, elementwise=True)
    assert (shortcuts.norms, shortcuts.rotations) == (False, True)


def test_a_rotation_of_another_kind_is_left_alone() -> None:
    """Cohere's turns neighbours, and looks the same from outside."""
    model = model_of("clm", "cohere", **SIZES)
    assert faster_rotations(model)
    assert not prove_shortcuts(model, None, on_targets=False, elementwise=True).rotations


def test_outside_a_pass_everything_is_the_librarys_own() -> None:
    from transformers.models.llama import modeling_llama

    own = modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb
    model = model_of("clm", "llama", **SIZES)
    passes = faster_passes(model, prove_shortcuts(model, None, on_targets=False, elementwise=True))
    with passes, passes:
        pass
    for _ in range(2):
        with pytest.raises(KeyError), passes:
            assert modeling_llama.LlamaRMSNorm.forward is not own[0]
            assert modeling_llama.apply_rotary_pos_emb is not own[1]
            raise KeyError
        assert (modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb) == own


def test_fused_norms_and_rotations_change_nothing_that_is_learnt(tmp_path: Path) -> None:
    common = [f"model={{architecture: llama, config: {LLAMA}}}", "train.duration=50"]
    plain = tiny_run(tmp_path, "clm", *common, "train.shortcuts=none", name="plain")
    short = tiny_run(tmp_path, "clm", *common, name="short")
    assert short.report()["shortcuts"] == "fused cross-entropy, fused norms, fused rotary positions"
    for one, other in zip(metrics(plain), metrics(short), strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)


BEHIND = {"bert": "output.dense", "roberta": "output.dense", "distilbert": "ffn.lin2", "modernbert": "mlp.Wo"}
BEHIND |= {"electra": "output.dense", "deberta-v2": "output.dense"}


@pytest.mark.parametrize("architecture", BEHIND)
def test_behind_its_attention_the_last_layer_sees_targets_only(architecture: str) -> None:
    model = model_of("mlm", architecture, **MASKED[architecture])
    shortcuts = prove_shortcuts(model, None, on_targets=True)
    assert shortcuts.last_layer
    loss, batch = Loss(model, None, shortcuts), masked_batch(model)
    seen: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith(BEHIND[architecture]) and "attention" not in name:
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.update({name: inputs[0][..., 0].numel()})
            )
    loss(model, batch)
    assert list(seen.values()) == [batch["labels"].numel(), len(batch["targets"])], "of the first layer and the last"
    seen.clear()
    model(input_ids=batch["input_ids"])  # whoever else uses the model
    assert len(set(seen.values())) == 1


def masked_batch(model: Any) -> dict[str, torch.Tensor]:
    documents, input_ids = proof_batch(model) or (torch.empty(0), torch.empty(0))
    labels = input_ids.roll(1, 1)
    labels[torch.arange(labels.numel()).view_as(labels) % 7 != 0] = IGNORED
    return {"input_ids": input_ids, "labels": labels, "document_ids": documents, "targets": target_places(labels)}


def test_a_feed_forward_part_that_wants_chunks_of_one_size_gets_all_positions() -> None:
    model = model_of("mlm", "bert", **SIZES, chunk_size_feed_forward=8)
    shortcuts = prove_shortcuts(model, None, on_targets=True)
    assert shortcuts.on_targets
    assert not shortcuts.last_layer


def test_a_model_that_pads_inside_proves_nothing() -> None:
    """Longformer fills up to its window, so that in a proof of a few tokens no layer sees the places of the targets."""
    config = SIZES | {"attention_window": 32, "max_position_embeddings": 66}
    shortcuts = prove_shortcuts(model_of("mlm", "longformer", **config), None, on_targets=True)
    assert shortcuts.on_targets
    assert not shortcuts.last_layer


def test_albert_runs_one_layer_many_times_on_all_positions() -> None:
    assert not prove_shortcuts(model_of("mlm", "albert", **SIZES), None, on_targets=True).last_layer


def test_a_layer_that_is_left_out_at_random_leaves_its_work_to_the_head() -> None:
    model = model_of("mlm", "bert", **SIZES)
    short, batch = Loss(model, None, Shortcuts(on_targets=True, last_layer=True)), masked_batch(model)
    del model.bert.encoder.layer[-1]
    model.eval()
    assert short(model, batch).item() == pytest.approx(Loss(model, None)(model, batch).item(), rel=1e-6)


def test_no_pass_is_entered_where_the_recipe_wants_the_plain_way(tmp_path: Path) -> None:
    from hfpretrain.run import Run
    from hfpretrain.training.session import open_accelerator, prepare_session

    for setting, kind in (("auto", False), ("none", True)):
        recipe = tiny_recipe(tmp_path, "mlm", f"train.shortcuts={setting}")
        session = prepare_session(recipe, Run(tmp_path / setting), open_accelerator(recipe))
        assert isinstance(session.passes, nullcontext) is kind
