"""Sources: every format gives the same documents, and what cannot be read is named by file and line."""

import csv
import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfpretrain.data.sources import Document, OpenSource, open_source
from hfpretrain.errors import DataError, RecipeError
from hfpretrain.recipe import Source

TEXTS = ["The cat sat.", "Ein Käse\nauf zwei Zeilen", 'She said "hi", and left.', "日本語のテキスト", " indented\t"]


def texts(source: OpenSource) -> list[str]:
    return [document.text for document in source.documents()]


def read(files: Any, **keys: Any) -> list[str]:
    return texts(open_source(Source(files=str(files) if isinstance(files, Path) else files, **keys)))


def write(path: Path, content: str | bytes) -> Path:
    """Writes the content, compressed if the name ends in .gz."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Writes the columns in the format that the name asks for."""
    kind = path.name.removesuffix(".gz")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kind.endswith(".jsonl"):
        return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if kind.endswith(".json"):
        return write(path, json.dumps(rows, indent=1))
    if kind.endswith(".csv"):
        with path.with_suffix(".plain").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
        return write(path, path.with_suffix(".plain").read_bytes().replace(b"\r\n", b"\n"))
    pq.write_table(pa.table(columns), path.with_suffix(".plain"), row_group_size=2)
    return write(path, path.with_suffix(".plain").read_bytes())


def refused(files: Any, on_bad_rows: Any = "error", **keys: Any) -> DataError:
    """The error of opening and reading the source."""
    with pytest.raises(DataError) as caught:
        texts(open_source(Source(files=str(files), **keys), on_bad_rows=on_bad_rows))
    assert "\n" not in caught.value.message
    return caught.value


# ---------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_table_format_gives_the_same_texts(tmp_path: Path, kind: str, gz: str) -> None:
    path = write_table(tmp_path / f"a.{kind}{gz}", {"id": [1, 2, 3, 4, 5], "body": TEXTS})
    source = open_source(Source(files=str(path), text_column="body"))
    assert texts(source) == TEXTS
    assert texts(source) == TEXTS  # once more: a source can be read again


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", "md"])
def test_text_files_are_one_document_or_one_per_paragraph_or_line(tmp_path: Path, kind: str, gz: str) -> None:
    path = write(tmp_path / f"a.{kind}{gz}", "\ufeffOne\r\ntwo\r\n\r\n  \r\nthree é\r\nfour\r\n")
    assert read(path) == ["One\ntwo\n\n  \nthree é\nfour\n"]
    assert read(path, documents="paragraph") == ["One\ntwo", "three é\nfour"]
    assert read(path, documents="line") == ["One", "two", "three é", "four"]


def test_json_files_may_hold_lists_per_column_or_lines(tmp_path: Path) -> None:
    columnar = write(tmp_path / "columns.json", json.dumps({"text": TEXTS, "n": [1, 2]}, indent=2))
    lines = write(tmp_path / "lines.json", "\n".join(json.dumps({"text": text}) for text in TEXTS))
    one = write(tmp_path / "one.json", json.dumps({"text": "alone"}))
    assert read(columnar) == read(lines) == TEXTS
    assert read(one) == ["alone"]


def test_parquet_dictionary_and_large_strings(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), tmp_path / "b.parquet")
    assert read(tmp_path) == TEXTS * 2


def test_a_pair_is_joined_by_one_space_and_the_completion_is_the_target(tmp_path: Path) -> None:
    columns = {"input_texts": ["The quick brown", "The quick ", "a", ""], "output_texts": ["fox", "fox", "\nb", "c"]}
    path = write(tmp_path / "pairs.json", json.dumps(columns))
    source = open_source(Source(files=str(path), prompt_column="input_texts", completion_column="output_texts"))
    assert list(source.documents()) == [
        Document("The quick brown fox", 15),
        Document("The quick fox", 10),
        Document("a\nb", 1),
        Document("c", 0),
    ]


def test_blank_texts_are_no_documents_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_table(tmp_path / "a.jsonl", {"text": ["", "a", " \n"]})
    with caplog.at_level(logging.INFO):
        source = open_source(Source(files=str(path)))
        assert texts(source) == ["a"]
    assert (source.blank, source.skipped) == (2, 0)
    assert "blank texts left out: 2" in caplog.text


# ------------------------------------------------------------------------------------------------------ finding files


