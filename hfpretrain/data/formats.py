"""The readers of one file: .txt, .md, .jsonl, .json, .csv and .parquet, each also compressed with gzip or zstd.

`datasets`' own readers can neither name the line that is wrong nor leave it out, so every format has a small streaming
one here. A bad row goes to `report`; a damaged file is always an error, so that a truncated download never passes for
a shorter corpus.
"""

import contextlib
import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfpretrain.errors import DataError, nearest

TEXT = (".txt", ".md")
TABLES = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
KNOWN = f"known are {', '.join((*TEXT, *TABLES))}, each also with .gz or .zst"
ROW_HINT = "fix the line, or set data.on_bad_rows: skip"
FILE_HINT = "copy or download it again"
NUL = "holds a NUL byte"
LARGEST_CELL = 2**31 - 1
"""Characters of a CSV cell. Of itself Python's reader takes 131,072, and whole documents are longer."""

Row = tuple[str, ...]
"""The values of the wanted columns: (text,) or (prompt, completion)."""
Report = Callable[..., None]
"""Called with (where, what, hint=...) for a bad row: raises DataError, or counts it and returns."""


def kind_of(path: Path) -> str | None:
    """The extension that says how to read the file, without .gz or .zst; None if it is not a known one."""
    inner = path.with_suffix("") if _compression(path) else path
    return next((extension for extension in (*TEXT, *TABLES) if inner.name.lower().endswith(extension)), None)


def _compression(path: Path) -> str | None:
    return COMPRESSED.get(path.suffix.lower())


def read_file(path: Path, columns: Row, documents: str, report: Report) -> Iterator[Row]:
    """The rows of one file: the values of `columns`, or of a text file its `documents` (file, paragraph or line).

    Raises DataError for a file that is damaged, or lacks a column that all rows share.
    """
    kind = kind_of(path)
    if kind == ".jsonl" or (kind == ".json" and _is_json_lines(path)):
        return _picked(_json_lines(path, report), columns, report)
    if kind == ".json":
        return _picked(_json_rows(path, columns), columns, report)
    if kind == ".csv":
        return _csv_rows(path, columns, report)
    if kind == ".parquet":
        return _parquet_rows(path, columns, report)
    return ((text,) for text in _texts(path, documents, report))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed. What goes wrong with reading them inside the block becomes a DataError."""
    compression = _compression(path)
    try:
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(path.open("rb"))
            if compression and not stream.peek(1):
                raise EOFError("it is empty")
            if compression == "gzip":
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            elif compression == "zstd":
                stream = stack.enter_context(io.BufferedReader(pa.CompressedInputStream(stream, "zstd")))
            _refuse_other_format(path, stream.peek(max(map(len, _OTHER_FORMATS))))
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip file is truncated or damaged: {error}", hint=FILE_HINT) from error
    except OSError as error:
        if compression and error.errno is None:  # Arrow's
            said = f"the {compression} file is truncated or damaged: {error}"
            raise DataError(f"{path}: {said}", hint=FILE_HINT) from error
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


_OTHER_FORMATS = {
    b"\xff\xfe": ("UTF-16, not UTF-8", "convert it: iconv -f UTF-16 -t UTF-8 {} > converted.txt"),
    b"\xfe\xff": ("UTF-16, not UTF-8", "convert it: iconv -f UTF-16 -t UTF-8 {} > converted.txt"),
    b"\x1f\x8b": ("compressed with gzip, which its name does not say", "call it {}.gz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd, which its name does not say", "call it {}.zst"),
    b"PK\x03\x04": ("a zip archive", "unpack it: unzip {}"),
    b"BZh91AY&SY": ("compressed with bzip2", "decompress it: bzip2 -dk {}"),
    b"\xfd7zXZ\0": ("compressed with xz", "decompress it: xz -dk {}"),
    b"version https://git-lfs": ("a Git LFS pointer and not the file itself", "fetch it: git lfs pull --include {}"),
}
"""How files of other formats begin. Lines that cannot be read could be skipped; here none should be read."""


def _refuse_other_format(path: Path, beginning: bytes) -> None:
    for start, (what, hint) in _OTHER_FORMATS.items():
        if beginning.startswith(start):
            raise DataError(f"{path}: is {what}", hint=hint.format(path.name))


def fail(where: str, what: str, *, hint: str | None = None) -> None:
    """A Report for what is wrong with a whole file: never skipped."""
    raise DataError(f"{where}: {what}", hint=None if hint == ROW_HINT else hint)


# ------------------------------------------------------------------------------------------------------------- text


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines, with \\n at their ends (CRLF and CR too) and no byte order mark."""
    with _opened(path) as stream:
        number = 0
        for raw in stream:
            # bytes.splitlines cuts at \n, \r\n and \r only.
            for line in raw.splitlines(keepends=True) if b"\r" in raw else (raw,):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.rstrip(b"\r\n") + b"\n" if line.endswith((b"\r", b"\r\n")) else line


