"""Which column of a file holds the text: a guess from its first rows, for a recipe that is being written."""

import csv
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfpretrain.data.formats import LARGEST_CELL, TABLES, kind_of, lines
from hfpretrain.errors import DataError

ROWS = 20
"""So many are looked at."""
USUAL = ("text", "content", "document", "article", "body", "story", "sentence", "passage", "raw_content")
"""What columns of text are usually called, the likeliest first."""
PAIRS = (("prompt", "completion"), ("input_texts", "output_texts"), ("instruction", "output"), ("question", "answer"))
_LARGEST_JSON = 64 * 2**20
"""Bytes of a .json that is one value, which has to be read whole."""


def guess_columns(path: Path) -> tuple[str, ...]:
    """The column of the text, or those of prompt and completion; nothing for a file of plain text.

    Raises DataError where no column holds text, or the first rows cannot be read.
    """
    if kind_of(path) not in TABLES:
        return ()
    try:
        rows = list(itertools.islice(_rows(path), ROWS))
    except (ValueError, RecursionError, csv.Error, pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: its first rows cannot be read ({str(error).splitlines()[0]})") from error
    lengths: dict[str, int] = {}
    for row in rows:
        for column, value in row.items():
            if isinstance(value, str):
                lengths[str(column)] = lengths.get(str(column), 0) + len(value)
    usual = next((column for column in USUAL if column in lengths), None)
    pair = next((pair for pair in PAIRS if lengths.keys() >= set(pair)), None)
    if usual != "text" and pair:
        return pair
    if not lengths:
        there = ", ".join(map(str, rows[0])) if rows else "none"
        raise DataError(
            f"{path}: no column holds text; the columns are: {there}", hint="give a file with a text column"
        )
    return (usual or max(lengths, key=lambda column: lengths[column]),)


def _rows(path: Path) -> Iterator[dict[Any, Any]]:
    """The first rows; not checked as training checks them."""
    kind = kind_of(path)
    if kind == ".parquet":
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            table = next(pq.ParquetFile(file).iter_batches(batch_size=ROWS), None)
            yield from table.to_pylist() if table is not None else ()
        return
    text = (raw.decode(errors="replace") for _, raw in lines(path))
    if kind == ".csv":
        csv.field_size_limit(LARGEST_CELL)
        yield from csv.DictReader(text)
        return
    first = next((line for line in text if line.strip()), "")
    following = next((line for line in text if line.strip()), "")
    if kind == ".jsonl" or (following and _is_object(first)):
        rows: Any = map(json.loads, (line for line in itertools.chain([first, following], text) if line.strip()))
    else:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("it is one large value; one row per line, as .jsonl, is looked into")
        content = json.loads("".join([first, following, *text]))
        # An array of rows, or an object with a list per column.
        rows = content if isinstance(content, list) else [_first_of_lists(content)]
    yield from (row for row in rows if isinstance(row, dict))


def _first_of_lists(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: value[0] if isinstance(value, list) and value else value for key, value in content.items()}


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
