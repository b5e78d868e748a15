"""From a source of the recipe to documents: local files, the Hub, and the builtin corpus.

Opening a source finds its files at once, so that a missing one is an error before anything is built. What is wrong
with one row is an error or a counted skip (`on_bad_rows`).
"""

import dataclasses
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfpretrain.data.filters import Digests, Filters, in_words
from hfpretrain.data.finding import find_files, size_and_time
from hfpretrain.data.formats import (
    KNOWN,
    ROW_HINT,
    TABLES,
    TEXT,
    Report,
    Row,
    arrow_rows,
    check_columns,
    fail,
    kind_of,
)
from hfpretrain.data.hub_sets import load, load_stream, not_loaded, place_of
from hfpretrain.data.row_stream import FileStream, RowStream, State
from hfpretrain.data.token_files import TokenFile, open_token_files
from hfpretrain.errors import DataError
from hfpretrain.hub import split_revision
from hfpretrain.recipe import Source, size_in_bytes

log = logging.getLogger(__name__)

BAD_ROWS_SHOWN = 5
# With on_bad_rows: skip, more bad rows than this and more than this share of all rows mean a wrong column or format.
BAD_ROWS_ALLOWED, BAD_SHARE_ALLOWED = 1000, 0.1


@dataclass(frozen=True)
class Document:
    """One text as the user has it; of a pair, prompt and completion with the space that joins them."""

    text: str
    prompt_characters: int = 0
    """The first so many characters are not targets. A joining space is not among them: " fox" is one token."""


@dataclass
class OpenSource:
    """A source whose files were found. `documents()` may be called again and gives the same documents."""

    key: str
    """Names the source in messages, e.g. data.sources.0."""
    fingerprint: dict[str, Any]
    """What identifies the content, as JSON: kind, columns, files with size and time, Hub fingerprint, ..."""
    read: Callable[[Report], Iterator[Row]]
    on_bad_rows: Literal["error", "skip"] = "error"
    filters: Filters = Filters()
    name: str = ""
    """What it reads, in words: a file's name, or how many files there are."""
    size: int = 0
    """Bytes of its files, or of its text; about, and 0 if that is not known."""
    stream: RowStream | FileStream | None = None
    """What it is read by while training goes on, if it is streamed."""
    token_files: Sequence[TokenFile] | None = None
    """What it is made of, if it is tokens already."""
    columns: Row = ()
    """Of a streamed source: those that hold the text, or prompt and completion."""
    skipped: int = field(default=0, init=False)
    """Rows of the last `documents()` that could not be read."""
    blank: int = field(default=0, init=False)
    """Rows of the last `documents()` without a visible character; they are no documents."""
    left_out: Counter[str] = field(default_factory=Counter, init=False)
    """Documents of the last `documents()` that the filters left out, by the filter's key."""
    earlier: tuple["OpenSource", ...] = field(default=(), init=False)
    """With `deduplicate`: the sources whose texts are duplicates here."""
    _rows: int = field(default=0, init=False)
    _texts: Digests | None = field(default=None, init=False)
    """The digests of all texts up to this source's end, for the next source to take over."""

    def documents(self, seen: Digests | None = None) -> Iterator[Document]:
        """Reads the source once. Raises DataError, naming file and line, for what cannot be read.

        With `deduplicate`, texts in `seen` are left out, and the others added to it; without it, those of the sources
        before this one, which are read for it if they have not just been.
        """
        own = seen is None
        if own and self.filters.deduplicate:
            seen = self._texts_before()
        yield from self._read(seen)
        if own:
            self._texts = seen
        told = self.say_what_is_missing()
        if self._rows == self.skipped + self.blank + self.left_out.total():
            found = [f"{self.skipped} bad rows skipped"] * bool(self.skipped) + [f"blank texts: {self.blank}"] * bool(
                self.blank
            )
            told = ", ".join(filter(None, [*found, told])) or "no rows"
            place = f"{self.name}: " if self.name else ""
            raise DataError(f"{self.key} has no text ({place}{told})", hint="give a source with at least one document")

    def say_what_is_missing(self) -> str:
        """Says how many rows were no documents so far; returns what filters left out, in words."""
        if self.skipped:
            log.warning("%s: %d of %d rows could not be read and were skipped", self.key, self.skipped, self._rows)
        if self.blank:
            log.info("%s: blank texts left out: %d", self.key, self.blank)
        if told := in_words(self.left_out):
            log.info("%s: left out: %s", self.key, told)
        return told

    def _read(self, seen: Digests | None) -> Iterator[Document]:
        self.skipped = self.blank = self._rows = 0
        self.left_out.clear()
        rows = self.read(self._bad_row)
        return self.filters.kept(self._unfiltered(rows), self.left_out, seen if self.filters.deduplicate else None)

    def batches(self, state: State | None, before: int) -> Iterator[tuple[list[Document], int, State]]:
        """The documents of a streamed source from a state on, by the rows read for them, and the state behind each."""
        assert self.stream is not None
        for rows, read, behind in self.stream.batches(state, before, self._bad_row):
            yield list(self.filters.kept(self._unfiltered(rows), self.left_out, None)), read, behind

    def _unfiltered(self, rows: Iterable[Row]) -> Iterator[Document]:
        for row in rows:
            self._rows += 1
            if row[-1] and not row[-1].isspace():
                yield _document(row)
            else:
                self.blank += 1

    def _texts_before(self) -> Digests:
        if not self.earlier:
            return Digests()
        last = self.earlier[-1]
        seen, last._texts = last._texts, None  # whoever takes it over adds to it
        if seen is None:
            seen = Digests()
            for source in self.earlier:
                log.info("%s: reading %s, whose texts are duplicates here", self.key, source.key)
                for _ in dataclasses.replace(source)._read(seen):
                    pass
        return seen

    def _bad_row(self, where: str, what: str, *, hint: str = ROW_HINT) -> None:
        if self.on_bad_rows == "error":
            raise DataError(f"{where}: {what}", hint=hint)
        self._rows += 1
        self.skipped += 1
        if self.skipped <= BAD_ROWS_SHOWN:
            log.warning("skipped %s: %s", where, what)
        if self.skipped > BAD_ROWS_ALLOWED and self.skipped > BAD_SHARE_ALLOWED * self._rows:
            raise DataError(
                f"{self.key}: {self.skipped} of the first {self._rows} rows cannot be read, too many to skip; "
                f"the last one is {where}: {what}",
                hint="check the column names and the format",
            )


