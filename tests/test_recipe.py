"""The recipe as its author meets it: what loads, what is refused and how that is said, overrides, round trips."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_texts import SMALL, errors_of

from hfpretrain import recipe as recipes
from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Amount, Recipe, Source

FULL = """\
# yaml-language-server: $schema=../hfpretrain/recipe.schema.json
name: everyday-mlm
objective: mlm
seed: 0
output_dir: runs/everyday-mlm
model:
  architecture: bert
  config: {hidden_size: 256, num_hidden_layers: 4}
tokenizer:
  algorithm: wordpiece
  vocab_size: 4096
data:
  sources:
    - {builtin: everyday}
    - {files: "corpus/**/*.jsonl.gz", text_column: text, weight: 2}
    - {files: novel.txt, documents: paragraph}
    - {hub: org/dataset, subset: name, split: train, streaming: false}
    - {files: pairs.jsonl, prompt_column: input_texts, completion_column: output_texts}
  validation: 1%
  block_size: 128
  packing: auto
  on_bad_rows: error
masking: {rate: 0.15, mask: 0.8, random: 0.1}
train:
  duration: 600 steps
  batch_size: 64
  micro_batch_size: auto
  precision: auto
  compile: auto
  gradient_clip: 1.0
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.1, betas: [0.9, 0.95]}
schedule: {name: wsd, warmup: 5%, decay: 20%}
evaluation: {every: 100 steps}
checkpoints: {every: 200 steps, keep: 2}
trackers: []
hub: {repo_id: null, private: true, push: final}
"""


def small(**keys: Any) -> dict[str, Any]:
    return {"objective": "mlm", "data": {"sources": [{"builtin": "everyday"}]}, **keys}


# What loads


def test_the_whole_contract_loads(write: Any) -> None:
    recipe = recipes.load(write(FULL))
    assert (recipe.name, recipe.objective, recipe.output_dir) == ("everyday-mlm", "mlm", "runs/everyday-mlm")
    assert recipe.model.config == {"hidden_size": 256, "num_hidden_layers": 4}
    assert recipe.optimizer.lr == 0.001
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.train.duration == Amount.steps(600)
    assert recipe.schedule.warmup == recipes.Schedule().warmup == Amount.percent(5)
    assert len(recipe.data.sources) == 5
    assert recipe.data.sources[1] == Source(files="corpus/**/*.jsonl.gz", weight=2.0)
    assert recipe.data.sources[4].completion_column == "output_texts"
    assert recipe.data.validation == Amount.percent(1)


@pytest.mark.parametrize(
    ("objective", "architecture", "algorithm"), [("mlm", "modernbert", "wordpiece"), ("clm", "llama", "bpe")]
)
def test_defaults_follow_from_file_and_objective(write: Any, objective: str, architecture: str, algorithm: str) -> None:
    recipe = recipes.load(write(SMALL.replace("mlm", objective)))
    assert (recipe.name, recipe.output_dir) == ("recipe", "runs/recipe")
    assert (recipe.model.architecture, recipe.tokenizer.algorithm) == (architecture, algorithm)


def test_existing_weights_bring_their_own_architecture_and_tokenizer() -> None:
    recipe = recipes.from_mapping(small(model={"from": "org/name"}))
    assert recipe.model.from_ == "org/name"
    assert recipe.model.architecture is None
    assert recipe.tokenizer.algorithm is None


def test_null_and_nothing_stand_for_the_default(write: Any) -> None:
    recipe = recipes.load(write(SMALL + "train:\nseed:\nschedule: {name: wsd, decay: null}\n"))
    assert recipe == recipes.load(write(SMALL + "schedule: {}\n"))


def test_files_may_be_one_or_several_and_validation_its_own_sources() -> None:
    recipe = recipes.from_mapping(
        {"objective": "clm", "data": {"sources": [{"files": ["a.txt", "b.txt"]}], "validation": [{"files": "c.txt"}]}}
    )
    assert recipe.data.sources[0].files == ("a.txt", "b.txt")
    assert recipe.data.validation == (Source(files="c.txt"),)


@pytest.mark.parametrize("none", ["0", "0%"])
def test_no_validation(write: Any, none: str) -> None:
    path = write(f"objective: clm\ndata:\n  sources: [builtin: everyday]\n  validation: {none}\n")
    assert recipes.load(path).data.validation == Amount.percent(0)


def test_a_mapping_from_python_stays_as_it_is() -> None:
    mapping = small(optimizer={"betas": (0.9, 0.95)})
    recipes.from_mapping(mapping, ["model.config.hidden_size=64", "optimizer.lr=1"])
    assert mapping == small(optimizer={"betas": (0.9, 0.95)})


def test_plain_values_are_those_of_yaml_1_2(write: Any) -> None:
    config = "{a: 1e-3, b: no, c: 010, d: 1:30, e: .5, f: 0x10, g: 2024-01-01, h: 1_000, i: 'true', j: true, k: 0o17}"
    recipe = recipes.load(write(SMALL + f"model:\n  config: {config}\n"))
    assert recipe.model.config == {
        "a": 0.001,
        "b": "no",
        "c": 10,
        "d": "1:30",
        "e": 0.5,
        "f": 16,
        "g": "2024-01-01",
        "h": "1_000",
        "i": "true",
        "j": True,
        "k": 15,
    }


def test_importing_the_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys, hfpretrain.recipe; "
        "print([name for name in ('torch', 'numpy', 'transformers', 'datasets', 'accelerate', 'pydantic') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Amounts


@pytest.mark.parametrize(
    ("text", "value", "unit", "spelling"),
    [
        ("600 steps", 600, "steps", "600 steps"),
        (600, 600, "steps", "600 steps"),
        ("1 step", 1, "steps", "1 step"),
        ("20M tokens", 20_000_000, "tokens", "20M tokens"),
        ("2.5B tokens", 2_500_000_000, "tokens", "2.5B tokens"),
        ("1e6 tokens", 1_000_000, "tokens", "1M tokens"),
        ("123456789 tokens", 123_456_789, "tokens", "123456789 tokens"),
        ("3 epochs", 3, "epochs", "3 epochs"),
        ("0.5 epochs", 0.5, "epochs", "0.5 epochs"),
        ("10 minutes", 600, "seconds", "10 minutes"),
        ("1.5 hours", 5400, "seconds", "1.5 hours"),
        ("30 seconds", 30, "seconds", "30 seconds"),
        ("2 days", 172_800, "seconds", "2 days"),
        ("5%", 5, "percent", "5%"),
        ("0.1 %", 0.1, "percent", "0.1%"),
    ],
)
def test_amounts_are_read_and_written_as_people_say_them(
    text: str | int, value: float, unit: str, spelling: str
) -> None:
    amount = Amount.parse(text)
    assert (amount.value, amount.unit, str(amount)) == (value, unit, spelling)


@given(
    st.tuples(st.integers(0, 10**12), st.sampled_from(["steps", "tokens"]))
    | st.tuples(st.floats(0.001, 10**6), st.sampled_from(["epochs", "seconds"]))
    | st.tuples(st.floats(0.001, 100), st.just("percent"))
)
def test_every_amount_reads_back(pair: tuple[float, Any]) -> None:
    amount = Amount(*pair)
    assert Amount.parse(str(amount)) == amount


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10 min", "'10 min': unknown unit 'min'; did you mean minutes?"),
        ("10m", "'10m' is not an amount; write for example 600 steps"),
        ("5 parsecs", "unknown unit 'parsecs'; write for example 600 steps"),
        ("-5 steps", "an amount cannot be negative: '-5 steps'"),
        (-5, "an amount cannot be negative: '-5'"),
        ("1.5 steps", "'1.5 steps': steps are whole numbers"),
        ("101%", "'101%' is more than 100%"),
        ("1e99 tokens", "'1e99 tokens' is too much"),
        ("", "'' is not an amount"),
    ],
)
def test_what_is_no_amount(text: str | int, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Amount.parse(text)
    assert says in caught.value.message


# Overrides


def test_the_command_line_stands_over_the_file(write: Any) -> None:
    recipe = recipes.load(
        write(FULL),
        [
            "train.duration=50",
            "optimizer.lr=3e-4",
            "data.sources.1.weight=3",
            "model.config.hidden_size=64",
            "model.config.id2label.0=x",
            "name=a=b",
            "tokenizer={algorithm: bpe}",
            "schedule.decay=null",
        ],
    )
    assert recipe.train.duration == Amount.steps(50)
    assert recipe.optimizer.lr == 3e-4
    assert recipe.data.sources[1].weight == 3
    assert recipe.model.config == {"hidden_size": 64, "num_hidden_layers": 4, "id2label": {"0": "x"}}
    assert recipe.name == "a=b"
    assert (recipe.tokenizer.algorithm, recipe.tokenizer.vocab_size) == ("bpe", 4096)
    assert recipe.schedule.decay == Amount.percent(20)


def test_an_override_can_replace_the_sources_and_open_a_section(write: Any) -> None:
    recipe = recipes.load(write("objective: clm\n"), ["data.sources=[{files: my.txt}]", "train.compile=false"])
    assert recipe.data.sources == (Source(files="my.txt"),)
    assert recipe.train.compile is False


def test_null_on_the_command_line_takes_a_key_away(write: Any) -> None:
    path = write(SMALL + "schedule: {name: wsd, decay: 10%}\n")
    assert errors_of(path, "schedule.name=cosine")
    assert recipes.load(path, ["schedule.name=cosine", "schedule.decay=null"]).schedule.name == "cosine"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.duration", "write KEY=VALUE"),
        ("=5", "write KEY=VALUE"),
        ("train..x=5", "write KEY=VALUE"),
        ("trian.duration=5", "trian: unknown key; did you mean train?"),
        ("train.duration=10 min", "train.duration: '10 min': unknown unit 'min'; did you mean minutes?"),
        ("data.sources.7.weight=2", "data.sources has no item 7 (it holds 1, counted from 0)"),
        ("data.sources.x=2", "data.sources has no item x (it holds 1, counted from 0)"),
        ("data.sources.0.weight=-2", "data.sources.0.weight: must be above 0, not -2"),
        ("data.sources=[{hubb: x}]", "data.sources.0.hubb: unknown key; did you mean hub?"),
        ("objective.x=2", "objective is the text 'mlm' and has no keys"),
        ("model={config: {a: 1, a: 2}}", "model.config.a: the key is there twice"),
        ("data.sources.0={files: *.txt}", "put text that begins with a sign such as *, &, % or @ in quotes"),
    ],
)
def test_an_error_of_an_override_names_the_override(write: Any, override: str, says: str) -> None:
    (error,) = errors_of(write(SMALL), override)
    assert error.startswith(f"override {override}: ")
    assert says in error


# Writing


def test_what_is_written_reads_back_and_holds_the_defaults(write: Any) -> None:
    recipe = recipes.load(write(FULL))
    text = recipes.dump(recipe)
    assert recipes.load(write(text)) == recipe
    assert recipes.from_mapping(recipes.to_mapping(recipe)) == recipe
    assert "log_every: 10" in text
    assert yaml.safe_load(text)["optimizer"]["lr"] == 0.001


@pytest.mark.parametrize(
    "name", ["1e-3", "no", "0o17", "010", "1:30", "null", "~", "true", "*x", "a: b", "é\u2028", "'"]
)
def test_text_that_looks_like_something_else_is_written_as_text(write: Any, name: str) -> None:
    recipe = recipes.from_mapping(small(name=name, model={"config": {"a": name, name: 1}}))
    assert recipes.load(write(recipes.dump(recipe))) == recipe


def test_keys_without_meaning_are_not_written() -> None:
    recipe = recipes.from_mapping(
        {
            "objective": "clm",
            "data": {"sources": [{"files": "a", "prompt_column": "p", "completion_column": "c"}]},
            "model": {"from": "x"},
            "schedule": {"name": "linear"},
        }
    )
    mapping = recipes.to_mapping(recipe)
    assert "masking" not in mapping
    assert mapping["model"] == {"from": "x"}
    assert mapping["tokenizer"] == {"from": None}
    assert mapping["schedule"] == {"name": "linear", "warmup": "5%", "final": 0.0}
    assert mapping["data"]["sources"][0] == {
        "files": "a",
        "prompt_column": "p",
        "completion_column": "c",
        "documents": "file",
        "streaming": False,
        "weight": None,
        "min_chars": None,
        "max_chars": None,
        "deduplicate": False,
        "drop_list": None,
        "repeat": True,
    }


# Whatever is written, the answer is a recipe or a sentence

VALUES = st.recursive(
    st.sampled_from(
        [None, True, 0, 1, -1, 64, 2**70, 0.5, 1e-3, float("inf"), "", "auto", "5%", "0", "3 epochs", "everyday", "x"]
    )
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "files", "every", "0"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [each for key, item in inner for each in paths_of(item, (*path, key))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_recipe_is_a_recipe_or_a_recipe_error(write: Any, data: st.DataObject) -> None:
    mapping = yaml.safe_load(FULL)
    mapping["optimizer"]["lr"] = 1e-3
    for path in data.draw(st.lists(st.sampled_from(paths_of(mapping)), min_size=1, max_size=3)):
        place = mapping
        try:
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = data.draw(VALUES)
        except (LookupError, TypeError):
            continue
    overrides = data.draw(st.lists(st.builds("{}={}".format, st.text(max_size=6), st.text(max_size=6)), max_size=1))
    text = yaml.safe_dump(mapping, allow_unicode=True)
    cut = data.draw(st.none() | st.integers(0, len(text)))
    try:
        recipe = recipes.load(write(text[:cut]), overrides)
    except RecipeError as error:
        assert error.message.strip()
    else:
        assert isinstance(recipe, Recipe)
        assert recipes.load(write(recipes.dump(recipe))) == recipe
