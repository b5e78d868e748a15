"""Documents that share a block do not see each other, checked here apart from the library's own proof."""

from typing import Any, Literal

import pytest
import torch
from architectures import ARCHITECTURES, CAUSAL, MASKED, SIZES, recipe_for, tokenizer_for

from hfpretrain.modeling.attention import DocumentMasking, document_inputs, prove_document_masking
from hfpretrain.modeling.model import build_model

# DeBERTa takes no mask between pairs of tokens; Mamba's state runs on over a border.
NOT_ISOLATED = {"deberta-v2", "mamba"}


def built(architecture: str, objective: Literal["clm", "mlm"], **config: Any) -> Any:
    sizes = (MASKED | CAUSAL).get(architecture, {}) | config
    recipe = recipe_for(architecture, objective, sizes, block_size=64)
    model = build_model(recipe, tokenizer_for(objective, 100))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in model.parameters():  # larger weights, so that a leak is plain to see
            weight += 0.1 * torch.randn_like(weight)
    return model


def logits(model: Any, input_ids: torch.Tensor, **extra: Any) -> torch.Tensor:
    cache = {} if "MaskedLM" in type(model).__name__ else {"use_cache": False}
    result: torch.Tensor = model(input_ids=input_ids, **cache, **extra).logits
    return result


def isolates(model: Any, how: DocumentMasking | None, lengths: list[int]) -> tuple[float, float]:
    """By how much documents differ from being alone, and from before another one changed."""
    model.eval()
    documents = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(6, 100, (1, sum(lengths)), generator=generator)
    changed = torch.where(documents == 1, 105 - input_ids, input_ids)
    extra = document_inputs(documents[None], how) if how else {}
    with torch.no_grad():
        together, after = logits(model, input_ids, **extra), logits(model, changed, **extra)
        alone = torch.cat([logits(model, part) for part in torch.split(input_ids, lengths, dim=1)], dim=1)
    return (together - alone).abs().max().item(), (together - after)[:, documents != 1].abs().max().item()


@pytest.mark.parametrize(("architecture", "objective"), ARCHITECTURES)
def test_documents_do_not_see_each_other(architecture: str, objective: Literal["clm", "mlm"]) -> None:
    model = built(architecture, objective)
    how = prove_document_masking(model, objective)
    from_alone, from_change = isolates(model, how, [11, 1, 7, 20])
    if architecture in NOT_ISOLATED:
        assert how is None
        assert from_change > 1e-3
    else:
        assert how is not None
        assert str(how)
        assert from_alone < 2e-5
        assert from_change < 1e-6
        plain_alone, plain_change = isolates(model, None, [11, 1, 7, 20])
        assert plain_alone > 1e-3 and plain_change > 1e-3, "the check itself sees nothing"


@pytest.mark.parametrize(
    ("architecture", "objective", "config"),
    [
        ("gemma3_text", "clm", {"sliding_window": 4, "sliding_window_pattern": 2}),
        ("modernbert", "mlm", {"local_attention": 8}),
        ("gpt_oss", "clm", {**SIZES, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("modernbert-decoder", "clm", {**SIZES, "local_attention": 8}),
        ("roberta", "clm", {}),
        ("bert", "clm", {}),
        ("roberta", "mlm", {"max_position_embeddings": 67}),
    ],
)
def test_windows_and_other_kinds(architecture: str, objective: Literal["clm", "mlm"], config: dict[str, Any]) -> None:
    """Documents longer than a sliding window, and encoders turned into causal models."""
    model = built(architecture, objective, **config)
    from_alone, from_change = isolates(model, prove_document_masking(model, objective), [30, 3, 25])
    assert from_alone < 2e-5
    assert from_change < 1e-6


@pytest.mark.parametrize(("architecture", "objective"), [("bert", "mlm"), ("gpt2", "clm"), ("modernbert", "mlm")])
def test_eager_attention_is_proven_as_well(architecture: str, objective: Literal["clm", "mlm"]) -> None:
    """Eager attention adds its mask: a boolean one would hide nothing, and the proof has to notice."""
    model = built(architecture, objective)
    model.set_attn_implementation("eager")
    from_alone, from_change = isolates(model, prove_document_masking(model, objective), [11, 1, 7])
    assert from_alone < 2e-5
    assert from_change < 1e-6


@pytest.mark.parametrize(("architecture", "objective"), [("bert", "mlm"), ("llama", "clm"), ("modernbert", "mlm")])
def test_gradients_stay_within_documents(architecture: str, objective: Literal["clm", "mlm"]) -> None:
    model = built(architecture, objective)
    how = prove_document_masking(model, objective)
    assert how is not None
    assert model.training, "the proof has to leave the model in training mode"
    documents = torch.tensor([[0] * 9 + [1] * 11])
    input_ids = torch.arange(6, 26)[None]
    embedded: list[torch.Tensor] = []

    def keep(_module: Any, _arguments: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    torch.autograd.backward(logits(model, input_ids, **document_inputs(documents, how))[:, :9].square().sum())
    assert embedded[0].grad is not None
    assert embedded[0].grad[:, :9].abs().sum() > 0
    assert embedded[0].grad[:, 9:].abs().sum() == 0


def test_the_proof_leaves_no_trace() -> None:
    model = built("bert", "mlm")
    model.bert.encoder.layer[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    prove_document_masking(model, "mlm")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_seen_is_not_proven() -> None:
    """Without a layer nothing mixes tokens: nothing shows that a mask does anything."""
    assert prove_document_masking(built("bert", "mlm", num_hidden_layers=0), "mlm") is None


def test_positions_fit_a_model_of_few_positions() -> None:
    recipe = recipe_for("gpt2", "clm", CAUSAL["gpt2"] | {"n_positions": 8}, block_size=8)
    assert prove_document_masking(build_model(recipe, tokenizer_for("clm")), "clm") is not None


def test_inputs_of_a_known_batch() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [3, 4, 4, 9, 9]])
    causal = DocumentMasking(mask="boolean", causal=True, first_position=2)
    inputs = document_inputs(documents, causal)
    assert inputs["position_ids"].tolist() == [[2, 3, 2, 3, 4], [2, 2, 3, 2, 3]]
    assert inputs["attention_mask"].shape == (2, 1, 5, 5)
    assert inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    windowed = DocumentMasking(mask="boolean", causal=False, first_position=None, window=1)
    inputs = document_inputs(documents, windowed)
    assert set(inputs) == {"attention_mask"}
    masks = inputs["attention_mask"]
    assert masks["full_attention"][0, 0, 2].int().tolist() == [0, 0, 1, 1, 1]
    assert masks["sliding_attention"][0, 0, 2].int().tolist() == [0, 0, 1, 1, 0]
    assert document_inputs(documents, DocumentMasking(mask="none", causal=True, first_position=0)).keys() == {
        "position_ids"
    }
