"""Models from a recipe: every architecture builds, the same seed gives the same weights, and errors are sentences."""

import json
import logging
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from architectures import ARCHITECTURES, MASKED, SIZES, recipe_for, tokenizer_for
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, BertModel

from hfpretrain.errors import DataError, HFPretrainError, ModelError
from hfpretrain.hub import explain, find_commit, locate
from hfpretrain.modeling.model import build_model, count_parameters, load_model

Objective = Literal["clm", "mlm"]


def refused(architecture: str | None, objective: Objective, config: dict[str, Any] | None = None, **recipe: Any) -> str:
    """The sentence that building ends in."""
    with pytest.raises(ModelError) as caught:
        build_model(recipe_for(architecture, objective, config, **recipe), tokenizer_for(objective))
    assert caught.value.exit_status == 2
    return str(caught.value)


def saved(folder: Path, architecture: str, objective: Objective) -> Any:
    model = build_model(recipe_for(architecture, objective), tokenizer_for(objective))
    model.save_pretrained(folder)
    return model


# From scratch


@pytest.mark.parametrize(("architecture", "objective"), ARCHITECTURES)
def test_every_architecture_builds(architecture: str, objective: Objective, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(objective)
    model = build_model(recipe_for(architecture, objective), tokenizer)
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    config = model.config
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (2, tokenizer.eos_token_id, None)
    logits = model(input_ids=torch.arange(32)[None] + 6).logits
    assert logits.shape == (1, 32, len(tokenizer))
    assert logits.isfinite().all()
    if objective == "clm":
        generation = model.generation_config
        assert (generation.pad_token_id, generation.eos_token_id, generation.bos_token_id) == (2, 0, None)
    model.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if objective == "clm" else AutoModelForMaskedLM
    again = auto.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_weights_follow_from_the_seed_and_nothing_else_moves() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    one = build_model(recipe_for("bert", "mlm", seed=3), tokenizer_for("mlm"))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    same = build_model(recipe_for("bert", "mlm", seed=3), tokenizer_for("mlm"))
    other = build_model(recipe_for("bert", "mlm", seed=4), tokenizer_for("mlm"))
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_tied_weights_count_once() -> None:
    model = build_model(recipe_for("gpt2", "clm"), tokenizer_for("clm"))
    assert count_parameters(model) == 100 * 32 + 1024 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_an_encoder_becomes_causal_for_clm(architecture: str) -> None:
    model = build_model(recipe_for(architecture, "clm"), tokenizer_for("clm")).eval()
    first = torch.arange(6, 18)[None]
    second = first.clone()
    second[0, 6:] += 20
    assert torch.allclose(model(input_ids=first).logits[:, :6], model(input_ids=second).logits[:, :6], atol=1e-6)


@pytest.mark.parametrize(("architecture", "first"), [("roberta", 3), ("bert", 0), ("gpt2", 0), ("opt", 0)])
def test_default_positions_grow_to_fit_a_block(architecture: str, first: int) -> None:
    """RoBERTa's positions begin after the pad token's id: a table of 512 rows holds no 512 positions."""
    objective: Objective = "mlm" if architecture in MASKED else "clm"
    block = 512 if architecture == "roberta" else 2100
    model = build_model(recipe_for(architecture, objective, block_size=block), tokenizer_for(objective))
    assert model.config.max_position_embeddings == block + first
    assert model(input_ids=torch.full((1, block), 7)).logits.isfinite().all()


def test_a_larger_vocabulary_is_kept() -> None:
    model = build_model(recipe_for("bert", "mlm", SIZES | {"vocab_size": 128}), tokenizer_for("mlm"))
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 128


def test_keys_that_an_architecture_still_reads_are_taken() -> None:
    """They are declared nowhere, but in the source: older names of settings."""
    config = SIZES | {"num_hidden_layers": 4, "sliding_window_pattern": 2, "rope_theta": 5000.0}
    model = build_model(recipe_for("gemma3_text", "clm", config), tokenizer_for("clm"))
    assert model.config.layer_types == ["sliding_attention", "full_attention"] * 2
    llama = build_model(recipe_for("llama", "clm", SIZES | {"rope_theta": 5000.0}), tokenizer_for("clm"))
    assert llama.config.rope_parameters["rope_theta"] == 5000.0
    gpt2 = build_model(recipe_for("gpt2", "clm", {"hidden_size": 32, "n_layer": 1, "n_head": 2}), tokenizer_for("clm"))
    assert (gpt2.config.n_embd, gpt2.config.n_layer) == (32, 1)


def test_ids_that_an_architecture_insists_on_are_in_the_vocabulary() -> None:
    """Its own default for the token that starts a text, 50281, would be beyond a small one."""
    config = build_model(recipe_for("modernbert-decoder", "clm", SIZES), tokenizer_for("clm")).config
    assert config.eos_token_id == 0
    assert 0 <= config.bos_token_id < 100


def test_key_value_heads_follow_the_heads(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hfpretrain")
    model = build_model(recipe_for("qwen3", "clm"), tokenizer_for("clm"))
    assert model.config.num_key_value_heads == 2
    assert "num_key_value_heads is 2" in caplog.text


# What a recipe gets wrong


def test_unknown_architectures_name_the_nearest() -> None:
    assert "did you mean bert" in refused("bertt", "mlm")
    assert "llama" in refused("Llama3", "clm").split("hint:")[1]
    assert "does next-word prediction (clm), and the objective is mlm" in refused("llama", "mlm")
    assert "set objective: mlm" in refused("modernbert", "clm")
    assert "bert, roberta" in refused("zzzzz", "mlm")
    assert "gemma3_text" in refused("gemma3", "clm")
    assert "model.architecture is not set" in refused(None, "mlm")


def test_all_wrong_keys_are_named_at_once() -> None:
    message = refused("bert", "mlm", SIZES | {"hiden_size": 32, "n_layer": 3, "dtype": "float16", "auto_map": {}})
    assert "model.config.hiden_size: bert has no such key; did you mean hidden_size?" in message
    assert "model.config.n_layer: bert has no such key" in message
    assert "model.config.dtype is not set in a recipe" in message
    assert "model.config.auto_map is not set in a recipe: code from elsewhere is never run" in message


@pytest.mark.parametrize(
    "key",
    ["temperature", "eos_token_id", "is_decoder", "trust_remote_code", "attn_implementation", "architectures", "_x"],
)
def test_keys_that_have_no_place_in_a_recipe(key: str) -> None:
    """transformers takes each of them in silence."""
    assert f"model.config.{key}" in refused("bert", "mlm", SIZES | {key: 1})


@pytest.mark.parametrize(
    ("architecture", "config", "words"),
    [
        ("gpt2", {"n_embd": 30, "n_head": 4}, ["4 heads (n_head)", "the width 30 (n_embd)"]),
        ("gpt2", {"hidden_size": 30, "n_head": 4}, ["4 heads (n_head)", "the width 30 (hidden_size)"]),
        ("llama", {"hidden_size": 30, "num_attention_heads": 4}, ["4 heads", "the width 30"]),
        ("llama", SIZES | {"num_attention_heads": 4, "num_key_value_heads": 3}, ["3 key-value heads", "4 heads"]),
        ("gpt2", {"n_layer": 2, "num_hidden_layers": 3}, ["is the same as model.config.n_layer"]),
        ("gpt2", {"num_hidden_layers": "two"}, ["model.config.num_hidden_layers is 'two'", "a whole number"]),
        ("llama", {"hidden_size": 32.5}, ["model.config.hidden_size is 32.5", "a whole number"]),
        ("llama", SIZES | {"hidden_act": "golu"}, ["model.config.hidden_act", "'golu'"]),
        ("llama", SIZES | {"num_hidden_layers": -1}, ["model.config.num_hidden_layers is -1"]),
        ("llama", SIZES | {"hidden_size": 0}, ["model.config.hidden_size 0"]),
        ("llama", SIZES | {"vocab_size": 50}, ["model.config.vocab_size is 50", "the tokenizer has 100"]),
        ("llama", SIZES | {"max_position_embeddings": 16}, ["max_position_embeddings is 16", "needs 32"]),
        ("llama", SIZES | {"hidden_size": 2**19}, ["parameters", "GB of memory"]),
        ("olmo2", SIZES | {"layer_types": ["full"]}, ["olmo2 has no such key"]),
        ("mixtral", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 5}, ["5 experts per token", "of 4"]),
        ("qwen3", SIZES | {"layer_types": ["full_attention"]}, ["qwen3 cannot be built", "num_hidden_layers"]),
    ],
)
def test_wrong_values_are_sentences_with_the_numbers(
    architecture: str, config: dict[str, Any], words: list[str]
) -> None:
    message = refused(architecture, "clm", config)
    assert all(word in message for word in words), message
    assert "\n" not in message.split("\n  hint:")[0]


def test_roberta_says_how_many_positions_it_needs() -> None:
    message = refused("roberta", "mlm", SIZES | {"max_position_embeddings": 128}, block_size=128)
    assert "128" in message and "needs 131" in message


# From existing weights


def test_goes_on_from_existing_weights_in_float32(tmp_path: Path) -> None:
    model = build_model(recipe_for("gpt2", "clm"), tokenizer_for("clm"))
    model.bfloat16().save_pretrained(tmp_path)
    again = build_model(recipe_for(None, "clm", {}, from_=str(tmp_path)), tokenizer_for("clm"))
    assert again.training
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        assert new.dtype == torch.float32
        assert torch.equal(old.float(), new)


def test_a_larger_tokenizer_grows_the_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hfpretrain")
    old = saved(tmp_path, "bert", "mlm")
    recipe = recipe_for(None, "mlm", {}, from_=str(tmp_path))
    new = build_model(recipe, tokenizer_for("mlm", 120))
    assert new.config.vocab_size == 120
    assert torch.equal(new.get_input_embeddings().weight[:100], old.get_input_embeddings().weight)
    assert "grows from 100 to 120" in caplog.text
    again = build_model(recipe, tokenizer_for("mlm", 120))
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))


