"""Bad data files: each ends in one sentence with file and line or row, or in a counted skip; none is a shorter corpus.

A row that is bad may be skipped. A file that is cut, damaged or of another kind never is.
"""

import gzip
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command
from recipe_texts import SMALL
from small_tokenizers import gpt

from hfpretrain.data.sources import OpenSource, open_source
from hfpretrain.data.tokens import prepare
from hfpretrain.errors import DataError
from hfpretrain.recipe import Source

A, B = b'{"text": "a"}\n', b'{"text": "b"}\n'
MANY = b"".join(b'{"text": "row %d"}\n' % number for number in range(2000))


def parquet(columns: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), file, **options)
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(data)
    return bytes(buffer.getvalue().to_pybytes())


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


PARQUET = parquet({"text": [f"row {number}" for number in range(2000)]}, write_page_checksum=True, compression="none")

# name: (bytes, what the error says after the file's path, what is read with on_bad_rows: skip; None: the error again)
Case = tuple[bytes, str, list[str] | None]
CASES: dict[str, Case] = {
    # A bad row, which can be left out.
    "invalid-in-the-middle.jsonl": (A + b'{"text": "\xff"}\n' + B, ":2: not UTF-8 (byte 0xff)", ["a", "b"]),
    "latin1.txt": (b"one\ntw\xe4\nthree", ":2: not UTF-8 (byte 0xe4)", ["one\nthree"]),
    "latin1.csv": (b"text\na\ntw\xe4\nb\n", ":3: not UTF-8 (byte 0xe4)", ["a", "b"]),
    "nul.txt": (b"one\nt\0o\nthree", ":2: holds a NUL byte", ["one\nthree"]),
    "nul.csv": (b"text\na\nt\0o\nb\n", ":3: holds a NUL byte", ["a", "b"]),
    "nul.jsonl": (A + b'{"text": "t\0o"}\n' + B, ":2: not JSON: Invalid control character", ["a", "b"]),
    "escaped-nul.jsonl": (A + b'{"text": "t\\u0000o"}\n', ":2: column 'text' holds a NUL byte", ["a"]),
    "nul.parquet": (parquet({"text": ["a", "t\0o"]}), ": row 2: column 'text' holds a NUL byte", ["a"]),
    "utf16-without-bom.txt": ("one\ntwo\n".encode("utf-16-le"), ":1: holds a NUL byte", None),
    "missing-column-in-a-row.jsonl": (A + b'{"txt": "b"}\n', ":2: no column 'text'; the columns are: txt", ["a"]),
    "a-number.jsonl": (A + b'{"text": 3}\n', ":2: column 'text' is int, not a text", ["a"]),
    "null.jsonl": (A + b'{"text": null}\n', ":2: column 'text' is null, not a text", ["a"]),
    "null.parquet": (parquet({"text": ["a", None, "b"]}), ": row 2: column 'text' is null, not a text", ["a", "b"]),
    "nested.jsonl": (A + b'{"text": {"en": "b"}}\n', ":2: column 'text' is dict, not a text", ["a"]),
    "nested.json": (b'[{"text": "a"}, {"text": ["b"]}]', ": row 2: column 'text' is list, not a text", ["a"]),
    "nested.parquet": (parquet({"text": [{"en": "a"}]}), ": row 1: column 'text' is dict, not a text", None),
    "a-thousand-brackets.jsonl": (A + b"[" * 100_000 + b"\n" + B, ":2: not JSON: nested too deeply", ["a", "b"]),
    "a-page-of-html.jsonl": (b"<html>\n<body>404</body>\n</html>\n", ":1: not JSON: Expecting value", None),
    "one-field-more.csv": (b'text,n\n"a\nb",1\nc,2,3\nd,4\n', ":4: 3 fields where the header has 2", ["a\nb", "d"]),
    # A file that is cut, which is never a shorter corpus.
    "cut.jsonl.gz": (gzip.compress(MANY)[:-20], ": the gzip file is truncated or damaged", None),
    "cut-in-half.jsonl.gz": (gzip.compress(MANY)[:3000], ": the gzip file is truncated or damaged", None),
    "cut.jsonl.zst": (zstd(MANY)[:-9], ": the zstd file is truncated or damaged: Truncated compressed stream", None),
    "cut.txt.zst": (zstd(MANY)[:500], ": the zstd file is truncated or damaged", None),
    "cut.parquet": (PARQUET[:-20], ": the parquet file is truncated or damaged: Parquet magic bytes not found", None),
    "cut.jsonl": (A + B[:-4], ":2: the file ends in the middle of a row", None),
    "cut-in-a-character.jsonl": (A + b'{"text": "caf\xc3', ":2: the file ends in the middle of a character", None),
    "cut-in-a-character.txt": (b"one\ncaf\xc3", ":2: the file ends in the middle of a character", None),
    "cut.csv": (b"n,text\n1,a\n2", ":3: the file ends in the middle of a row", None),
    "cut-in-quotes.csv": (b'n,text\n1,a\n2,"b\nc', ":3: a quote that opens in this row is never closed", None),
    "cut.json": (b'[{"text": "a"}, {"te', ":1: not JSON: Unterminated string", None),
    "ends-in-zeros.txt": (b"one\ntwo" + bytes(4096), ":2: the file ends in NUL bytes, as if cut", None),
    "ends-in-zeros.jsonl": (A + bytes(4096), ":2: the file ends in the middle of a row", None),
    "empty.jsonl.gz": (b"", ": the gzip file is truncated or damaged: it is empty", None),
    "empty.parquet": (b"", ": the parquet file is truncated or damaged: Parquet file size is 0 bytes", None),
    # A file that is damaged.
    "flipped.jsonl.gz": (flipped(gzip.compress(MANY), 2000), ": the gzip file is truncated or damaged", None),
    "flipped.parquet": (flipped(PARQUET, len(PARQUET) // 2), ": the parquet file is truncated or damaged", None),
    "trailing-garbage.jsonl.gz": (gzip.compress(A) + b"x" * 40, ": the gzip file is truncated or damaged", None),
    "trailing-garbage.jsonl.zst": (zstd(A) + b"x" * 40, ": the zstd file is truncated or damaged", None),
    "wrong-magic.parquet": (MANY, ": the parquet file is truncated or damaged: Parquet magic bytes not found", None),
    "not-compressed.jsonl.gz": (MANY, ": the gzip file is truncated or damaged: Not a gzipped file", None),
    # A file of another kind than its name says.
    "utf16.txt": ("one\ntwo\n".encode("utf-16"), ": is UTF-16, not UTF-8", None),
    "utf16.csv": ("text\none\n".encode("utf-16"), ": is UTF-16, not UTF-8", None),
    "really-gzip.jsonl": (gzip.compress(MANY), ": is compressed with gzip, which its name does not say", None),
    "really-zstd.jsonl": (zstd(MANY), ": is compressed with zstd, which its name does not say", None),
    "really-zip.txt": (b"PK\x03\x04" + bytes(100), ": is a zip archive", None),
    "compressed-twice.txt.gz": (gzip.compress(gzip.compress(MANY)), ": is compressed with gzip", None),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\n", ": is a Git LFS pointer", None),
    # A column that no row has.
    "missing-column.csv": (b"txt\na\n", ":1: no column 'text'; the columns are: txt", None),
    "missing-column.parquet": (parquet({"content": ["a"]}), ": no column 'text'; the columns are: content", None),
    "missing-column.json": (b'{"txt": ["a"]}', ": row 1: no column 'text'; the columns are: txt", None),
    "numbers.parquet": (parquet({"text": [1, 2]}), ": row 1: column 'text' is int, not a text", None),
    "two-columns.csv": (b"text,text\na,b\n", ":1: 2 columns are called 'text'", None),
    "two-columns.parquet": (
        parquet(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])),
        ": 2 columns are called 'text'",
        None,
    ),
    "a-string.json": (b'"text"', ": the file is str, not an array of objects or an object of lists", None),
    # A file without any text.
    "empty.txt": (b"", ": blank texts: 1", None),
    "empty.jsonl": (b"", ": no rows", None),
    "empty.csv": (b"", ": the file has no header line", None),
    "blank-lines.txt": (b"\n \n\r\n\t\n", ": blank texts: 1", None),
    "blank-lines.jsonl": (b"\n \n\n", ": no rows", None),
    "no-rows.csv": (b"text\n", ": no rows", None),
    "no-rows.parquet": (parquet({"text": pa.array([], pa.string())}), ": no rows", None),
}


