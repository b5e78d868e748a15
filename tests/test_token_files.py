"""Files of token ids that other tools made, as sources: read in place, checked, and the same as prepared text."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import metrics, tiny_recipe, tiny_run, write_corpus
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.batches import Batches, open_batches
from hfpretrain.data.sources import open_source
from hfpretrain.data.stores import store_of
from hfpretrain.data.token_files import JoinedTokens
from hfpretrain.data.tokens import TokenStore
from hfpretrain.errors import DataError, RecipeError
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import Source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedTokenizerBase, TokenStore]:
    """A folder with the same tokens in all kinds of files, their tokenizer, and the store they come from."""
    folder = tmp_path_factory.mktemp("tokens")
    recipe = tiny_recipe(folder, "clm")
    tokenizer = build_tokenizer(recipe)
    tokenizer.save_pretrained(folder / "tokenizer")
    store = open_batches(recipe, tokenizer).stores[0]
    half = int(store.offsets[len(store.keys) // 2])
    parts = store.tokens[:half], store.tokens[half:]
    for number, part in enumerate(parts):
        part.astype("<u2").tofile(folder / f"{number}.bin")
        np.save(folder / f"{number}.npy", part.astype(np.int32))
        ends = store.offsets[1:] - number * half
        write_ds(folder / f"{number}.ds", part, ends[(ends > 0) & (ends <= len(part))])
    return folder, tokenizer, store


def write_ds(path: Path, tokens: Any, ends: Any) -> None:
    tokens.astype("<u4").tofile(path)
    ends.astype("<u8").tofile(f"{path}.index")
    Path(f"{path}.metadata").write_text(f"tokenizer.json|4\n{len(tokens)}\n1 kT")


def opened(folder: Path, tokens: str, *more: str) -> Batches:
    settings = [f"data.sources=[{{{tokens}}}]", f"tokenizer={{from: {folder}/tokenizer}}", *more]
    recipe = tiny_recipe(folder, "clm", *settings)
    return open_batches(recipe, build_tokenizer(recipe))


@pytest.mark.parametrize("kind", ["bin", "npy", "ds"])
def test_the_files_hold_what_prepared_text_holds(made: Any, kind: str) -> None:
    folder, _, store = made
    batches = opened(folder, f"tokens: '{folder}/*.{kind}'")
    (found,) = batches.stores
    assert found.offsets.tolist() == store.offsets.tolist()
    assert np.asarray(found.tokens[:]).tolist() == store.tokens.tolist()
    assert len(set(found.keys.tolist())) == len(set(store.keys.tolist()))
    assert found.text_bytes == pytest.approx(store.text_bytes, rel=0.02)
    assert found.manifest["words"] == pytest.approx(store.manifest["words"], rel=0.02)
    blocks = batches.parts[0].blocks
    text = [block.token_ids.tolist() for block in blocks]
    assert len(text) == len(blocks)


def test_a_run_on_tokens(made: Any) -> None:
    """Trains, names no path in its card, and evaluates text."""
    folder, _, _ = made
    settings = [f"data.sources=[{{tokens: '{folder}/*.bin'}}]", f"tokenizer={{from: {folder}/tokenizer}}"]
    run = tiny_run(folder, "clm", *settings, name="run")
    assert len([line for line in metrics(run) if "loss" in line]) == 12
    card = run.card_file.read_text()
    assert str(folder) not in card
    assert "data.sources.0.tokens=PATH" in card


def test_the_index_is_kept_and_a_changed_file_looked_at_again(made: Any, tmp_path: Path, caplog: Any) -> None:
    folder, tokenizer, _ = made
    caplog.set_level(logging.INFO)
    file = tmp_path / "a.bin"
    file.write_bytes((folder / "0.bin").read_bytes())

    def read() -> TokenStore:
        source = open_source(Source(tokens=str(file)))
        return store_of(source, tokenizer, end_id=tokenizer.eos_token_id, cache=tmp_path / "cache")

    first = read()
    assert "looked at before" not in caplog.text
    assert read().offsets.tolist() == first.offsets.tolist()
    assert caplog.text.count("looked at before") == 1
    file.write_bytes((folder / "1.bin").read_bytes())
    os.utime(file, ns=(0, 0))
    assert read().offsets.tolist() != first.offsets.tolist()
    assert caplog.text.count("looked at before") == 1


def test_files_without_an_end_of_text(made: Any, tmp_path: Path, caplog: Any) -> None:
    _, tokenizer, _ = made
    for number in range(3):
        np.arange(10 + number, 30 + number, dtype=np.uint16).tofile(tmp_path / f"{number}.bin")
    source = open_source(Source(tokens=str(tmp_path)))
    store = store_of(source, tokenizer, end_id=None, cache=tmp_path / "cache")
    assert store.offsets.tolist() == [0, 20, 40, 60]
    assert "no token ends a document, so that each file is one" in caplog.text


def test_slices_of_joined_files() -> None:
    joined = JoinedTokens([np.arange(5), np.arange(5, 6), np.arange(6, 20)])
    for start in range(21):
        for end in range(start, 21):
            assert joined[start:end].tolist() == list(range(start, end))
    assert len(joined) == 20


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", b"", r"a\.bin: the file is empty"),
        ("a.bin", b"abc", r"a\.bin: 3 bytes are no whole number of uint16"),
        ("a.bin", b"\xff\xff" * 3, r"a\.bin: token 0 is 65535, and the tokenizer has ids up to 319"),
        ("a.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u2'", r"a\.npy: the \.npy file is truncated or damaged"),
        ("a.ds", b"\x01\x00\x02\x00", None),
    ],
)
def test_files_that_cannot_be_tokens(made: Any, tmp_path: Path, name: str, content: bytes, said: str | None) -> None:
    _, tokenizer, _ = made
    (tmp_path / name).write_bytes(content)
    if said is None:
        np.array([2], dtype="<u8").tofile(tmp_path / "a.ds.index")
        store_of(open_source(Source(tokens=str(tmp_path / name))), tokenizer, end_id=0, cache=tmp_path / "cache")
        np.array([3], dtype="<u8").tofile(tmp_path / "a.ds.index")
        said = r"a\.ds: has 2 tokens, and its index ends at 3"
    with pytest.raises(DataError, match=said):
        store_of(open_source(Source(tokens=str(tmp_path / name))), tokenizer, end_id=0, cache=tmp_path / "cache")


def test_numbers_of_another_size_are_seen(made: Any, tmp_path: Path) -> None:
    _, _, store = made
    store.tokens.astype("<u4").tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"a\.bin: every second number is 0, as if it held uint32"):
        open_source(Source(tokens=str(tmp_path / "a.bin")))
    with pytest.raises(DataError, match="as if it held uint32"):
        open_source(Source(tokens=str(tmp_path / "a.bin"), dtype="uint16"))
    assert open_source(Source(tokens=str(tmp_path / "a.bin"), dtype="uint32")).token_files


def test_an_index_that_comes_later_counts(made: Any, tmp_path: Path) -> None:
    _, tokenizer, store = made
    ends = store.offsets[1:]
    write_ds(tmp_path / "a.ds", store.tokens, ends)
    (tmp_path / "a.ds.index").rename(tmp_path / "index")
    counts = []
    for _ in range(2):
        source = open_source(Source(tokens=str(tmp_path / "a.ds")))
        counts.append(len(store_of(source, tokenizer, end_id=None, cache=tmp_path / "cache").keys))
        if (tmp_path / "index").exists():
            (tmp_path / "index").rename(tmp_path / "a.ds.index")
    assert counts == [1, len(ends)]


def test_other_arrays_and_masks_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4), dtype=np.uint16))
    with pytest.raises(DataError, match=r"holds an array of 2 dimensions of uint16, not a row of token ids"):
        open_source(Source(tokens=str(tmp_path / "a.npy")))
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="truncated or damaged"):
        open_source(Source(tokens=str(tmp_path / "b.npy")))
    np.zeros(4, dtype=np.uint16).tofile(tmp_path / "c.ds")
    (tmp_path / "c.ds.loss").write_bytes(b"\x01" * 4)
    with pytest.raises(DataError, match=r"c\.ds: has a \.loss file"):
        open_source(Source(tokens=str(tmp_path / "c.ds")))
    with pytest.raises(DataError, match=r"unknown file type \.txt"):
        (tmp_path / "d.txt").write_text("a")
        open_source(Source(tokens=str(tmp_path / "d.txt")))


def test_tokens_need_their_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.sources\.0\.tokens: needs the tokenizer that made them"):
        tiny_recipe(tmp_path, "clm", "data.sources=[{tokens: a.bin}]")
    with pytest.raises(RecipeError, match=r"data\.sources\.0\.min_chars: goes with builtin or files or hub"):
        tiny_recipe(tmp_path, "clm", "data.sources=[{tokens: a.bin, min_chars: 3}]", "tokenizer={from: x}")


def test_tokens_beside_text_with_weights(made: Any, tmp_path: Path) -> None:
    folder, _, _ = made
    corpus = write_corpus(tmp_path / "more.jsonl", documents=50, seed=5)
    sources = f"tokens: '{folder}/*.npy', weight: 3}}, {{files: {corpus}, weight: 1"
    batches = opened(folder, sources)
    assert [source["documents"] for source in batches.sources] == [120, 50]
    taken = batches.order.taken(400)
    assert list(taken) == [300, 100]
    assert json.dumps(batches.sources[0])