def test_ids_follow_the_tokenizer(tmp_path: Path) -> None:
    saved(tmp_path, "gpt2", "clm")
    recipe = recipe_for(None, "clm", {}, from_=str(tmp_path))
    model = build_model(recipe, tokenizer_for("clm", pad_first=True))
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 2)


def test_a_missing_head_starts_new_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    BertModel(AutoConfig.for_model("bert", vocab_size=100, pad_token_id=2, **SIZES)).save_pretrained(tmp_path)
    recipe = recipe_for(None, "mlm", {}, from_=str(tmp_path))
    one, two = (build_model(recipe, tokenizer_for("mlm")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    (line, _) = [record.getMessage() for record in caplog.records if "start new" in record.getMessage()]
    assert "which start new: cls.predictions" in line
    with pytest.raises(ModelError, match="is not causal"):
        build_model(recipe_for(None, "clm", {}, from_=str(tmp_path)), tokenizer_for("clm"))


def test_the_other_objective_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "gpt2", "gpt2", "clm")
    saved(tmp_path / "bert", "bert", "mlm")
    with pytest.raises(ModelError, match="is a model for next-word prediction"):
        load_model(str(tmp_path / "gpt2"), "mlm")
    with pytest.raises(ModelError, match="is a model for masked language modeling"):
        load_model(str(tmp_path / "bert"), "clm")


def test_a_block_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "roberta", "mlm")
    message = refused(None, "mlm", {}, from_=str(tmp_path), block_size=512)
    assert "data.block_size is 512" in message and "509 positions" in message


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "bert", "mlm")
    weights = (tmp_path / "bert" / "model.safetensors").read_bytes()
    config = (tmp_path / "bert" / "config.json").read_text()
    own_code = json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "a.B"}})
    wrong: dict[str, tuple[dict[str, str | bytes], str]] = {
        "empty": ({}, "there is no config.json"),
        "no-weights": ({"config.json": config}, "there is no .safetensors file"),
        "not-json": ({"config.json": "{"}, "config.json cannot be read"),
        "cut": ({"config.json": config, "model.safetensors": weights[:2000]}, "cannot be loaded"),
        "own-code": ({"config.json": own_code}, "needs code of its own"),
        "pickle": ({"config.json": config, "pytorch_model.bin": "x"}, "there is no .safetensors file"),
        "shapes": (
            {"config.json": config.replace('"hidden_size": 32', '"hidden_size": 64'), "model.safetensors": weights},
            "other shapes than its config.json says",
        ),
    }
    for name, (files, words) in wrong.items():
        (tmp_path / name).mkdir()
        for file_name, content in files.items():
            (tmp_path / name / file_name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ModelError) as caught:
            load_model(str(tmp_path / name), "mlm")
        assert words in caught.value.message, f"{name}: {caught.value}"
        assert "\n" not in caught.value.message