def _decoded(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """Line numbers and lines as text; a line that is not UTF-8 is a bad row."""
    for number, raw in lines(path):
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            report(f"{path}:{number}", _not_utf8(error, path, number), hint=ROW_HINT)


def _not_utf8(error: UnicodeDecodeError, path: Path, number: int) -> str:
    """What is wrong with the line, if it is not that the file ends in it."""
    if error.reason == "unexpected end of data":  # which a line with its end cannot have
        raise DataError(f"{path}:{number}: the file ends in the middle of a character", hint=FILE_HINT) from error
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x})"


def _text_lines(path: Path, report: Report) -> Iterator[str]:
    """The lines of a text file. One with a NUL byte is a bad row: it is of another encoding, or was never written."""
    for number, line in _decoded(path, report):
        if "\0" not in line:
            yield line
        elif line.endswith("\n"):
            report(f"{path}:{number}", NUL, hint=ROW_HINT)
        else:
            raise DataError(f"{path}:{number}: the file ends in NUL bytes, as if cut", hint=FILE_HINT)


def _texts(path: Path, documents: str, report: Report) -> Iterator[str]:
    """The texts of a text file: all of it, its paragraphs (apart by blank lines) or its lines."""
    if documents == "file":
        yield _whole_text(path, report)
    elif documents == "line":
        yield from (text for line in _text_lines(path, report) if (text := line.removesuffix("\n")).strip())
    else:
        paragraph: list[str] = []
        for line in _text_lines(path, report):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph).removesuffix("\n")
                paragraph = []
        if paragraph:
            yield "".join(paragraph).removesuffix("\n")


def _whole_text(path: Path, report: Report) -> str:
    # Read at once, and only where that fails by the line, to find the line.
    with (
        contextlib.suppress(UnicodeDecodeError),
        _opened(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig") as text,
    ):
        content = text.read()
        if "\0" not in content:
            return content
    return "".join(_text_lines(path, report))


# ----------------------------------------------------------------------------------------------------------- tables


def check_columns(columns: Iterable[str], there: Iterable[str], where: str, report: Report, hint: str = "") -> bool:
    """Whether all `columns` are there; reports the first that is not, with the nearest."""
    there = list(there)
    for column in columns:
        if there.count(column) > 1:
            report(where, f"{there.count(column)} columns are called {column!r}", hint="rename one of them" + hint)
            return False
        if column not in there:
            similar = nearest(column, there)
            advice = f"set text_column, prompt_column or completion_column{f', e.g. to {similar}' if similar else ''}"
            names = ", ".join(map(str, there[:20])) or "none"
            report(where, f"no column {column!r}; the columns are: {names}", hint=advice + hint)
            return False
    return True


def _problem(values: Iterable[Any], columns: Row) -> str | None:
    """What keeps the values from being texts, or None."""
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, bytes):
            return f"column {column!r} is not UTF-8"
        if not isinstance(value, str):
            kind = "null" if value is None else type(value).__name__
            return f"column {column!r} is {kind}, not a text"
        if "\0" in value:
            return f"column {column!r} {NUL}"
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"column {column!r} holds half of a surrogate pair (\\ud800 to \\udfff)"
    return None


def _picked(rows: Iterable[tuple[str, Any]], columns: Row, report: Report) -> Iterator[Row]:
    """The wanted columns of JSON rows, each given with where it stands."""
    for where, row in rows:
        if not isinstance(row, dict):
            kind = "null" if row is None else type(row).__name__
            report(where, f"the row is {kind}, not an object", hint=ROW_HINT)
        elif check_columns(columns, row, where, report, hint=", or data.on_bad_rows: skip"):
            values = tuple(row[column] for column in columns)
            if what := _problem(values, columns):
                report(where, what, hint=ROW_HINT)
            else:
                yield values


def _json_lines(path: Path, report: Report) -> Iterator[tuple[str, Any]]:
    for number, line in _decoded(path, report):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.endswith("\n"):
                raise DataError(
                    f"{path}:{number}: the file ends in the middle of a row", hint="complete the file, or its last line"
                ) from error
            report(f"{path}:{number}", f"not JSON: {_json_message(error)}", hint=ROW_HINT)
        else:
            yield f"{path}:{number}", row