def documents(source: OpenSource) -> list[str]:
    return [document.text for document in source.documents()]


def sentence(run: Callable[[], Any]) -> str:
    """What the error says: one line."""
    with pytest.raises(DataError) as caught:
        run()
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_ends_in_a_sentence_or_a_counted_skip(tmp_path: Path, name: str, caplog: Any) -> None:
    content, said, read = CASES[name]
    path = tmp_path / name
    path.write_bytes(content)
    source = Source(files=str(path))
    assert f"{path}{said}" in sentence(lambda: documents(open_source(source)))
    caplog.clear()
    skipping = open_source(source, on_bad_rows="skip")
    if read is None:
        assert str(path) in sentence(lambda: documents(skipping))
    else:
        assert documents(skipping) == read
        assert skipping.skipped == 1
        assert f"skipped {path}{said}" in caplog.text
        assert "1 of " in caplog.text


FINE = {
    "bom.txt": (b"\xef\xbb\xbfone\n", ["one\n"]),
    "bom.jsonl": (b"\xef\xbb\xbf" + A, ["a"]),
    "bom.csv": (b"\xef\xbb\xbftext\na\n", ["a"]),
    "crlf.txt": (b"one\r\ntwo\r\n", ["one\ntwo\n"]),
    "crlf.jsonl": (A.replace(b"\n", b"\r\n") + B, ["a", "b"]),
    "crlf.csv": (b'text\r\n"a\r\nb"\r\n', ["a\nb"]),
    "no-final-newline.jsonl": (A + B[:-1], ["a", "b"]),
    "no-final-newline.csv": (b"n,text\n1,a\n2,b", ["a", "b"]),
    "quoted-newline.csv": (b'text,n\n"a\nb",1\n', ["a\nb"]),
    "several-members.jsonl.gz": (gzip.compress(A) + gzip.compress(B) + bytes(100), ["a", "b"]),
    "several-frames.jsonl.zst": (zstd(A) + zstd(B), ["a", "b"]),
    "compressed.parquet.zst": (zstd(parquet({"text": ["a", "b"]})), ["a", "b"]),
}