# Where a model is


def test_what_looks_like_a_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "everyday-mlm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("runs/everyday-mlm", kind="model") == str(tmp_path / "runs" / "everyday-mlm")
    for name in ("runs/everyday-mlmm", "./runs/everyday-clm", f"{tmp_path}/runs/everyday", "runs/everyday-ml/"):
        with pytest.raises(ModelError) as caught:
            locate(name, kind="model")
        assert "there is no such folder" in caught.value.message
        assert "everyday-mlm" in (caught.value.hint or "")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file"):
        locate("model.safetensors", kind="model")


def test_without_a_connection_a_name_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    for name in ("org/name", "name", "org/name@main", "two words"):
        with pytest.raises(ModelError, match="neither a folder here nor"):
            locate(name, kind="tokenizer")
    with pytest.raises(DataError, match="the data set org/data"):
        find_commit("org/data", or_cached=True)
    assert time.monotonic() - began < 10


def test_the_cache_serves_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--org--bert"
    saved(repository / "snapshots" / "abc", "bert", "mlm")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate("org/bert", kind="model") == str(repository / "snapshots" / "abc")
    assert count_parameters(load_model("org/bert", "mlm")) > 0


def test_failed_downloads_are_explained() -> None:
    from huggingface_hub import errors

    class Response:
        """As much of an HTTP response as the errors look at."""

        request = None
        headers: dict[str, str] = {}  # noqa: RUF012

        def __init__(self, status_code: int) -> None:
            self.status_code = status_code

    def said(error: Exception) -> HFPretrainError:
        return explain(error, "org/name", kind="model")

    gated: Any = errors.GatedRepoError("403", response=Response(403))
    missing: Any = errors.RepositoryNotFoundError("404", response=Response(404))
    away: Any = errors.HfHubHTTPError("503", response=Response(503))
    forbidden: Any = errors.HfHubHTTPError("403", response=Response(403))
    assert "gated" in str(said(gated))
    assert "nor on the Hub" in str(said(missing))
    assert "refused access" in str(said(forbidden))
    assert "did not answer (status 503)" in str(said(away))
    assert said(away).exit_status == 1
    assert said(missing).exit_status == 2
    assert "HF_HUB_OFFLINE" in str(said(errors.OfflineModeIsEnabled("offline")))
    outer = OSError("We could not connect\nto the Hub")
    outer.__cause__ = ConnectionError("refused")
    assert "cannot be reached" in str(said(outer))
    assert "could not be loaded: odd" in str(said(ValueError("odd\ntraceback")))