def _json_message(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _is_json_lines(path: Path) -> bool:
    """Whether a .json file holds a row per line: its first line is an object, and more lines follow."""
    filled = ((number, line) for number, line in lines(path) if line.strip())
    first, second = next(filled, None), next(filled, None)
    if first is None or second is None:
        return False
    try:
        return isinstance(json.loads(first[1]), dict)
    except (ValueError, RecursionError):
        return False


def _json_rows(path: Path, columns: Row) -> Iterator[tuple[str, Any]]:
    """The rows of an array of objects, or of an object with a list per column. Holds the whole file in memory."""
    try:
        content = json.loads(_whole_text(path, fail))
    except (ValueError, RecursionError) as error:
        where = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else path
        raise DataError(
            f"{where}: not JSON: {_json_message(error)}", hint="fix it; a file with a row per line is .jsonl"
        ) from error
    if isinstance(content, dict) and any(isinstance(content.get(column), list) for column in columns):
        check_columns(columns, content, str(path), fail)
        lists = [content[column] for column in columns]
        sizes = [len(values) if isinstance(values, list) else 1 for values in lists]
        if len(set(sizes)) > 1:
            told = ", ".join(f"{column} {size}" for column, size in zip(columns, sizes, strict=True))
            raise DataError(f"{path}: the columns are not equally long: {told}")
        content = [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
    elif isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise DataError(f"{path}: the file is {type(content).__name__}, not an array of objects or an object of lists")
    return ((f"{path}: row {number}", row) for number, row in enumerate(content, 1))


def _csv_rows(path: Path, columns: Row, report: Report) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_CELL)
    damaged: list[tuple[int, str]] = []
    complete = True

    def as_text() -> Iterator[str]:
        # A row may span lines, so a damaged line is noted, and its whole row left out.
        nonlocal complete
        for number, raw in lines(path):
            complete = raw.endswith(b"\n")
            try:
                line = raw.decode()
                if "\0" in line:
                    damaged.append((number, NUL))
            except UnicodeDecodeError as error:
                damaged.append((number, _not_utf8(error, path, number)))
                line = raw.decode(errors="replace")
            yield line

    reader = csv.reader(as_text(), strict=True)
    header: list[str] | None = None
    places: list[int] = []
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):  # a quote swallowed the rest, which must not just be lost
                raise DataError(f"{path}:{start}: a quote that opens in this row is never closed") from error
            report(f"{path}:{start}", f"not CSV: {error}", hint=ROW_HINT)
            damaged.clear()
            continue
        if row is None:
            break
        if not complete and header and (damaged or len(row) < len(header)):
            raise DataError(f"{path}:{start}: the file ends in the middle of a row", hint=FILE_HINT)
        if damaged:
            number, what = damaged[0]
            damaged.clear()
            (report if header else fail)(f"{path}:{number}", what, hint=ROW_HINT)
        elif header is None:
            header = row
            check_columns(columns, header, f"{path}:{start}", fail)
            places = [header.index(column) for column in columns]
        elif row and len(row) != len(header):
            report(f"{path}:{start}", f"{len(row)} fields where the header has {len(header)}", hint=ROW_HINT)
        elif row:
            yield tuple(row[place] for place in places)
    if header is None:
        raise DataError(f"{path}: the file has no header line")


def _parquet_rows(path: Path, columns: Row, report: Report) -> Iterator[Row]:
    with _opened(path) as stream, tempfile.TemporaryFile() as unpacked:
        source: IO[bytes] = stream
        if _compression(path):  # parquet is read from its end
            shutil.copyfileobj(stream, unpacked)
            source = unpacked
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            check_columns(columns, file.schema_arrow.names, str(path), fail)
            batches = file.iter_batches(batch_size=1000, columns=list(columns))
            yield from arrow_rows(batches, columns, str(path), report)
        except (pa.ArrowException, OSError) as error:
            message = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{path}: the parquet file is truncated or damaged: {message}", hint=FILE_HINT) from error


def arrow_rows(batches: Iterable[Any], columns: Row, where: str, report: Report, *, before: int = 0) -> Iterator[Row]:
    """The rows of Arrow batches or tables that hold the columns `columns`, which come after so many others."""
    number = before
    for batch in batches:
        for values in zip(*(_arrow_values(batch.column(column)) for column in columns), strict=True):
            number += 1
            if what := _problem(values, columns):
                report(f"{where}: row {number}", what, hint="fix the row, or set data.on_bad_rows: skip")
            else:
                yield values


def _arrow_values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check: give what is not UTF-8 as bytes
        values = [_text_or_bytes(value) for value in column.cast(pa.large_binary()).to_pylist()]
    return values


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value
