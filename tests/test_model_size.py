"""`model.size`: sizes by the family's proportions; durations by the model's size; a learning rate by both."""

import dataclasses
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from architectures import tokenizer_for
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights, write_corpus
from transformers import PreTrainedTokenizerFast

from hfpretrain.cli import main
from hfpretrain.data.mixing import Mix, lay_out
from hfpretrain.errors import ModelError, RecipeError, Stopped
from hfpretrain.modeling.architecture import MODEL_NAMES, Objective
from hfpretrain.modeling.configuration import new_config, outline_of
from hfpretrain.modeling.families import FAMILIES
from hfpretrain.modeling.flops import estimated_flops_per_token
from hfpretrain.modeling.model import build_model, outline_model
from hfpretrain.modeling.parameters import count_parameters, count_without_embeddings, shape_of
from hfpretrain.recipe import Amount, Data, Model, Recipe, Source, Train, dump, from_mapping
from hfpretrain.run import Run
from hfpretrain.training import estimate
from hfpretrain.training.budget import in_tokens, learning_rate
from hfpretrain.training.loop import train
from hfpretrain.training.schedule import Plan
from hfpretrain.verify import replay

TOKENIZERS: dict[tuple[str, int], PreTrainedTokenizerFast] = {}


def objective_of(architecture: str) -> Objective:
    return "clm" if architecture in MODEL_NAMES["clm"] and architecture not in ("bert", "roberta") else "mlm"


def tokenizer(objective: str, words: int) -> PreTrainedTokenizerFast:
    if (objective, words) not in TOKENIZERS:
        TOKENIZERS[objective, words] = tokenizer_for(objective, words)
    return TOKENIZERS[objective, words]


def recipe_of(architecture: str | None, size: str | int | None, *, block_size: int = 32, **config: Any) -> Recipe:
    objective = objective_of(architecture or "llama")
    data = Data(sources=(Source(builtin="everyday"),), block_size=block_size)
    return Recipe(objective=objective, data=data, model=Model(architecture=architecture, size=size, config=config))


def sized(architecture: str, size: str, words: int, **config: Any) -> tuple[Any, int]:
    """The configuration and the parameters of the real model, with so many words."""
    recipe = recipe_of(architecture, size, **config, vocab_size=words)
    made = new_config(recipe, tokenizer(recipe.objective, 100))
    return made, count_parameters(outline_of(made, recipe.objective))