def open_source(
    source: Source, *, on_bad_rows: Literal["error", "skip"] = "error", key: str = "data.sources.0"
) -> OpenSource:
    """Finds what `source` names; `key` is how messages call it. Raises DataError where there is nothing to read."""
    filters = Filters.of(source, key)
    fingerprint: dict[str, Any] = {"columns": _columns(source), "on_bad_rows": on_bad_rows}
    if source.builtin:
        opened = _open_builtin(source, key)
    elif source.tokens:
        opened = _open_tokens(source, key)
    elif source.hub:
        open_ = _open_hub_stream if source.streaming else _open_hub
        opened = open_(source, on_bad_rows, key, fingerprint)
    else:
        opened = _open_files(source, on_bad_rows, key, fingerprint)
    opened.filters = filters
    if filters.fingerprint:
        opened.fingerprint["filters"] = filters.fingerprint
    return opened


def open_sources(
    named: Sequence[tuple[str, Source]], *, on_bad_rows: Literal["error", "skip"] = "error"
) -> list[OpenSource]:
    """All sources of a list, each with the key that names it.

    Those with `deduplicate` keep no text that one before them has.
    """
    opened = [open_source(source, on_bad_rows=on_bad_rows, key=key) for key, source in named]
    earlier: tuple[OpenSource, ...] = ()
    for source in opened:
        if source.filters.deduplicate:
            if earlier:
                before = json.dumps(earlier[-1].fingerprint, sort_keys=True)
                source.fingerprint["after"] = hashlib.sha256(before.encode()).hexdigest()
            source.earlier = earlier
            earlier = (*earlier, source)
    return opened


def _columns(source: Source) -> tuple[str, ...]:
    if source.prompt_column and source.completion_column:
        return (source.prompt_column, source.completion_column)
    return (source.text_column,)


def _document(row: Row) -> Document:
    if len(row) == 1:
        return Document(row[0])
    prompt, completion = row
    joint = "" if not prompt or prompt[-1].isspace() or completion[0].isspace() else " "
    return Document(prompt + joint + completion, prompt_characters=len(prompt))


# ------------------------------------------------------------------------------------------------- builtin and Hub


def _open_builtin(source: Source, key: str) -> OpenSource:
    from hfpretrain.data import everyday

    size = size_in_bytes(source.size) if source.size else everyday.DEFAULT_BYTES
    # Tokens prepared with an older grammar must not be taken for this one's.
    files = sorted(Path(everyday.__file__).parent.glob("everyday*.py"))
    grammar = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    fingerprint = {"kind": "builtin", "name": source.builtin, "size": size, "seed": 0, "grammar": grammar}

    def read(_report: Report) -> Iterator[Row]:
        return ((text,) for text in everyday.documents(size, seed=0))

    return OpenSource(key, fingerprint, read, size=size)


