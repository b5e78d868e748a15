"""The token store: kept whole, found again, rebuilt where it is damaged."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import TEXTS, bert, bert_of, documents, gpt, source_of
from tiny import write_corpus
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hfpretrain.data import parts
from hfpretrain.data.parts import Shard
from hfpretrain.data.sources import OpenSource, open_source
from hfpretrain.data.tokens import end_of_document, prepare, prepare_shard
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


def test_a_second_run_waits_for_the_first_and_reads_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reading, go_on, waits = threading.Event(), threading.Event(), threading.Event()
    first = source_of(tmp_path, TEXTS)
    second = open_source(Source(files=str(tmp_path / "corpus.jsonl")))
    read = first.read

    def read_slowly(report: Any) -> Any:
        reading.set()
        assert go_on.wait(60)
        yield from read(report)

    def must_not_read(report: Any) -> Any:
        raise AssertionError("the source is read twice")

    def heard(record: logging.LogRecord) -> bool:
        if "another process is preparing the same tokens" in record.getMessage():
            waits.set()
        return True

    first.read, second.read = read_slowly, must_not_read
    caplog.handler.addFilter(heard)
    try:
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(prepare, first, bert(), end_id=3, cache=tmp_path)
            assert reading.wait(60)
            two = pool.submit(prepare, second, bert(), end_id=3, cache=tmp_path)
            assert waits.wait(60)
            go_on.set()
            assert documents(one.result()) == documents(two.result())
    finally:
        go_on.set()
        caplog.handler.removeFilter(heard)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [one.result().fingerprint]


def test_what_was_left_unfinished_is_removed_after_a_week(tmp_path: Path) -> None:
    for name, days in (("old", 8), ("new", 6)):
        folder = tmp_path / f"tokens/.building-{name}"
        folder.mkdir(parents=True)
        time = folder.stat().st_mtime - days * 24 * 3600
        os.utime(folder, (time, time))
    store = prepare(source_of(tmp_path, TEXTS), bert(), end_id=3, cache=tmp_path)
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [".building-new", store.fingerprint]


def test_what_a_kill_just_after_the_end_left_goes_with_the_next_run(tmp_path: Path) -> None:
    """Parts that are joined already are of no use; who else is about them is not disturbed."""
    source = source_of(tmp_path, TEXTS)
    store = prepare(source, bert(), end_id=3, cache=tmp_path)
    building = parts.Building(tmp_path / "tokens", store.fingerprint)
    with building.held(alone=True, waiting=lambda: None):
        building.part(0).write_bytes(b"")
        prepare(source, bert(), end_id=3, cache=tmp_path)
        assert building.part(0).exists()
    assert building.part(0).exists()
    prepare(source, bert(), end_id=3, cache=tmp_path)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [store.fingerprint]


def contents(cache: Path) -> dict[str, bytes]:
    """What is in the token cache, file by file."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


SMALL_PARTS = {"PART_CHARACTERS": 3000, "BATCH_CHARACTERS": 500}
KILLED = """
import os, signal, sys
from pathlib import Path
from hfpretrain.data import parts
from hfpretrain.data.sources import open_source
from hfpretrain.data.tokens import prepare
from hfpretrain.recipe import Source
from small_tokenizers import bert_of

corpus, cache, specification, calls_left = *map(Path, sys.argv[1:4]), int(sys.argv[4])
for setting in sys.argv[5:]:
    name, size = setting.split("=")
    setattr(parts, name, int(size))
source, tokenizer = open_source(Source(files=str(corpus))), bert_of(specification.read_text())

def count(frame, event, argument):
    global calls_left
    calls_left -= 1
    if calls_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(count)
prepare(source, tokenizer, end_id=3, cache=cache)
sys.setprofile(None)
print(-calls_left)
"""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL_PARTS.items():
        monkeypatch.setattr(parts, name, size)


def prepare_killed(folder: Path, cache: str, after_calls: int) -> "subprocess.CompletedProcess[str]":
    """Prepares the corpus in a process that is killed (-9) after so many calls of functions, or says how many."""
    specification = folder / "tokenizer.json"
    specification.write_text(bert().backend_tokenizer.to_str(), encoding="utf-8")
    settings = [f"{name}={size}" for name, size in SMALL_PARTS.items()]
    given = [str(folder / "corpus.jsonl"), str(folder / cache), str(specification), str(after_calls), *settings]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-c", KILLED, *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)


def test_killed_at_any_place_the_next_run_gives_the_same_bytes(
    tmp_path: Path, small_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_corpus(tmp_path / "corpus.jsonl", documents=400)
    undisturbed = prepare_killed(tmp_path, "undisturbed", 0)
    calls = int(undisturbed.stdout)
    for part in (2, 3, 4):  # each run goes on where the one before was
        assert prepare_killed(tmp_path, "killed", calls // part).returncode == -signal.SIGKILL
        assert not list((tmp_path / "killed/tokens").glob("[!.]*"))
    source = open_source(Source(files=str(tmp_path / "corpus.jsonl")))
    prepare(source, bert(), end_id=3, cache=tmp_path / "killed")
    assert "going on: parts prepared before" in caplog.text
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_shards_prepared_apart_are_joined_to_the_same_bytes(
    tmp_path: Path, small_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_corpus(tmp_path / "corpus.jsonl", documents=400)

    def source() -> OpenSource:
        return open_source(Source(files=str(tmp_path / "corpus.jsonl")))

    whole = prepare(source(), bert(), end_id=3, cache=tmp_path / "whole")
    for number in (3, 2):
        assert prepare_shard(source(), bert(), Shard(number, 3), end_id=3, cache=tmp_path / "shards") is None
    # The first share is missing, and of the others a part is damaged: who joins prepares both.
    made = sorted((tmp_path / "shards").rglob("part-*"))
    assert [int(part.name[-6:]) for part in made[:4]] == [1, 2, 4, 5]
    made[0].write_bytes(made[0].read_bytes()[:-1])
    joined = prepare(source(), bert(), end_id=3, cache=tmp_path / "shards")
    assert f"going on: parts prepared before: {len(made)} " in caplog.text
    assert f"{made[0].name} is damaged" in caplog.text
    assert documents(joined) == documents(whole)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")
    # Of a whole store there is no share to prepare.
    assert prepare_shard(source(), bert(), Shard(1, 3), end_id=3, cache=tmp_path / "shards") is not None


def test_when_all_shards_are_there_nothing_is_read_again(tmp_path: Path, small_parts: None, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    write_corpus(tmp_path / "corpus.jsonl", documents=200)
    source = open_source(Source(files=str(tmp_path / "corpus.jsonl")))
    for number in (1, 2):
        prepare_shard(source, bert(), Shard(number, 2), end_id=3, cache=tmp_path / "shards")

    def must_not_read(report: Any) -> Any:
        raise AssertionError("the source is read again")

    source.read = must_not_read
    store = prepare(source, bert(), end_id=3, cache=tmp_path / "shards")
    assert store.manifest["documents"] == 200
    assert "joined from parts prepared before" in caplog.text


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
