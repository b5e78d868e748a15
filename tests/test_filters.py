"""Filters of sources: what is left out is counted and said, the same for tokenizer and model, in bounded memory."""

import hashlib
import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import gpt
from test_sources import write_table
from tiny import tiny_run

from hfpretrain.data.filters import Digests
from hfpretrain.data.sources import Document, OpenSource, open_source, open_sources
from hfpretrain.data.tokens import TokenStore, prepare
from hfpretrain.errors import DataError, RecipeError
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import Source, from_mapping


def corpus(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(source: OpenSource) -> list[str]:
    return [document.text for document in source.documents()]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_short_and_long_documents_are_left_out_and_counted(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    files = corpus(tmp_path / "a.jsonl", ["日本", "日本語", "abcd", "abcde", "abcdef", ""])
    source = open_source(Source(files=files, min_chars=3, max_chars=5))
    assert texts(source) == ["日本語", "abcd", "abcde"]
    assert source.left_out == {"min_chars": 1, "max_chars": 1}
    assert "data.sources.0: left out: 1 shorter than min_chars, 1 longer than max_chars" in caplog.text
    assert texts(source) == ["日本語", "abcd", "abcde"]
    assert source.left_out == {"min_chars": 1, "max_chars": 1}


def test_of_equal_texts_the_first_is_kept(tmp_path: Path) -> None:
    files = corpus(tmp_path / "a.jsonl", ["a", "b", "a", "a ", "A", "b", "c"])
    source = open_source(Source(files=files, deduplicate=True))
    assert texts(source) == ["a", "b", "a ", "A", "c"]
    assert source.left_out == {"deduplicate": 2}
    assert texts(source) == ["a", "b", "a ", "A", "c"]


def test_duplicates_are_found_across_the_sources_that_ask_for_it(tmp_path: Path) -> None:
    one, two = corpus(tmp_path / "1.jsonl", ["a", "b", "b"]), corpus(tmp_path / "2.jsonl", ["a", "x", "x"])
    three = corpus(tmp_path / "3.jsonl", ["x", "b", "new", "short"])
    sources = [
        Source(files=one, deduplicate=True),
        Source(files=two),
        Source(files=three, deduplicate=True, max_chars=4),
        Source(files=two, deduplicate=True),
    ]
    expected = [["a", "b"], ["a", "x", "x"], ["x", "new"], []]
    opened = opened_sources(sources)
    assert [texts(source) for source in opened[:3]] == expected[:3]
    with pytest.raises(DataError, match=r"data\.sources\.3 has no text \(.*2\.jsonl: 3 duplicates\)"):
        texts(opened[3])
    # In any order, and again, as when the tokens of some are in the cache.
    assert [texts(opened[number]) for number in (2, 0, 2)] == [expected[number] for number in (2, 0, 2)]
    next(iter(opened[0].documents()))
    assert texts(opened[2]) == ["x", "new"]


def test_a_drop_list_holds_hashes_as_sha256sum_prints_them(tmp_path: Path) -> None:
    (tmp_path / "dropped").write_text(f"# test set\n{sha256('b')}  b.txt\n\n{sha256('日本語').upper()}\n")
    files = corpus(tmp_path / "a.jsonl", ["a", "b", "日本語", "b", "c"])
    source = open_source(Source(files=files, drop_list=str(tmp_path / "dropped")))
    assert texts(source) == ["a", "c"]
    assert source.left_out == {"drop_list": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"abc\n", "dropped:1: not the SHA-256 of a text in hex"),
        (sha256("a").encode() + b"\n" + sha256("b").encode()[:-1], "dropped:2: not the SHA-256"),
        (b"\xff\xfe" + b"a\0", "dropped: is UTF-16"),
        (None, "data.sources.0.drop_list: there is no file"),
    ],
)
def test_a_drop_list_that_is_none_is_an_error_at_once(tmp_path: Path, content: bytes | None, said: str) -> None:
    files = corpus(tmp_path / "a.jsonl", ["a"])
    if content:
        (tmp_path / "dropped").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(Source(files=files, drop_list=str(tmp_path / "dropped")))
    assert said in caught.value.message


def test_a_pair_is_filtered_as_the_text_that_it_makes(tmp_path: Path) -> None:
    write_table(tmp_path / "a.jsonl", {"p": ["one", "one", "one two", "x"], "c": ["two", "two", "", "y"]})
    keys: dict[str, Any] = {"prompt_column": "p", "completion_column": "c"}
    source = open_source(Source(files=str(tmp_path / "a.jsonl"), min_chars=4, deduplicate=True, **keys))
    assert list(source.documents()) == [Document("one two", 3)]
    assert source.left_out == {"min_chars": 1, "deduplicate": 1}
    assert source.blank == 1


def test_the_builtin_corpus_and_data_sets_are_filtered_alike(tmp_path: Path, monkeypatch: Any) -> None:
    import datasets

    builtin = open_source(Source(builtin="everyday", size="20kB", min_chars=100, max_chars=400))
    found = texts(builtin)
    assert found
    assert all(100 <= len(text) <= 400 for text in found)
    assert builtin.left_out.total() == len(texts(open_source(Source(builtin="everyday", size="20kB")))) - len(found)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_table(tmp_path / "set/train.parquet", {"text": ["a", "bb", "bb", "ccc"]})
    (tmp_path / "set/train.plain").unlink()
    assert texts(open_source(Source(hub=str(tmp_path / "set"), deduplicate=True, max_chars=2))) == ["a", "bb"]


