"""A thousand and more wrong recipes: loading gives a recipe that survives being written out, or says what is wrong.

Recipes are changed by their structure (keys and values of any kind at any place, in the file and as overrides) and by
their bytes. The examples are the same in every run.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfpretrain import recipe as recipes
from hfpretrain import strict_yaml
from hfpretrain.errors import RecipeError

SHIPPED = Path(__file__).parent.parent / "recipes"
RICH = """\
name: rich
objective: mlm
seed: 3
output_dir: runs/rich
model: {architecture: bert, config: {hidden_size: 32, layers: [1, {a: null}], x: .5}}
tokenizer: {algorithm: wordpiece, vocab_size: 512, lowercase: true}
data:
  sources:
    - {builtin: everyday, size: 3MB, weight: 1}
    - {files: [a.txt, "b/**/*.jsonl.gz"], text_column: t, weight: 2.5}
    - files: pairs.jsonl
      prompt_column: input_texts
      completion_column: output_texts
      weight: 1e-3
  validation: [{hub: org/data, subset: x, split: test}]
  block_size: 64
  packing: concat
masking: {rate: 0.3, mask: 0.8, random: 0.1}
train: {duration: 20M tokens, batch_size: 8, micro_batch_size: 4, compile: false, gradient_clip: 0}
optimizer: {name: muon, lr: 3e-4, betas: [0.9, 0.99]}
schedule: {name: cosine, warmup: 10 steps, final: 0.1}
evaluation: {every: 5%, max_tokens: 1000}
checkpoints: {every: 10 minutes, keep: 3}
hub: {repo_id: me/rich, push: checkpoints, name_by: words, language: [en, de], examples: ["a [MASK]\\n b"]}
"""
TEXTS = [RICH, "objective: clm\ndata: {sources: [{builtin: everyday}]}\n"]
TEXTS += [path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.yaml"))]

_FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def many(examples: int) -> settings:
    return settings(_FIXED, max_examples=examples)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("recipe.yaml")


def judge(place: Path, content: bytes, overrides: list[str]) -> str:
    """Loads; "loaded" or "refused". Fails where it is neither, or where an error does not say where."""
    place.write_bytes(content)
    try:
        loaded = recipes.load(place, overrides)
    except RecipeError as error:
        assert error.message and error.exit_status == 2
        for line in error.message.split("\n"):
            assert line.startswith(("recipe.yaml:", "override ")), line
            assert len(line) <= 1000 and line.isprintable()
        return "refused"
    place.write_text(recipes.dump(loaded), encoding="utf-8")
    assert recipes.load(place) == loaded
    return "loaded"


# By structure

KEYS = st.sampled_from(
    sorted({word for text in TEXTS for word in re.findall(r"\w+(?=:)", text)} | {"from", "token", "streaming", "<<"})
)
WORDS = st.sampled_from(sorted({word for text in TEXTS for word in re.findall(r"[^\s{}\[\],:]+", text)}))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63, 10**30, 10**400]),
    st.floats(),
    WORDS,
    st.text(max_size=20),
    st.sampled_from(["", " ", "600 steps", "5%", "-5%", "1e99 tokens", "3MB", "0x1F", "1_000", "no", "~", "=", "a=b"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(tree: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [keys] + [found for key, value in items for found in places(value, (*keys, key))]


def changed(tree: Any, keys: tuple[Any, ...], how: str, key: str, value: Any) -> Any:
    """A copy of the tree with one thing replaced, deleted or added."""
    if not keys:
        return value if how == "replace" else tree
    tree = copy.deepcopy(tree)
    parent = tree
    for step in keys[:-1]:
        parent = parent[step]
    if how == "delete":
        del parent[keys[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[key] = value
    elif how == "add":
        parent.insert(keys[-1], value)
    else:
        parent[keys[-1]] = value
    return tree


def written(value: Any) -> str:
    text = strict_yaml.write(value)
    return text.removesuffix("...\n").removesuffix("\n")


TREES = [recipes.to_mapping(recipes.load(path)) for path in sorted(SHIPPED.glob("*.yaml"))]
HOW = st.sampled_from(["replace", "delete", "add"])


@st.composite
def trees(draw: st.DrawFn) -> Any:
    tree = draw(st.sampled_from(TREES))
    for _ in range(draw(st.integers(1, 3))):
        tree = changed(tree, draw(st.sampled_from(places(tree))), draw(HOW), draw(KEYS), draw(VALUES))
    return tree


@many(500)
@given(tree=trees())
def test_recipes_changed_by_their_structure(place: Path, tree: Any) -> None:
    judge(place, written(tree).encode(errors="surrogatepass"), [])


@st.composite
def overrides(draw: st.DrawFn) -> str:
    tree = draw(st.sampled_from(TREES))
    way = list(map(str, draw(st.sampled_from(places(tree))))) or [draw(KEYS)]
    if draw(st.booleans()):
        way[draw(st.integers(0, len(way) - 1))] = draw(KEYS | st.text(max_size=5) | st.sampled_from(["0", "-1", "99"]))
    return f"{'.'.join(way)}{draw(st.sampled_from(['=', '=', '=', ' = ', '', '==']))}{written(draw(VALUES))}"


@many(300)
@given(
    text=st.sampled_from(TEXTS), given_overrides=st.lists(overrides() | st.text(max_size=30), min_size=1, max_size=3)
)
def test_overrides_of_every_kind(place: Path, text: str, given_overrides: list[str]) -> None:
    judge(place, text.encode(), given_overrides)


# By their text and bytes

SIGNS = [
    *"\0\t\n\r \"'#&*!|>%@`-:?,[]{}=~<\\/.0eE\x85\u2028\ufeff\ufffe\x1b",
    *("- ", ": ", "? ", "<<: ", "!!", "&a ", "*a", "---\n", "...\n", "%YAML 1.1\n", "|\n", ">-\n", "\n  ", "{{"),
    *("!!python/name:os.system ", '"\\x00"', '"\\ud800"'),
]
PIECES = st.sampled_from(SIGNS) | st.text(max_size=3) | WORDS


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 10, 100])))
        piece = draw(PIECES) if draw(st.booleans()) else text[draw(st.integers(0, len(text))) :][:30]
        text = text[:start] + piece + text[end:]
    return text.encode("utf-8", errors="surrogatepass")


@many(300)
@given(content=texts())
def test_recipes_changed_by_their_text(place: Path, content: bytes) -> None:
    judge(place, content, [])


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(TEXTS)).encode())
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.sampled_from([len(content), len(content) // 2]))])


@many(150)
@given(content=contents() | st.binary(max_size=60))
def test_recipes_changed_by_their_bytes(place: Path, content: bytes) -> None:
    judge(place, content, [])
