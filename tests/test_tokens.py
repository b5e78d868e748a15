"""The token store: kept whole, found again, rebuilt where it is damaged."""

import logging
import os
import shutil
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import TEXTS, bert, bert_of, documents, gpt, source_of
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hfpretrain.data.sources import open_source
from hfpretrain.data.tokens import TokenStore, end_of_document, prepare
from hfpretrain.errors import DataError
from hfpretrain.files import cache_folder
from hfpretrain.recipe import Source


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_uses_the_cache_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokenizer = bert()
    first = prepare(source_of(tmp_path, TEXTS), tokenizer, end_id=3, cache=tmp_path / "cache")
    assert f"documents: 4, tokens: {len(first.tokens)} " in caplog.text
    assert "MB/s" in caplog.text
    before = files_of(tmp_path / "cache")
    caplog.clear()
    source = open_source(Source(files=str(tmp_path / "corpus.jsonl")))
    second = prepare(source, bert(), end_id=3, cache=tmp_path / "cache")
    assert f"using {len(first.tokens)} tokens of 4 documents prepared before" in caplog.text
    assert files_of(tmp_path / "cache") == before
    assert second.fingerprint == first.fingerprint
    assert second.manifest == first.manifest
    for name in ("tokens", "offsets", "keys"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert [path.name for path in (tmp_path / "cache/tokens").iterdir()] == [first.fingerprint]


def test_another_content_tokenizer_or_end_is_another_store(tmp_path: Path) -> None:
    tokenizer = bert()
    stores = [
        prepare(source_of(tmp_path, TEXTS), tokenizer, end_id=3, cache=tmp_path),
        prepare(source_of(tmp_path, TEXTS), tokenizer, end_id=None, cache=tmp_path),
        prepare(source_of(tmp_path, TEXTS), bert(TEXTS[:2]), end_id=3, cache=tmp_path),
        prepare(source_of(tmp_path, [*TEXTS, "more"]), tokenizer, end_id=3, cache=tmp_path),
    ]
    assert len({store.fingerprint for store in stores}) == 4
    assert len(stores[3].keys) == 5


def test_equal_texts_have_equal_keys(tmp_path: Path) -> None:
    store = prepare(source_of(tmp_path, ["a", "b", "a"]), gpt(), end_id=0, cache=tmp_path)
    assert store.keys[0] == store.keys[2] != store.keys[1]
    assert store.keys.dtype == np.uint64


def cut_tokens(folder: Path) -> None:
    (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-2])


def prolong_offsets(folder: Path) -> None:
    with (folder / "offsets.bin").open("ab") as file:
        file.write(bytes(8))


def cut_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"documents": 4')


def lose_keys(folder: Path) -> None:
    (folder / "keys.bin").unlink()


@pytest.mark.parametrize("damage", [cut_tokens, prolong_offsets, cut_manifest, lose_keys])
def test_a_damaged_store_is_prepared_again_and_said(tmp_path: Path, damage: Any, caplog: Any) -> None:
    first = prepare(source_of(tmp_path, TEXTS), bert(), end_id=3, cache=tmp_path)
    expected = documents(first)
    damage(tmp_path / "tokens" / first.fingerprint)
    source = open_source(Source(files=str(tmp_path / "corpus.jsonl")))
    second = prepare(source, bert(), end_id=3, cache=tmp_path)
    assert "are damaged" in caplog.text
    assert second.fingerprint == first.fingerprint
    assert documents(second) == expected
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [first.fingerprint]


def prepare_in_process(path: str, cache: str, specification: str, barrier: Any, results: Any) -> None:
    source = open_source(Source(files=path))
    tokenizer = bert_of(specification)
    barrier.wait()
    store = prepare(source, tokenizer, end_id=3, cache=Path(cache))
    results.put((store.fingerprint, documents(store)))


def test_two_processes_at_once_agree_on_one_store(tmp_path: Path) -> None:
    source_of(tmp_path, TEXTS)
    context = get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path / "corpus.jsonl"), str(tmp_path), bert().backend_tokenizer.to_str(), barrier, results)
    processes = [context.Process(target=prepare_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = results.get(timeout=100), results.get(timeout=100)
    for process in processes:
        process.join()
    assert first == second
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [first[0]]


def test_whoever_commits_second_uses_the_first_store(tmp_path: Path) -> None:
    tokenizer = bert()
    path = source_of(tmp_path, TEXTS * 600) and tmp_path / "corpus.jsonl"
    winner: list[TokenStore] = []

    def other_process_finishes(_: int) -> None:
        if not winner:
            winner.append(prepare(open_source(Source(files=str(path))), tokenizer, end_id=3, cache=tmp_path))
            files.update(files_of(tmp_path / "tokens" / winner[0].fingerprint))

    files: dict[str, tuple[int, int]] = {}
    source = open_source(Source(files=str(path)))
    store = prepare(source, tokenizer, end_id=3, cache=tmp_path, progress=other_process_finishes)
    assert files_of(tmp_path / "tokens") == files
    assert documents(store) == documents(winner[0])


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    for name, age in (("old", 100_000), ("new", 10)):
        folder = tmp_path / f"tokens/.building-{name}"
        folder.mkdir(parents=True)
        (folder / "tokens.bin").touch()
        time = (folder / "tokens.bin").stat().st_mtime - age
        os.utime(folder / "tokens.bin", (time, time))
    store = prepare(source_of(tmp_path, TEXTS), bert(), end_id=3, cache=tmp_path)
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [".building-new", store.fingerprint]


def test_an_error_while_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n' * 3000 + "{\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl:3001: not JSON"):
        prepare(open_source(Source(files=str(path))), bert(), end_id=3, cache=tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_skipped_rows_are_counted_and_said_again_from_the_cache(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n{}\n{"text": " "}\n{"text": "b"}\n')
    for _ in range(2):
        source = open_source(Source(files=str(path)), on_bad_rows="skip")
        store = prepare(source, bert(), end_id=3, cache=tmp_path)
        assert (store.manifest["documents"], store.manifest["skipped"], store.manifest["blank"]) == (2, 1, 1)
    assert "prepared before (1 bad rows were skipped then)" in caplog.text
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: no column 'text'"):
        prepare(open_source(Source(files=str(path))), bert(), end_id=3, cache=tmp_path)


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_a_corpus_without_text_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"data\.sources\.0 has no text"):
        prepare(open_source(Source(files=str(tmp_path / "a.txt"))), bert(), end_id=3, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"the token cache .* cannot be written") as caught:
        prepare(source_of(tmp_path, TEXTS), bert(), end_id=3, cache=tmp_path / "cache")
    assert "HFPRETRAIN_CACHE" in str(caught.value.hint)


def test_the_store_is_independent_of_later_changes_to_the_cache(tmp_path: Path) -> None:
    store = prepare(source_of(tmp_path, TEXTS), bert(), end_id=3, cache=tmp_path)
    before = documents(store)
    shutil.rmtree(tmp_path / "tokens")
    assert documents(store) == before


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HFPRETRAIN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache/hfpretrain"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/hfpretrain"
    monkeypatch.setenv("HFPRETRAIN_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_what_ends_a_document() -> None:
    assert end_of_document(bert(), "mlm") == end_of_document(bert(), "clm") == 3
    assert end_of_document(gpt(), "clm") == end_of_document(gpt(), "mlm") == 0
    both = bert()
    both.eos_token = "[PAD]"
    assert (end_of_document(both, "clm"), end_of_document(both, "mlm")) == (0, 3)
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert end_of_document(PreTrainedTokenizerFast(tokenizer_object=backend), "clm") is None