@pytest.mark.parametrize("name", FINE)
def test_what_only_looks_unusual_is_read_whole(tmp_path: Path, name: str) -> None:
    content, expected = FINE[name]
    (tmp_path / name).write_bytes(content)
    assert documents(open_source(Source(files=str(tmp_path / name)))) == expected


def test_a_line_of_100_mb_is_one_document_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(A + b'{"text": "' + b"word " * 20_000_000 + b'"}\n' + B)
    assert [len(text) for text in documents(open_source(Source(files=str(path))))] == [1, 100_000_000, 1]
    path.write_bytes(A + b"word " * 20_000_000 + b"\n" + B)
    assert sentence(lambda: documents(open_source(Source(files=str(path))))).startswith(f"{path}:2: not JSON")
    assert documents(open_source(Source(files=str(path)), on_bad_rows="skip")) == ["a", "b"]


# ---------------------------------------------------------------------------------- what is there, but no plain file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.txt")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def listening(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's whole path has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(path.name)
    os.chdir(before)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pipe, "is a named pipe, not a file"),
        (listening, "is a socket, not a file"),
        (dangling, "is a link to a file that is not there"),
        (circle, "cannot be read: Too many levels of symbolic links"),
    ],
)
@pytest.mark.parametrize("name", ["data/b.txt", "data", "data/*.txt", "**/*.txt", "data/**"])
def test_no_plain_file_is_an_error_at_once_however_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], said: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("a")
    make(tmp_path / "data/b.txt")
    assert f"data/b.txt: {said}" in sentence(lambda: open_source(Source(files=name)))


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder to fill as root and to read as somebody who may not read everything."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_nobody(run: Callable[[], Any]) -> Any:
    if os.geteuid():
        return run()
    os.seteuid(65534)
    try:
        return run()
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["b.txt", "", "*.txt", "**/*.txt"])
def test_a_file_without_permission_is_an_error_at_once(nobody: Path, name: str) -> None:
    (nobody / "a.txt").write_text("a")
    (nobody / "b.txt").write_text("b")
    (nobody / "b.txt").chmod(0)
    message = as_nobody(lambda: sentence(lambda: open_source(Source(files=f"{nobody}/{name}"))))
    assert message == f"{nobody}/b.txt: no permission to read it"


@pytest.mark.parametrize("name", ["", "**/*.txt", "*/*.txt", "*/b.txt", "secret/b.txt"])
def test_a_folder_without_permission_is_not_passed_over(nobody: Path, name: str) -> None:
    (nobody / "open").mkdir()
    (nobody / "open/a.txt").write_text("a")
    (nobody / "secret").mkdir()
    (nobody / "secret/b.txt").write_text("b")
    (nobody / "secret").chmod(0)
    message = as_nobody(lambda: sentence(lambda: open_source(Source(files=f"{nobody}/{name}"))))
    (nobody / "secret").chmod(0o755)
    assert "secret" in message
    assert "Permission denied" in message