# Families


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(("size", "words", "parameters"), [("0.3M", 100, 0.3e6), ("1B", 8000, 1e9)])
def test_every_family_has_a_sensible_model_of_every_size(
    architecture: str, size: str, words: int, parameters: float
) -> None:
    config, counted = sized(architecture, size, words)
    assert counted == pytest.approx(parameters, rel=0.05)
    width, heads = config.hidden_size, config.num_attention_heads
    assert config.num_hidden_layers >= 2
    assert heads >= 2
    assert width % heads == 0
    assert heads % (getattr(config, "num_key_value_heads", None) or heads) == 0
    assert 8 <= (getattr(config, "head_dim", None) or width // heads) <= 256
    assert 2 <= width / config.num_hidden_layers <= 512
    feed_forward = shape_of(config)["feed_forward"]
    assert 1 <= feed_forward / width <= 9


@pytest.mark.parametrize(
    ("architecture", "size", "words", "parameters", "shape"),
    [
        ("gpt2", "124M", 50257, 124_439_808, (12, 768, 12, 0, 3072)),
        ("gpt2", "1.5B", 50257, 1_557_611_200, (48, 1600, 25, 0, 6400)),
        ("llama", "15M", 32000, 15_191_712, (6, 288, 6, 0, 768)),
        ("llama", "1.1B", 32000, 1_100_048_384, (22, 2048, 32, 4, 5632)),
        ("llama", "7B", 32000, 6_738_415_616, (32, 4096, 32, 0, 11008)),
        ("smollm3", "135M", 49152, 134_515_008, (30, 576, 9, 3, 1536)),
        ("mistral", "7B", 32000, 7_241_732_096, (32, 4096, 32, 8, 14336)),
        ("qwen2", "0.5B", 151936, 494_032_768, (24, 896, 14, 2, 4864)),
        ("qwen3", "0.6B", 151936, 596_049_920, (28, 1024, 16, 8, 3072)),
        ("qwen3", "8B", 151936, 8_190_735_360, (36, 4096, 32, 8, 12288)),
        ("gemma3_text", "270M", 262144, 268_098_176, (18, 640, 4, 1, 2048)),
        ("gpt_neox", "410M", 50304, 405_334_016, (24, 1024, 16, 0, 4096)),
        ("opt", "1.3B", 50272, 1_315_758_080, (24, 2048, 32, 0, 8192)),
        ("bloom", "560M", 250880, 559_214_592, (24, 1024, 16, 0, 4096)),
        ("olmo2", "7B", 100352, 7_298_617_344, (32, 4096, 32, 0, 11008)),
        ("bert", "110M", 30522, 109_514_298, (12, 768, 12, 0, 3072)),
        ("distilbert", "66M", 30522, 66_985_530, (6, 768, 12, 0, 3072)),
        ("modernbert", "149M", 50368, 149_655_232, (22, 768, 12, 0, 1152)),
        ("modernbert-decoder", "17M", 50368, 17_000_000, (7, 256, 4, 0, 384)),
        ("deberta-v2", "184M", 128100, 184_521_828, (12, 768, 12, 0, 3072)),
    ],
)
def test_published_models_are_found_by_their_names(
    architecture: str, size: str, words: int, parameters: int, shape: tuple[int, ...]
) -> None:
    config, counted = sized(architecture, size, words)
    found = shape_of(config)
    assert tuple(found.get(key, 0) for key in ("layers", "width", "heads", "key_value_heads", "feed_forward")) == shape
    assert counted == pytest.approx(parameters, rel=0.01)


def test_embeddings_are_tied_as_in_the_family() -> None:
    assert sized("llama", "5M", 2000)[0].tie_word_embeddings is True
    assert sized("llama", "1.1B", 32000)[0].tie_word_embeddings is False
    assert sized("gpt_neox", "5M", 2000)[0].tie_word_embeddings is False
    assert sized("llama", "5M", 2000, tie_word_embeddings=False)[0].tie_word_embeddings is False


def test_the_scale_of_attention_goes_with_the_head() -> None:
    config = sized("gemma3_text", "5M", 2000)[0]
    assert config.query_pre_attn_scalar == config.head_dim < 256


def test_what_the_recipe_fixes_stays() -> None:
    config, counted = sized("llama", "5M", 2000, num_hidden_layers=12)
    assert config.num_hidden_layers == 12
    assert counted == pytest.approx(5e6, rel=0.05)
    config, counted = sized("gpt2", "5M", 2000, n_embd=192, n_head=3)
    assert (config.n_embd, config.n_head) == (192, 3)
    assert counted == pytest.approx(5e6, rel=0.05)
    config, counted = sized("llama", "5M", 2000, hidden_size=256, num_hidden_layers=6, num_key_value_heads=2)
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (256, 6, 2)
    assert counted == pytest.approx(5e6, rel=0.05)  # by the feed-forward
    with pytest.raises(
        ModelError, match=r"cannot be had with hidden_size, num_hidden_layers as model\.config says; the"
    ):
        sized("llama", "5M", 2000, hidden_size=512, num_hidden_layers=8)


def test_the_model_is_the_one_that_was_counted() -> None:
    """Room for blocks longer than the default among it."""
    recipe = recipe_of("gpt2", "2M", block_size=2048)
    words = tokenizer("clm", 300)
    model = build_model(recipe, words)
    assert model.config.n_positions == 2048
    assert count_parameters(model) == count_parameters(outline_model(recipe, words)) == pytest.approx(2e6, rel=0.05)


@pytest.mark.parametrize(
    ("architecture", "size", "words", "says"),
    [
        ("gpt2", "0.3M", 50257, "too few for the vocabulary"),
        ("mamba", "1M", 100, "the proportions of mamba are not known"),
    ],
)
def test_what_cannot_be_is_said(architecture: str, size: str, words: int, says: str) -> None:
    with pytest.raises(ModelError, match=says) as error:
        sized(architecture, size, words)
    assert ("tokenizer.vocab_size" if words > 1000 else "llama") in str(error.value.hint)


# Recipes

PLAIN = {"objective": "clm", "data": {"sources": [{"builtin": "everyday"}]}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.size=big", r"model\.size: 'big' is not a number of parameters; write for example"),
        ("model.size=12", r"model\.size: '12' is not a number of parameters"),
        ("model={size: 1M, from: folder}", r"model\.size: size is for a new model"),
        ("evaluation.every=1e15 FLOPs", r"evaluation\.every: FLOPs are for train\.duration"),
        ("schedule.warmup=1 tokens per parameter", r"schedule\.warmup: tokens per parameter are for train\.duration"),
        ("train.duration=0 tokens per parameter", r"train\.duration: must be more than nothing"),
        ("train.duration=5 tokens per step", "unknown unit 'tokens per step'; did you mean tokens per parameter"),
    ],
)
def test_wrong_recipes(change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        from_mapping(PLAIN, [change])


@pytest.mark.parametrize(
    "text", ["20 tokens per parameter", "0.5 tokens per parameter", "1e18 FLOPs", "2.5e21 FLOPs", "123456789 FLOPs"]
)
def test_amounts_read_back_as_written(text: str, tmp_path: Path) -> None:
    assert str(Amount.parse(text)) == text
    recipe = from_mapping(PLAIN, [f"train.duration={text}", "model.size=15M"])
    assert from_mapping(yaml.safe_load(dump(recipe))) == recipe


def test_without_architecture_a_size_is_one_of_the_default() -> None:
    recipe = from_mapping(PLAIN, ["model.size=3M"])
    assert (recipe.model.architecture, recipe.model.config) == ("llama", {})


# Durations


def test_durations_by_the_model_are_tokens() -> None:
    words = tokenizer("clm", 300)
    model = outline_model(recipe_of("llama", "1M"), words)

    def tokens(text: str) -> float:
        changed = from_mapping({**PLAIN, "model": {"architecture": "llama", "size": "1M"}}, [f"train.duration={text}"])
        return in_tokens(changed, words).train.duration.value

    assert tokens("20 tokens per parameter") == 20 * count_parameters(model)
    per_token = estimated_flops_per_token(model, block_size=128)
    assert per_token > 6 * count_without_embeddings(model)
    assert tokens("1e15 FLOPs") == pytest.approx(1e15 / per_token, rel=1e-6)


SIZED = (
    "model={architecture: gpt2, size: 60k, config: {n_positions: 16}}",
    "train.duration=0.02 tokens per parameter",
    "optimizer.lr=auto",
)


def test_a_run_by_size_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = (*SIZED, "data.stages=[{until: 50%}, {}]")
    whole = tiny_run(tmp_path, "clm", *settings, name="whole")
    steps = whole.report()["steps"]
    assert steps > 15
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm", *settings, name="parts"), stop_after=steps // 2)
    parts = tiny_run(tmp_path, "clm", *settings, name="parts", resume=True)
    assert same_weights(weights(whole), weights(parts))
    assert metrics(whole) == metrics(parts)
    assert all(finding.good for finding in replay(whole.path, steps // 4))
    text = yaml.safe_load(parts.recipe_file.read_text())
    assert (text["model"]["size"], text["train"]["duration"]) == ("60k", "0.02 tokens per parameter")
    assert text["optimizer"]["lr"] == "auto"


def test_a_run_in_flops(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "mlm", "train.duration=2e8 FLOPs", "masking.rate={from: 0.3, to: 0.15}")
    report = run.report()
    assert report["tokens"] >= 64
    assert 0.3 * 2e8 < report["flops"] < 1.6 * 2e8  # counted, with the head on the targets alone


def test_the_rate_that_was_chosen_stays_when_the_run_gets_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lr(duration: str, stop_after: int, *, resume: bool) -> float:
        recipe = tiny_recipe(
            tmp_path, "clm", *SIZED, "schedule={name: constant, warmup: 0%}", f"train.duration={duration}"
        )
        with pytest.raises(Stopped):
            train(recipe, stop_after=stop_after, resume=resume)
        rate: float = metrics(Run(tmp_path / "runs" / "tiny"))[-1]["lr"]
        return rate

    caplog.set_level("INFO")
    first = lr("500 tokens per parameter", 3, resume=False)
    assert 1e-4 < first < 5e-3
    assert lr("500 tokens per parameter", 5, resume=True) == first
    assert "the learning rate stays" not in caplog.text
    assert lr("5000 tokens per parameter", 7, resume=True) == first
    assert f"the learning rate stays {first:g}, as the run began with it" in caplog.text


def test_a_run_that_began_with_a_rate_of_its_own_keeps_it(tmp_path: Path) -> None:
    """As one does that an earlier version began with its default."""
    settings = ("train.duration=8", "schedule={name: constant, warmup: 0%}")
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm", *settings, "optimizer.lr=7e-4"), stop_after=4)
    run = tiny_run(tmp_path, "clm", *settings, "optimizer.lr=auto", resume=True)
    assert {line["lr"] for line in metrics(run) if "lr" in line} == {7e-4}
    assert run.report()["learning_rate"] == 7e-4


@pytest.mark.parametrize(
    ("architecture", "size", "lowest", "highest"),
    [
        ("llama", "1.2M", 3e-3, 5e-3),
        ("modernbert", "1.2M", 1.2e-3, 3e-3),
        ("gpt2", "1.2M", 1e-3, 2e-3),  # 5e-3, which llama bears, ends worse than 1e-3
        ("bert", "3M", 2e-4, 6e-4),  # with 1.4e-3 it learns least of all
        ("gpt2", "124M", 4e-4, 8e-4),
    ],
)
def test_each_kind_of_network_has_a_rate_that_it_bears(
    architecture: str, size: str, lowest: float, highest: float
) -> None:
    recipe = recipe_of(architecture, size, vocab_size=50257 if size == "124M" else 2048)
    steps, each = (5000, 2**19) if size == "124M" else (400, 1024)
    mix = Mix(parts=(0,), weights=(1,), repeat=(True,), block_size=32, words_per_token=(Fraction(1),))
    order = lay_out([mix], [10**7], batch_size=each // 32, duration=Amount.steps(steps))
    model = outline_model(recipe, tokenizer(recipe.objective, 100))
    recipe = dataclasses.replace(recipe, train=Train(duration=Amount.steps(steps), batch_size=each // 32))
    assert lowest < learning_rate(recipe, model, Plan.of(recipe, order)) < highest


# The command line


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hfpretrain", *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capfd.readouterr()
    return int(stopped.value.code or 0), out, err


def test_check_and_train_say_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "TRIED_SECONDS", 0.1)
    write_corpus(tmp_path / "corpus.jsonl")
    Path("r.yaml").write_text(
        "objective: clm\nmodel: {architecture: llama, size: 60k}\ntokenizer: {vocab_size: 320}\n"
        "data: {sources: [{files: corpus.jsonl}], block_size: 16}\n"
        "train: {duration: 0.1 tokens per parameter, batch_size: 8}\n"
    )
    status, out, _ = command(monkeypatch, capfd, "check", "r.yaml")
    assert status == 0
    status, _, err = command(monkeypatch, capfd, "train", "r.yaml")
    assert status == 0
    report = json.loads(Path("runs/r/report.json").read_text())
    config = json.loads(Path("runs/r/config.json").read_text())
    shape = (
        f"{config['num_hidden_layers']} layers x {config['hidden_size']} wide, {config['num_attention_heads']} heads"
    )
    for said in (out, err):
        assert shape in said
        assert f"feed-forward {config['intermediate_size']}" in said
        assert f"learning rate {report['learning_rate']:g} (auto)" in said
        assert "parameters without embeddings" in said
        assert "per parameter" in said
    assert report["parameters"] == pytest.approx(60_000, rel=0.05)
    assert report["tokens"] == pytest.approx(0.1 * report["parameters"], rel=0.05)
    assert report["shape"]["width"] == config["hidden_size"]


def test_a_size_below_the_vocabulary_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus.jsonl")
    Path("r.yaml").write_text(
        "objective: clm\nmodel: {architecture: gpt2, size: 5k}\ndata: {sources: [{files: corpus.jsonl}]}\n"
    )
    status, _, err = command(monkeypatch, capfd, "train", "r.yaml", "tokenizer.vocab_size=320")
    assert status == 2
    assert "too few for the vocabulary" in err
    assert "tokenizer.vocab_size" in err
    assert "Traceback" not in err
