"""The shipped recipes and the JSON Schema: all load, read back as written, and are what editors are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hfpretrain
from hfpretrain import recipe as recipes
from hfpretrain.recipe import Recipe, Source
from hfpretrain.recipe_loading import Draft

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
SCHEMA = Path(hfpretrain.__file__).parent / "recipe.schema.json"
VALIDATOR: Any = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_there_is_a_recipe_for_every_use() -> None:
    assert {path.stem for path in SHIPPED} >= {
        *("quickstart-mlm", "quickstart-clm", "shakespeare-char", "next-word-pairs"),
        *("tinystories-15m", "wikitext-bert", "fineweb-gpt2-124m", "continue-modernbert"),
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_reads_back_as_written(path: Path, tmp_path: Path) -> None:
    recipe = recipes.load(path)
    assert (recipe.name, recipe.output_dir) == (path.stem, f"runs/{path.stem}")
    copy = tmp_path / "recipe.yaml"
    copy.write_text(recipes.dump(recipe), encoding="utf-8")
    assert recipes.load(copy) == recipe


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_what_the_shipped_schema_allows(path: Path, tmp_path: Path) -> None:
    """As an editor checks it, by the file; and so is the same recipe with every default written out."""
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(recipes.dump(recipes.load(path)), encoding="utf-8")
    for file in (path, resolved):
        VALIDATOR.validate(Draft.from_file(Recipe, file).values)


def test_the_schema_is_one_and_tells_what_is_wrong() -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)
    whole = {"objective": "clm", "data": {"sources": [{"builtin": "everyday"}]}}
    VALIDATOR.validate(whole)
    assert not VALIDATOR.is_valid({"objective": "clm"})
    wrong: list[dict[str, Any]] = [
        {"objective": "both"},
        {"seed": -1},
        {"model": []},
        {"train": {"durations": 5}},
        {"train": {"duration": "five steps"}},
        {"optimizer": {"lr": 0}},
    ]
    for each in wrong:
        assert not VALIDATOR.is_valid(whole | each), each


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_says_what_it_is_and_where_its_schema_lies(path: Path) -> None:
    schema, comment, *_ = path.read_text(encoding="utf-8").splitlines()
    assert schema == "# yaml-language-server: $schema=../hfpretrain/recipe.schema.json"
    assert comment.startswith("# ")


def test_the_pairs_recipe_has_its_pairs() -> None:
    (source,) = recipes.load(ROOT / "recipes/next-word-pairs.yaml").data.sources
    assert source == Source(files="recipes/pairs.jsonl", prompt_column="input_texts", completion_column="output_texts")
    rows = [json.loads(line) for line in (ROOT / "recipes/pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"input_texts": "The quick brown", "output_texts": "fox"},
        {"input_texts": "The quick brown fox", "output_texts": "jumps"},
    ]


def test_the_schema_file_is_the_schema_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == recipes.json_schema(), (
        "refresh it: hfpretrain schema > hfpretrain/recipe.schema.json"
    )


def test_the_schema_describes_and_closes_every_object() -> None:
    schema = recipes.json_schema()
    assert schema["required"] == ["objective", "data"]
    assert schema["$defs"]["Model"]["properties"]["from"]["description"].startswith("Go on from these weights")
    objects = [schema, *(entry for entry in schema["$defs"].values() if entry["type"] == "object")]
    assert len(objects) == 18
    for entry in objects:
        assert entry["additionalProperties"] is False
        for key, value in entry["properties"].items():
            assert value.get("description") or value["$ref"], f"{key} has no docstring"