def test_a_pattern_that_matches_only_folders_says_so(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").mkdir()
    (tmp_path / "part.jsonl/0.jsonl").write_bytes(A)
    message = sentence(lambda: open_source(Source(files=f"{tmp_path}/*.jsonl")))
    assert message.endswith("/*.jsonl has no files that can be read; there is: folders")
    assert documents(open_source(Source(files=f"{tmp_path}/part.jsonl"))) == ["a"]
    assert documents(open_source(Source(files=f"{tmp_path}/*.jsonl/*"))) == ["a"]


def test_deep_folders_are_read_in_order(tmp_path: Path) -> None:
    deep = tmp_path
    for number in range(60):
        deep = deep / f"folder {number}"
        deep.mkdir()
        (deep / "a.txt").write_text(f"{number}")
    expected = sorted(map(str, range(60)))
    assert sorted(documents(open_source(Source(files=str(tmp_path))))) == expected
    assert sorted(documents(open_source(Source(files=f"{tmp_path}/**/*.txt")))) == expected


def test_a_file_that_is_named_twice_is_read_once_and_said(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("a.txt")
    names = (str(tmp_path / "a.txt"), str(tmp_path), f"{tmp_path}/*.txt")
    assert documents(open_source(Source(files=names))) == ["a"]
    assert "data.sources.0.files: files named more than once, which are read once: 4" in caplog.text


# ------------------------------------------------------------------------------------ what changes while it is read


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(B)


def cut(path: Path) -> None:
    os.truncate(path, len(MANY) // 2)


def vanish(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("on_bad_rows", ["error", "skip"])
@pytest.mark.parametrize("change", [grow, cut, vanish, replace])
def test_a_file_that_changes_while_it_is_read_is_never_prepared(
    tmp_path: Path, change: Callable[[Path], None], on_bad_rows: Any
) -> None:
    (tmp_path / "a.jsonl").write_bytes(MANY)
    (tmp_path / "b.jsonl").write_bytes(MANY)
    source = open_source(Source(files=str(tmp_path)), on_bad_rows=on_bad_rows)

    def read() -> None:
        for number, _ in enumerate(source.documents()):
            if number == 10:
                change(tmp_path / "a.jsonl")

    assert str(tmp_path / "a.jsonl") in sentence(read)


def test_a_file_that_vanishes_after_opening_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "b.parquet"):
        (tmp_path / name).write_bytes(PARQUET if name == "b.parquet" else MANY)
    for name in ("b.parquet", "b.jsonl"):
        source = open_source(Source(files=str(tmp_path)))
        (tmp_path / name).unlink()
        message = sentence(partial(prepare, source, gpt(), end_id=0, cache=tmp_path / "cache"))
        assert message == f"{tmp_path / name}: cannot be read: No such file or directory"


# -------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.parquet", "null.jsonl"])
def test_prepare_keeps_nothing_of_a_bad_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0.jsonl").write_bytes(MANY)
    (tmp_path / "data" / name).write_bytes(CASES[name][0])
    source = open_source(Source(files=str(tmp_path / "data")))
    message = sentence(lambda: prepare(source, gpt(), end_id=0, cache=tmp_path / "cache"))
    assert f"{name}{CASES[name][1]}" in message
    assert not list((tmp_path / "cache/tokens").iterdir())


def test_the_command_line_says_it_in_one_line(tmp_path: Path, hfpretrain: Command) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALL)
    (tmp_path / "cut.jsonl.gz").write_bytes(CASES["cut.jsonl.gz"][0])
    result = hfpretrain("train", "recipe.yaml", "data.sources=[{files: cut.jsonl.gz}]", "data.on_bad_rows=skip")
    assert result.returncode == 2
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if "cut.jsonl.gz" in line]
    assert len(errors) == 1, result.stderr
    assert "cut.jsonl.gz: the gzip file is truncated or damaged" in errors[0]
    assert "Traceback" not in result.stderr


def test_skipped_rows_are_counted_in_the_run(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {number}"}) for number in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"text": null}', "no json", ""]))
    source = open_source(Source(files=str(tmp_path / "a.jsonl")), on_bad_rows="skip")
    store = prepare(source, gpt(), end_id=0, cache=tmp_path / "cache")
    assert (store.manifest["documents"], store.manifest["skipped"]) == (20, 2)