def test_folders_globs_and_lists_are_sorted_and_hidden_files_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt.gz", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name, name)
    write(tmp_path / "b/picture.png", b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        assert read(".") == ["a.txt", "b/1.txt.gz", "b/2.txt"]
    assert "1 files of unknown types are left out" in caplog.text
    assert read("**/*.txt") == ["a.txt", "b/2.txt"]
    assert read(("b/*", "a.txt", "a.txt")) == ["a.txt", "b/1.txt.gz", "b/2.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/b/2.txt") == ["b/2.txt"]


def test_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "corpus/a.txt", "a")
    write(tmp_path / "elsewhere/b.txt", "b")
    (tmp_path / "corpus/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "corpus")
    assert read(tmp_path / "corpus") == ["a", "b"]


def test_a_missing_file_is_an_error_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", "x")
    with pytest.raises(DataError, match=r"data\.sources\.3\.files: there is no file or folder .*corpsu\.txt") as caught:
        open_source(Source(files=str(tmp_path / "corpsu.txt")), key="data.sources.3")
    assert "corpus.txt?" in str(caught.value.hint)


def test_nothing_to_read_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no files that can be read" in refused(tmp_path / "empty").message
    assert "the pattern" in refused(tmp_path / "*.txt").message
    write(tmp_path / "a.docx", "x")
    unknown = refused(tmp_path / "a.docx")
    assert "unknown file type .docx" in unknown.message
    assert ".parquet" in str(unknown.hint)
    assert "there is: .docx" in refused(tmp_path).message
    assert "a name is empty" in refused("").message


def test_keys_that_do_nothing_for_the_files_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.csv", {"text": ["a"]})
    assert "documents: line is for text files" in refused(table, documents="line").message
    text = write(tmp_path / "a.txt", "a")
    assert "text files have no columns" in refused(text, prompt_column="a", completion_column="b").message


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    source = Source(files=str(path))
    before = open_source(source).fingerprint
    assert open_source(source).fingerprint == json.loads(json.dumps(before)) | {"columns": before["columns"]}
    assert open_source(Source(files=str(path), documents="line")).fingerprint != before
    write(path, "b")
    os.utime(path, ns=(1, 1))
    assert open_source(source).fingerprint != before


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\nb\n")
    source = open_source(Source(files=str(path), documents="line"))
    documents = source.documents()
    next(documents)
    write(path, "a\nb\nc\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(documents)


# ----------------------------------------------------------------------------------------------------------- bad rows

GOOD, NEXT = b'{"text": "a"}\n', b'{"text": "b"}\n'
BAD_LINES = {
    "not UTF-8 (byte 0xff)": b'{"text": "\xff"}\n',
    "not JSON: Expecting": b'{"text": }\n',
    "the row is list, not an object": b'["text"]\n',
    "the row is null, not an object": b"null\n",
    "no column 'text'; the columns are: texts, id": b'{"texts": "a", "id": 1}\n',
    "column 'text' is null, not a text": b'{"text": null}\n',
    "column 'text' is int, not a text": b'{"text": 3}\n',
    "half of a surrogate pair": b'{"text": "\\ud83d"}\n',
    "nested too deeply": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_bad_json_line_is_named_or_skipped(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + b"\n" + BAD_LINES[what] + NEXT)
    error = refused(path)
    assert error.message.startswith(f"{path}:3: {what}") or (f"{path}:3:" in error.message and what in error.message)
    assert "data.on_bad_rows: skip" in str(error.hint)
    source = open_source(Source(files=str(path)), on_bad_rows="skip")
    assert texts(source) == ["a", "b"]
    assert source.skipped == 1
    assert f"skipped {path}:3: " in caplog.text
    assert "1 of 3 rows could not be read" in caplog.text


def test_the_nearest_column_is_suggested(tmp_path: Path) -> None:
    for kind in ("jsonl", "json", "csv", "parquet"):
        path = write_table(tmp_path / f"a.{kind}", {"content": ["a"], "id": ["1"]})
        error = refused(path, text_column="contents")
        assert "no column 'contents'; the columns are: content, id" in error.message
        assert "to content" in str(error.hint)


@pytest.mark.parametrize("documents", ["file", "paragraph", "line"])
def test_a_text_line_that_is_not_utf8_is_named_or_skipped(tmp_path: Path, documents: Any) -> None:
    path = write(tmp_path / "a.txt.gz", b"one\ntw\xe4\nthree\n")
    assert refused(path, documents=documents).message == f"{path}:2: not UTF-8 (byte 0xe4)"
    source = open_source(Source(files=str(path), documents=documents), on_bad_rows="skip")
    assert "".join(texts(source)).split() == (["onethree"] if documents == "line" else ["one", "three"])
    assert source.skipped == 1


def test_bad_csv_rows_are_named_or_skipped(tmp_path: Path) -> None:
    rows = {
        4: (b"1,2,3\n", "3 fields where the header has 2"),
        5: (b'1,"a\n\xff"\n', "not UTF-8 (byte 0xff)"),
        7: (b"1,a\0b\n", "holds a NUL byte"),
        8: (b'1,"a"b\n', "not CSV: ',' expected after '\"'"),
    }
    start = b'id,text\n1,"two\nlines"\n'
    for row, what in rows.values():
        error = refused(write(tmp_path / "a.csv", start + row))
        # A byte is named by its own line, everything else by the line its row begins on.
        assert error.message == f"{tmp_path}/a.csv:{5 if 'UTF-8' in what else 4}: {what}"
    path = write(tmp_path / "a.csv", start + b"1,good\n".join(row for row, _ in rows.values()) + b"\n1,last\n")
    source = open_source(Source(files=str(path)), on_bad_rows="skip")
    assert texts(source) == ["two\nlines", "good", "good", "good", "last"]
    assert source.skipped == 4
    assert "never closed" in refused(write(path, start + b'1,"open\n2,b\n'), "skip").message
    assert "no header line" in refused(write(path, b"")).message


def test_bad_parquet_rows_are_named_or_skipped(tmp_path: Path) -> None:
    damaged = pa.array([b"a", b"\xff", None, b"b"]).view(pa.string())
    pq.write_table(pa.table({"text": damaged}), tmp_path / "a.parquet")
    assert "a.parquet: row 2: column 'text' is not UTF-8" in refused(tmp_path).message
    source = open_source(Source(files=str(tmp_path)), on_bad_rows="skip")
    assert texts(source) == ["a", "b"]
    assert source.skipped == 2
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert "column 'text' is int, not a text" in refused(tmp_path).message


def test_columns_of_unequal_length_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"p": ["a", "b"], "c": ["d"]}')
    message = refused(path, prompt_column="p", completion_column="c").message
    assert "the columns are not equally long: p 2, c 1" in message


def test_too_many_bad_rows_stop_the_run_even_with_skip(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", GOOD * 5000 + b"{}\n" * 2000)
    assert "1001 of the first 6001 rows cannot be read" in refused(bad, "skip").message
    few = open_source(Source(files=str(write(bad, GOOD * 11_000 + b"{}\n" * 1100))), on_bad_rows="skip")
    assert len(texts(few)) == 11_000
    assert few.skipped == 1100


# ------------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.parquet.gz", "a.parquet"])
@pytest.mark.parametrize("on_bad_rows", ["error", "skip"])
def test_a_truncated_file_is_never_a_shorter_corpus(tmp_path: Path, name: str, on_bad_rows: Any) -> None:
    columns = {"text": [os.urandom(40).hex() for _ in range(500)]}
    if name.startswith("a.txt"):
        path = write(tmp_path / name, "\n".join(columns["text"]))
    else:
        path = write_table(tmp_path / name, columns)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-3], b""):
        path.write_bytes(damaged)
        assert "truncated or damaged" in refused(path, on_bad_rows).message
    path.write_bytes(b"no such format")
    assert "truncated or damaged" in refused(path, on_bad_rows).message


def test_a_last_json_line_that_was_cut_is_an_error_even_with_skip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + NEXT[:-5])
    assert refused(path, "skip").message == f"{path}:2: the file ends in the middle of a row"
    assert f"{path}:3: not JSON" in refused(write(tmp_path / "b.json", '[\n{"text": "a"},\n'), "skip").message.replace(
        "b.json", "a.jsonl"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    path.chmod(0)
    with pytest.raises(DataError, match="no permission"):
        open_source(Source(files=str(path)))


# -------------------------------------------------------------------------------------------------- builtin and Hub


def test_the_builtin_corpus_has_the_size_asked_for() -> None:
    source = open_source(Source(builtin="everyday", size="20kB"))
    size = sum(len(text.encode()) for text in texts(source))
    assert 19_000 < size < 23_000
    assert texts(source) == texts(source)
    assert open_source(Source(builtin="everyday", size="0.02MB")).fingerprint == source.fingerprint
    assert open_source(Source(builtin="everyday", size="21kB")).fingerprint != source.fingerprint
    with pytest.raises(RecipeError, match="'big' is not a size"):
        open_source(Source(builtin="everyday", size="big"))


def test_a_data_set_folder_is_loaded_as_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_table(folder / "train.parquet", {"text": TEXTS, "id": [1, 2, 3, 4, 5]})
    (folder / "train.plain").unlink()
    source = open_source(Source(hub=str(folder)))
    assert texts(source) == TEXTS == texts(source)
    assert open_source(Source(hub=str(folder))).fingerprint == source.fingerprint
    with pytest.raises(DataError, match=r"no column 'txet'; the columns are: text, id"):
        open_source(Source(hub=str(folder), text_column="txet"))
    with pytest.raises(DataError, match=r"data\.sources\.0: .*[Uu]nknown split"):
        open_source(Source(hub=str(folder), split="tset"))
    with pytest.raises(DataError, match="no such folder"):
        open_source(Source(hub=str(tmp_path / "missing")))
    write_table(folder / "train.parquet", {"text": ["new"], "id": [1]})
    (folder / "train.plain").unlink()
    changed = open_source(Source(hub=str(folder)))
    assert changed.fingerprint != source.fingerprint
    assert texts(changed) == ["new"]


def test_utf_16_is_told_apart_from_a_bad_line(tmp_path: Path) -> None:
    """Skipping the lines that are not UTF-8 would train on every second byte."""
    path = tmp_path / "text.txt"
    path.write_bytes("first line\nsecond line\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"text\.txt: is UTF-16.*\n.*iconv"):
        list(open_source(Source(files=str(path), documents="line"), on_bad_rows="skip").documents())