def opened_sources(sources: list[Source]) -> list[OpenSource]:
    return open_sources([(f"data.sources.{number}", source) for number, source in enumerate(sources)])


def prepared(sources: list[Source], cache: Path) -> list[TokenStore]:
    return [prepare(source, gpt(), end_id=0, cache=cache) for source in opened_sources(sources)]


def test_filters_are_part_of_what_the_cache_knows(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    one, two = corpus(tmp_path / "1.jsonl", ["fox", "fox", "dog"]), corpus(tmp_path / "2.jsonl", ["dog", "lazy dog"])
    (tmp_path / "dropped").write_text(sha256("cat"))
    plain = Source(files=one)
    variants = [
        plain,
        Source(files=one, min_chars=1),
        Source(files=one, max_chars=3),
        Source(files=one, deduplicate=True),
        Source(files=one, drop_list=str(tmp_path / "dropped")),
    ]
    stores = [prepared([variant], tmp_path)[0] for variant in variants]
    assert len({store.fingerprint for store in stores}) == 5
    (tmp_path / "dropped").write_text(sha256("fox"))
    assert len(prepared([variants[4]], tmp_path)[0].keys) == 1
    both = [Source(files=one, deduplicate=True), Source(files=two, deduplicate=True)]
    first, second = prepared(both, tmp_path)
    assert first.fingerprint == stores[3].fingerprint
    assert second.manifest["left_out"] == {"deduplicate": 1}
    alone = prepared([both[1]], tmp_path)[0]
    assert alone.fingerprint != second.fingerprint
    assert len(alone.keys) == 2
    caplog.clear()
    again = prepared(both, tmp_path)
    assert [store.fingerprint for store in again] == [first.fingerprint, second.fingerprint]
    assert "data.sources.0: left out then: 1 duplicates" in caplog.text
    assert "data.sources.1: left out then: 1 duplicates" in caplog.text
    corpus(tmp_path / "1.jsonl", ["fox", "new dog"])  # what is a duplicate in the second follows from the first
    assert len(prepared(both, tmp_path)[1].keys) == 2


def test_a_trained_tokenizer_sees_what_the_model_sees(tmp_path: Path) -> None:
    one = corpus(tmp_path / "1.jsonl", ["aaa", "aaa", "bb"])
    two = corpus(tmp_path / "2.jsonl", ["aaa", "zzzzzz", "ccc", "ddd"])
    (tmp_path / "dropped").write_text(sha256("ddd"))
    filters = {"deduplicate": True, "max_chars": 5, "drop_list": str(tmp_path / "dropped")}
    mapping = {
        "objective": "clm",
        "tokenizer": {"algorithm": "char"},
        "data": {"sources": [{"files": one, **filters}, {"files": two, **filters}]},
    }
    words = set(build_tokenizer(from_mapping(mapping)).get_vocab())
    assert {"a", "b", "c"} <= words
    assert not {"z", "d"} & words


def test_what_was_left_out_is_in_the_report_and_on_the_card(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", "data.sources.0.min_chars=40", "data.sources.0.deduplicate=true")
    source = run.report()["sources"][0]
    left_out = source["left_out"]["min_chars"]
    assert source["documents"] + left_out + source["left_out"].get("deduplicate", 0) == 120
    assert f"Left out of local files: {left_out:,} shorter than min_chars" in run.card_file.read_text()
    assert "drop_list" not in run.card_file.read_text()


def test_the_card_tells_no_path_of_a_drop_list(tmp_path: Path) -> None:
    (tmp_path / "dropped").write_text("")
    run = tiny_run(tmp_path, "clm", f"data.sources.0.drop_list={tmp_path}/dropped", "train.duration=1")
    card = run.card_file.read_text()
    assert str(tmp_path) not in card
    assert "drop_list: PATH" in card
    assert "data.sources.0.files=PATH data.sources.0.drop_list=PATH" in card


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"min_chars": 9, "max_chars": 8}, "8 is less than min_chars, 9: nothing would be left"),
        ({"min_chars": 0}, "min_chars"),
        ({"deduplicate": "yes"}, "deduplicate"),
    ],
)
def test_filters_that_mean_nothing_are_errors_of_the_recipe(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        from_mapping({"objective": "clm", "data": {"sources": [{"builtin": "everyday", **keys}]}})


# -------------------------------------------------------------------------------------------------- sets of digests


def test_a_set_of_digests_is_a_set() -> None:
    random = np.random.default_rng(0)
    digests, known = Digests(), set()
    for _ in range(60):
        batch = random.integers(0, 2000, random.integers(1, 100)).tolist()
        ours = np.array([number.to_bytes(16, "little") for number in batch], dtype="S16")  # many zeros, in all places
        new = []
        for number in batch:
            new.append(number not in known)
            known.add(number)
        assert digests.add(ours).tolist() == new
        assert digests.holds(ours).all()
        assert len(digests) == len(known)


def test_a_set_of_digests_takes_16_bytes_for_each() -> None:
    random, digests = np.random.default_rng(0), Digests()
    tracemalloc.start()
    for _ in range(300):
        assert digests.add(np.frombuffer(random.bytes(16_000), dtype="S16")).all()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 300_000 * 17
    assert peak < 300_000 * 41