def _open_hub(
    source: Source, on_bad_rows: Literal["error", "skip"], key: str, fingerprint: dict[str, Any]
) -> OpenSource:
    import datasets  # takes most of a second, and only this kind of source needs it

    name, columns = str(source.hub), fingerprint["columns"]
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    place = place_of(source, key)
    try:
        dataset = load(place, source, columns, key)
    except Exception as error:
        raise not_loaded(error, key, name) from error
    check_columns(columns, dataset.column_names, f"{key}: {name}", fail)
    table = dataset.select_columns(list(columns)).with_format("arrow")
    identity = {"kind": "hub", "hub": split_revision(name)[0], "subset": source.subset, "split": source.split}
    if isinstance(place, str):
        identity |= {"hub": name, "revision": dataset._fingerprint}
    else:
        identity["revision"] = place.sha
    return OpenSource(
        key,
        fingerprint | identity,
        lambda report: arrow_rows(table.iter(batch_size=1000), columns, name, report),
        on_bad_rows,
        name=name,
        size=table.data.nbytes,
    )


def _open_hub_stream(
    source: Source, on_bad_rows: Literal["error", "skip"], key: str, fingerprint: dict[str, Any]
) -> OpenSource:
    """One commit of a data set of the Hub, or the folder of one, read while training goes on."""
    name, columns = str(source.hub), fingerprint["columns"]
    place = place_of(source, key)
    fingerprint |= {"kind": "hub stream", "hub": name, "subset": source.subset, "split": source.split}
    if isinstance(place, str):
        below = sorted(path for path in Path(place).rglob("*") if path.is_file())
        fingerprint["files"] = [[str(path.relative_to(place)), *size_and_time(path)] for path in below]
    else:
        fingerprint |= {"hub": split_revision(name)[0], "revision": place.sha}

    def opened() -> Any:
        dataset = load_stream(place, source)
        if dataset.column_names is not None:
            check_columns(columns, dataset.column_names, f"{key}: {name}", fail)
        return dataset.select_columns(list(columns)).with_format("arrow")

    stream = RowStream(key, name, columns, opened, lambda error: not_loaded(error, key, name))
    return OpenSource(key, fingerprint, stream.rows, on_bad_rows, name=name, stream=stream, columns=columns)


# ------------------------------------------------------------------------------------------------------------ files


def _open_files(
    source: Source, on_bad_rows: Literal["error", "skip"], key: str, fingerprint: dict[str, Any]
) -> OpenSource:
    found = _found_files(source, key)
    fingerprint |= {"kind": "files", "documents": source.documents}
    fingerprint["files"] = [[str(path.absolute()), *status] for path, status in found.items()]
    files = FileStream(list(found.items()), fingerprint["columns"], source.documents)
    return OpenSource(
        key,
        fingerprint,
        files.rows,
        on_bad_rows,
        name=_name_of(list(found)),
        size=sum(size for size, _ in found.values()),
        stream=files if source.streaming else None,
        columns=files.columns,
    )


def _open_tokens(source: Source, key: str) -> OpenSource:
    files = open_token_files(source, key)
    fingerprint = {
        "kind": "tokens",
        "files": [[str(file.path.absolute()), *file.status, str(file.tokens.dtype), file.beside] for file in files],
    }

    def read(_report: Report) -> Iterator[Row]:
        raise DataError(f"{key}: tokens are no text to train a tokenizer on", hint="set tokenizer.from or model.from")

    return OpenSource(key, fingerprint, read, name=_name_of([file.path for file in files]), token_files=files)


def _found_files(source: Source, key: str) -> dict[Path, tuple[int, int]]:
    """The files that the source means, with size and time. Raises DataError where they do not go with its keys."""
    names = (source.files,) if isinstance(source.files, str) else source.files or ()
    if not names:
        raise DataError(f"{key}: there is nothing to read", hint="give one of builtin, files, hub and tokens")
    found = find_files(names, f"{key}.files", kind_of=kind_of, known=KNOWN)
    kinds = {kind_of(path) for path in found}
    if source.documents != "file" and not kinds & set(TEXT):
        raise DataError(
            f"{key}.documents: {source.documents} is for text files, and there are none", hint=f"remove {key}.documents"
        )
    if source.prompt_column and kinds & set(TEXT):
        raise DataError(f"{key}.prompt_column: text files have no columns", hint=f"use {', '.join(TABLES)} files")
    return found


def _name_of(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files"
