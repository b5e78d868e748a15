"""What a recipe may not say: each error has its file, line and dotted key, and all of them come at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_texts import SMALL, errors_of

from hfpretrain import recipe as recipes
from hfpretrain.errors import RecipeError


def errors_in(mapping: dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipes.from_mapping(mapping, overrides)
    return caught.value.message.splitlines()


def small(**keys: Any) -> dict[str, Any]:
    return {"objective": "mlm", "data": {"sources": [{"builtin": "everyday"}]}, **keys}


# What is refused: every case is a change of the small recipe and what is said about it, with line 3 or 4

IN_PLACE = [
    ("naem: x", "naem: unknown key; did you mean name?"),
    ("batch_size: 3", "batch_size: unknown key; did you mean train.batch_size?"),
    ("xyzzy: 3", "xyzzy: unknown key; the keys here are objective, data, name"),
    ("train: {batch_sice: 3}", "train.batch_sice: unknown key; did you mean batch_size?"),
    ("train: {lr: 3}", "train.lr: unknown key; did you mean optimizer.lr?"),
    ("train: 5", "train: expects a mapping, not 5"),
    (
        'train: {batch_size: "64"}',
        "train.batch_size: expects an integer or a mapping, not the text '64'; remove the quotes",
    ),
    ("train: {batch_size: true}", "train.batch_size: expects an integer or a mapping, not true"),
    ("train: {batch_size: 6.5}", "train.batch_size: expects an integer or a mapping, not 6.5"),
    ("train: {batch_size: 0}", "train.batch_size: must be at least 1, not 0"),
    ("train: {micro_batch_size: 0}", "train.micro_batch_size: must be at least 1, not 0"),
    ("train: {micro_batch_size: atuo}", "expects an integer or auto, not the text 'atuo'; did you mean auto?"),
    ("train: {micro_batch_size: 7}", "train.micro_batch_size: 7 does not divide train.batch_size, 64"),
    ("train: {micro_batch_size: 128}", "train.micro_batch_size: 128 is larger than train.batch_size, 64"),
    ("train: {compile: no}", "train.compile: expects true, false or auto, not the text 'no'"),
    ("train: {gradient_clip: -1}", "train.gradient_clip: must be at least 0, not -1"),
    ("train: {log_every: 0}", "train.log_every: must be at least 1, not 0"),
    ("train: {precision: bf61}", "train.precision: expects auto, fp32, bf16 or fp16, not the text 'bf61'"),
    ("train: {duration: 5%}", "train.duration: expects steps, tokens, epochs or minutes, not 5%"),
    ("train: {duration: 0}", "train.duration: must be more than nothing"),
    ("train: {duration: 2.5}", "train.duration: expects an amount such as 600 steps or 5%, not 2.5"),
    ("train: {duration: 10 min}", "train.duration: '10 min': unknown unit 'min'; did you mean minutes?"),
    ("evaluation: {every: 0 steps}", "evaluation.every: must be more than nothing"),
    ("evaluation: {max_tokens: 0}", "evaluation.max_tokens: must be at least 1, not 0"),
    ("checkpoints: {every: 0}", "checkpoints.every: must be more than nothing"),
    ("checkpoints: {keep: 1}", "checkpoints.keep: must be at least 2, not 1"),
    ("optimizer: {lr: 0}", "optimizer.lr: must be above 0, not 0"),
    ("optimizer: {lr: .nan}", "optimizer.lr: must be above 0, not nan"),
    ("optimizer: {lr: .inf}", "optimizer.lr: is too large: inf"),
    ("optimizer: {lr: fast}", "optimizer.lr: expects a number or auto, not the text 'fast'"),
    ("optimizer: {weight_decay: -0.1}", "optimizer.weight_decay: must be at least 0, not -0.1"),
    ("optimizer: {betas: [0.9, 1]}", "optimizer.betas.1: must be at least 0 and below 1, not 1"),
    ("optimizer: {betas: [0.9]}", "optimizer.betas: expects 2 values, not 1"),
    ("optimizer: {betas: 0.9}", "optimizer.betas: expects a list of 2 values, not 0.9"),
    ("optimizer: {eps: 0.0}", "optimizer.eps: must be above 0, not 0.0"),
    ("optimizer: {name: adamv}", "optimizer.name: expects adamw or muon, not the text 'adamv'; did you mean adamw?"),
    ("schedule: {final: 1.5}", "schedule.final: must be at least 0 and at most 1, not 1.5"),
    ("schedule: {warmup: 60%, decay: 50%}", "schedule.decay: warmup and decay together are 110%"),
    ("schedule: {name: cosine, decay: 5%}", "schedule.decay: decay is for wsd, and the schedule is cosine"),
    ("schedule: {warmup: 101%}", "schedule.warmup: '101%' is more than 100%"),
    ("masking: {rate: 0}", "masking.rate: must be above 0 and at most 1, not 0"),
    ("masking: {rate: 1.1}", "masking.rate: must be above 0 and at most 1, not 1.1"),
    ("masking: {rate: {from: 0.3}}", "masking.rate.to: missing; it is a number"),
    ("masking: {rate: {from: 0.3, to: 2}}", "masking.rate.to: must be above 0 and at most 1, not 2"),
    ("masking: {rate: x}", "masking.rate: expects a number or a mapping, not the text 'x'"),
    ("masking: {mean_span: 3}", "masking.mean_span: mean_span is for unit: span, and the unit is token"),
    ("masking: {unit: span, mean_span: 1}", "masking.mean_span: must be above 1, not 1"),
    ("masking: {unit: span, rate: 0.8}", "masking.mean_span: masking.rate is 0.8, and spans of 3 tokens are shorter"),
    ("masking: {unit: words}", "masking.unit: expects token, word or span, not the text 'words'; did you mean word?"),
    ("masking: {mask: 0.9, random: 0.2}", "masking.random: mask and random together are 1.1, more than 1"),
    ("tokenizer: {vocab_size: 7}", "tokenizer.vocab_size: must be at least 8, not 7"),
    (
        "tokenizer: {algorithm: BPE}",
        "tokenizer.algorithm: expects bpe, wordpiece, unigram, char or byte, not the text 'BPE'; did you mean bpe?",
    ),
    ("tokenizer: {from: x, algorithm: bpe}", "tokenizer.algorithm: algorithm is for a tokenizer to train"),
    ("tokenizer: {from: x, vocab_size: 99}", "tokenizer.vocab_size: vocab_size is for a tokenizer to train"),
    ("model: {architecture: bert, from: x}", "model.architecture: architecture and from exclude each other"),
    ("model: {from: x, config: {a: 1}}", "model.config: config is for a new model: model.from brings its own"),
    ("model: {from: ''}", "model.from: is empty"),
    ("model: {config: [1]}", "model.config: expects a mapping, not a list"),
    ("seed: -1", "seed: must be at least 0 and below 9223372036854775808, not -1"),
    ("seed: 9223372036854775808", "seed: must be at least 0 and below 9223372036854775808, not 9223372036854775808"),
    (f"seed: {'9' * 5000}", "seed: a number of 5000 digits"),
    ("seed: 1.0", "seed: expects an integer, not 1.0"),
    ("name: a/b", "name: 'a/b' cannot name a folder; leave out slashes"),
    ("name: ..", "name: '..' cannot name a folder"),
    ("name: 5", "name: expects text, not 5"),
    ("trackers: tensorboard", "trackers: expects a list, not the text 'tensorboard'; write [tensorboard]"),
    ("hub: {repo_id: a/b/c}", "hub.repo_id: 'a/b/c' cannot name a repository (write org/name): "),
    ("hub: {push: checkpoints}", "hub.push: checkpoints goes with hub.repo_id, which is missing"),
    ("hub: {repo_id: a/b, name_by: words}", "hub.name_by: name_by names the branches of checkpoints, and hub.push is"),
    ("seed: !!python/object:os.system x", "seed: the tag 'tag:yaml.org,2002:python/object:os.system' has no meaning"),
    ("? [a, b]\n: 5", "?: a key is one word, not a list or a mapping"),
]
IN_DATA = [
    ("block_size: 1", "data.block_size: must be at least 2, not 1"),
    ("packing: concatenate", "data.packing: expects auto, documents or concat, not the text 'concatenate'"),
    (
        "validation: 5 steps",
        "data.validation: expects a share below 100% such as 1%, or a list of sources, not 5 steps",
    ),
    ("validation: 100%", "data.validation: expects a share below 100% such as 1%, or a list of sources, not 100%"),
    ("validation: 0.1", "data.validation: expects an amount such as 600 steps or 5% or a list, not 0.1"),
    ("validation: []", "data.validation: is an empty list; write 0% for no validation"),
    ("validation: [{hub: x, streaming: true}]", "data.validation.0.streaming: what is held out is read whole"),
]
SOURCES = [
    ("[]", "data.sources: missing; give one source or more, for example [{builtin: everyday}]"),
    ("{builtin: everyday}", "data.sources: expects a list, not a mapping; begin each item of the list with a dash"),
    ("[everyday]", "data.sources.0: expects a mapping, not the text 'everyday'"),
    ("[{}]", "data.sources.0: expects exactly one of builtin, files, hub and tokens, not none of them"),
    (
        "[{files: a, hub: b}]",
        "data.sources.0: expects exactly one of builtin, files, hub and tokens, not files and hub",
    ),
    ("[{buitlin: everyday}]", "data.sources.0.buitlin: unknown key; did you mean builtin?"),
    (
        "[{builtin: evryday}]",
        "data.sources.0.builtin: expects everyday, not the text 'evryday'; did you mean everyday?",
    ),
    ("[{files: a}, {files: []}]", "data.sources.1.files: is an empty list"),
    ("[{files: [a, 5]}]", "data.sources.0.files.1: expects text, not 5"),
    ("[{files: a, weight: 0}]", "data.sources.0.weight: must be above 0, not 0"),
    ("[{files: a, size: 3MB}]", "data.sources.0.size: goes with builtin, and the source is files"),
    ("[{files: a, split: train}]", "data.sources.0.split: goes with hub, and the source is files"),
    ("[{builtin: everyday, subset: x}]", "data.sources.0.subset: goes with hub, and the source is builtin"),
    ("[{builtin: everyday, text_column: x}]", "data.sources.0.text_column: goes with files or hub"),
    ("[{builtin: everyday, size: 3 parsecs}]", "data.sources.0.size: '3 parsecs' is not a size; write for example"),
    ("[{files: a, prompt_column: x}]", "prompt_column: goes together with completion_column, which is missing"),
    ("[{files: a, completion_column: x}]", "completion_column: goes together with prompt_column, which is missing"),
    (
        "[{files: a, text_column: t, prompt_column: x, completion_column: y}]",
        "data.sources.0.text_column: text_column and prompt_column exclude each other",
    ),
]


@pytest.mark.parametrize(("change", "says"), IN_PLACE)
def test_a_wrong_key_is_named_with_its_line(write: Any, change: str, says: str) -> None:
    (error,) = errors_of(write(SMALL + change + "\n"))
    assert error.startswith("recipe.yaml:3: ")
    assert says in error


@pytest.mark.parametrize(("change", "says"), IN_DATA)
def test_a_wrong_key_of_the_data_is_named_with_its_line(write: Any, change: str, says: str) -> None:
    (error,) = errors_of(write(f"objective: mlm\ndata:\n  sources: [{{builtin: everyday}}]\n  {change}\n"))
    assert error.startswith("recipe.yaml:4: ")
    assert says in error


@pytest.mark.parametrize(("sources", "says"), SOURCES)
def test_a_wrong_source_is_named_with_its_line(write: Any, sources: str, says: str) -> None:
    (error,) = errors_of(write(f"objective: mlm\ndata:\n  sources:\n    {sources}\n"))
    assert error.startswith(("recipe.yaml:3: ", "recipe.yaml:4: "))
    assert says in error


def test_a_missing_objective_and_missing_data_are_both_said(write: Any) -> None:
    assert errors_of(write("name: x\n")) == [
        "recipe.yaml: objective: missing; it is clm or mlm",
        "recipe.yaml: data.sources: missing; give one source or more, for example [{builtin: everyday}]",
    ]


def test_data_that_is_no_mapping(write: Any) -> None:
    assert errors_of(write("objective: mlm\ndata: everyday\n")) == [
        "recipe.yaml:2: data: expects a mapping, not the text 'everyday'"
    ]


def test_a_rate_cannot_move_over_a_run_of_unknown_length() -> None:
    (error,) = errors_in(small(masking={"rate": {"from": 0.3, "to": 0.1}}, train={"duration": "5 minutes"}))
    assert error.startswith("masking.rate: moves with the steps of the run, and a train.duration in minutes")


def test_fim_is_for_plain_text_and_next_word_prediction() -> None:
    clm = {"objective": "clm", "fim": {"rate": 0.5}}
    pairs = {"files": "x.jsonl", "prompt_column": "a", "completion_column": "b"}
    (error,) = errors_in(small(**clm, data={"sources": [pairs]}))
    assert error == "fim.rate: a prompt goes before its completion, so that pairs and fim exclude each other"
    (error,) = errors_in(small(**clm), "data.block_size=8")
    assert error.startswith("override data.block_size=8: data.block_size: 8 is too small for fim")
    assert errors_in(small(objective="clm", fim={"spm": 0.5})) == [
        "fim.spm: spm is for documents that are turned, and fim.rate is 0"
    ]
    assert errors_in(small(fim={"rate": 0.5})) == ["fim: fim is for clm, and the objective is mlm"]


def test_masking_is_refused_for_next_word_prediction() -> None:
    assert errors_in(small(objective="clm", masking={"rate": 0.15})) == [
        "masking: masking is for mlm, and the objective is clm"
    ]


@pytest.mark.parametrize("key", ["algorithm: bpe", "vocab_size: 99", "lowercase: true"])
def test_existing_weights_bring_their_tokenizer(key: str) -> None:
    (error,) = errors_in(small(model={"from": "x"}, tokenizer=dict([key.split(": ")])))
    assert error.startswith("tokenizer.")


def test_a_key_written_twice_names_both_lines(write: Any) -> None:
    assert errors_of(write(SMALL + "train:\n  batch_size: 8\n  log_every: 5\n  batch_size: 16\n")) == [
        "recipe.yaml:6: train.batch_size: the key is there twice, first in line 4"
    ]


def test_all_errors_come_at_once_in_the_order_of_the_file(write: Any) -> None:
    text = (
        "objective: mml\nnaem: x\ndata:\n  sources:\n    - {builtin: everyday, subset: x}\n    - buitlin: everyday\n"
        "train:\n  batch_size: true\n  micro_batch_size: 7\n  duration: 10 min\noptimizer: {lr: -1, lr: 1}\n"
    )
    errors = errors_of(write(text), "seed=-1", "foo", "model.config=[")
    assert [error.rsplit(": ", 1)[0] for error in errors[:-2]] == [
        "recipe.yaml:1: objective",
        "recipe.yaml:2: naem",
        "recipe.yaml:5: data.sources.0.subset",
        "recipe.yaml:6: data.sources.1.buitlin",
        "recipe.yaml:8: train.batch_size",
        "recipe.yaml:10: train.duration: '10 min'",
        "recipe.yaml:11: optimizer.lr",
        "override seed=-1: seed",
    ]
    assert errors[-2] == "override foo: write KEY=VALUE, for example train.duration=50"
    assert errors[-1].startswith("override model.config=[: the value is not valid YAML: ")


# Files that are no recipe


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "recipe.yaml: the file is empty", "hfpretrain recipes"),
        ("# nothing\n", "recipe.yaml: the file is empty", "hfpretrain recipes"),
        ("- a\n", "recipe.yaml: the file holds a list", None),
        ("mlm\n", "recipe.yaml: the file holds the text 'mlm'", None),
        ("a: b: c\n", "recipe.yaml:1:5: not valid YAML: mapping values are not allowed here", "colon"),
        ("train:\n\tseed: 1\n", "recipe.yaml:2:1: not valid YAML: ", "spaces"),
        ("files: *.txt\n", "recipe.yaml:1:9: not valid YAML: ", "quotes"),
        ("a: &x 1\nb: *x\n", "recipe.yaml:1:4: not valid YAML: anchors and aliases have no meaning", "quotes"),
        ("a: [1\nb: 2\n", "recipe.yaml:2:2: not valid YAML: ", None),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2:1: not valid YAML: expected a single document", None),
        ('a: "\\UFFFFFFFF"\n', "recipe.yaml:1:1: not valid YAML: an escaped character does not exist", None),
        ("a: 1\nb: \x00\n", "recipe.yaml:2:4: not valid YAML: the character '\\x00' is not allowed", None),
        ("a: " + "[" * 5000, "recipe.yaml:1:64: not valid YAML: it is nested too deeply", None),
    ],
)
def test_what_is_no_recipe_is_said_in_a_sentence(write: Any, text: str, says: str, hint: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.load(write(text))
    assert caught.value.message.startswith(says)
    assert "\n" not in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


def test_a_missing_file_a_directory_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    missing, latin = tmp_path / "missing.yaml", tmp_path / "latin.yaml"
    latin.write_bytes(b"objective: mlm\nname: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"missing\.yaml: no such file") as caught:
        recipes.load(missing)
    assert caught.value.hint == "`hfpretrain recipes` lists the shipped ones"
    with pytest.raises(RecipeError, match="a directory, not a recipe"):
        recipes.load(tmp_path)
    with pytest.raises(RecipeError, match=r"latin\.yaml:2: not UTF-8 \(byte 0xe9\)"):
        recipes.load(latin)
    with pytest.raises(RecipeError, match="cannot be read"):
        recipes.load("a\0b")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert recipes.load(path).objective == "mlm"
