"""A token store while it is made: parts of so much text each, there whole or not at all, and joined at the end.

Where a part begins and ends follows from the source's documents alone. So it is the same whoever makes it: a process
that goes on where a killed one stopped, another machine, or two at once, of which the second puts equal bytes in place.
"""

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import time
import uuid
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hfpretrain.data.encoded import Encoded, count_words, key_of
from hfpretrain.data.encoding import Encoder, Piece
from hfpretrain.data.progress import Progress
from hfpretrain.data.sources import Document, OpenSource
from hfpretrain.data.workers import encoded_on_all_cores
from hfpretrain.errors import DataError
from hfpretrain.files import bytes_below, digest, flush, write_whole

log = logging.getLogger(__name__)

PART_CHARACTERS = 16_000_000
BATCH_PIECES, BATCH_CHARACTERS = 1000, 250_000
LOCK = "lock"
ABANDONED_AFTER_SECONDS = 7 * 24 * 3600
_DIGEST_BYTES = hashlib.sha256().digest_size

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """The parts `number`, `number + of`, `number + 2 of`, ... of a source: about one of `of` equal shares."""

    number: int
    """From 1 to `of`."""
    of: int

    def has(self, part: int) -> bool:
        return part % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Part:
    """The tokens of a part's documents."""

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    """[documents]: tokens of each."""
    keys: npt.NDArray[np.uint64]
    prompt_lengths: npt.NDArray[np.uint32]
    text_lengths: npt.NDArray[np.int64]
    """[documents]: UTF-8 bytes of each text."""
    counts: npt.NDArray[np.int64]
    """UTF-8 bytes and words of its texts."""

    def write(self, path: Path) -> None:
        """Puts the part in its place, in one step, with its SHA-256 at the end."""
        beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # two processes may write the same part
        try:
            with beside.open("wb") as file:
                for each in fields(self):
                    np.save(file, getattr(self, each.name), allow_pickle=False)
            content_digest = digest(beside)
            with beside.open("ab") as file:
                file.write(bytes.fromhex(content_digest))
            flush(beside)
            beside.rename(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        flush(path.parent)

    @staticmethod
    def read(path: Path) -> "Part":
        """The part in a file. Raises ValueError if it is not what was written."""
        content = memoryview(path.read_bytes())
        content, written = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != written:
            raise ValueError(f"{path.name} is not what was written")
        buffer = io.BytesIO(content)
        return Part(*(np.load(buffer, allow_pickle=False) for _ in fields(Part)))


class Building:
    """The folder in which the parts of one store are made; several processes may do so at once."""

    def __init__(self, stores: Path, fingerprint: str) -> None:
        self.folder = stores / f".building-{fingerprint[:32]}-{PART_CHARACTERS}"

    @property
    def _lock(self) -> Path:
        return self.folder / LOCK

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}"

    @property
    def end(self) -> dict[str, Any] | None:
        """How many parts there are, and what was left out, once somebody has read the source to its end."""
        try:
            return dict(json.loads((self.folder / "end.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    @contextlib.contextmanager
    def held(self, *, alone: bool, waiting: Callable[[], None]) -> Iterator[None]:
        """Makes the folder and holds it: `alone` to make and join all parts, otherwise beside others like it.

        Who comes second waits, which saves work and no more: parts are right without it. The system lifts the lock
        when a process ends, however it ends. What has nothing finished in it is removed in the end.
        """
        try:  # around the making of the folder as well, after which a signal may come at once
            with self._locked(fcntl.LOCK_EX if alone else fcntl.LOCK_SH, waiting):
                yield
        finally:
            if alone:
                self.remove_left()

    def remove_left(self, *, joined: bool = False) -> None:
        """Removes the folder if no part in it is finished, or all are `joined`, and no other process is about it."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # there is no folder
            return
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
            if joined or not any(self.folder.glob("part-*")):
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self, kind: int, waiting: Callable[[], None]) -> Iterator[None]:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                # Opened for writing: over NFS nothing else can be locked for one process alone.
                descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # it has just been removed
                continue
            try:
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(descriptor, kind)
                except OSError:  # a file system without locks
                    log.warning("%s cannot be locked: prepare the same data in one process at a time", self.folder)
                if not self._is(descriptor):  # whoever held it has finished and removed it
                    continue
                yield
                return
            finally:
                os.close(descriptor)

    def _is(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._lock.stat())
        except FileNotFoundError:
            return False

    def make(self, source: OpenSource, encoder: Encoder, shard: Shard | None) -> int:
        """Makes the parts that are not there yet, of a shard or all, and returns how many those were."""
        end, made = self.end, 0
        if end is not None:
            wanted = {part for part in range(end["parts"]) if shard is None or shard.has(part)}
            missing = {part for part in wanted if not self.part(part).exists()}
            if not missing:
                return 0
        found = sum(1 for _ in self.folder.glob("part-*"))
        if found:
            size = bytes_below(self.folder)
            log.info("%s: going on: parts prepared before: %d (%.1f MB)", source.key, found, size / 1e6)
        last = -1

        def batches() -> Iterator[tuple[int, list[Piece]]]:
            """The pieces of the parts to make, batch by batch."""
            nonlocal last
            for last, group in itertools.groupby(_numbered(_readable(source)), key=lambda each: each[0]):
                documents = (document for _, document in group)
                if (shard is None or shard.has(last)) and not self.part(last).exists():
                    yield from ((last, batch) for batch in batched(encoder.pieces(documents)))
                else:
                    for document in documents:
                        progress.add(len(document.text.encode()), prepared=False)
                if end is not None and last >= max(missing):
                    return

        if encoder.texts and encoder.texts.seen:
            encoded = encoded_on_all_cores(encoder, batches(), source.size)
        else:  # the tokenizers library has a thread on each core
            encoded = ahead(lambda item: encoder.encode(item[1]), batches())
        with Progress(source.key, source.size) as progress, contextlib.closing(encoded):
            for number, items in itertools.groupby(encoded, key=lambda each: each[0][0]):
                part = gathered(encoder, ((batch, ids) for (_, batch), ids in items), progress.add)
                part.write(self.part(number))
                made += 1
        if end is None:
            left_out = dict(source.left_out)
            counts = {"parts": last + 1, "skipped": source.skipped, "blank": source.blank, "left_out": left_out}
            write_whole(self.folder / "end.json", json.dumps(counts))
        return made

    def parts(self) -> Iterator[Part]:
        """All parts in their order. One that is damaged is removed, and a ValueError raised."""
        end = self.end
        assert end is not None
        for number in range(end["parts"]):
            path = self.part(number)
            try:
                yield Part.read(path)
            except ValueError as error:
                log.warning("%s is damaged: it is prepared again", path)
                path.unlink()
                raise DamagedPart(str(error)) from error

    @staticmethod
    def remove_abandoned(stores: Path) -> None:
        """Removes what was left unfinished and not touched for a week, by nobody who still runs."""
        for folder in stores.glob(".building-*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime < ABANDONED_AFTER_SECONDS:
                    continue
                descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


class DamagedPart(ValueError):
    """A part was not what had been written; it is gone now."""


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[tuple[Item, Result], None, None]:
    """Each item with what the function makes of it on another thread, one item ahead of who asks."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="hfpretrain-encoder") as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            del item
            if len(waiting) > 1:
                first, result = waiting.popleft()
                yield first, result.result()
                del first, result
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()


def _numbered(documents: Iterable[Document]) -> Iterator[tuple[int, Document]]:
    """Each document with the number of its part."""
    number = characters = 0
    for document in documents:
        yield number, document
        characters += len(document.text)
        if characters >= PART_CHARACTERS:
            number, characters = number + 1, 0


def _readable(source: OpenSource) -> Iterator[Document]:
    """The source's documents. What goes wrong with reading them is not the cache's fault, so it is said here."""
    try:
        yield from source.documents()
    except OSError as error:
        raise DataError(f"{source.key} cannot be read: {error.strerror or error}") from error


def batched(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces by the batch: enough to keep every core at work, few enough for memory."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) == BATCH_PIECES or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def gathered(
    encoder: Encoder, batches: Iterable[tuple[list[Piece], Encoded]], done: Callable[[int], None] = lambda _: None
) -> Part:
    """The part that the encoded batches make together. `done` is called with the bytes of text of each."""
    tokens = array(encoder.typecode)
    # Of each batch, of its pieces: tokens, whether the document ends; of the documents that begin: what a Part has.
    numbers, flags, hashes = (np.zeros(0, dtype=kind) for kind in (np.int64, np.bool_, np.uint64))
    rows = [(numbers, flags, hashes, numbers, numbers)]
    words = 0
    for pieces, encoded in batches:
        ids, lengths = encoder.surrounded(pieces, encoded)
        tokens.frombytes(ids.tobytes())  # which are of the same type
        last = np.array([piece.last for piece in pieces])
        begin = np.array([piece.document is not None for piece in pieces])
        counted = _of_documents(pieces, encoded)
        prompts = np.zeros_like(lengths) if encoded.prompt_lengths is None else encoded.prompt_lengths
        rows.append((lengths, last, counted.keys[begin], prompts[begin], counted.text_lengths[begin]))
        words += int(counted.words[begin].sum())
        done(int(rows[-1][-1].sum()))
    piece_lengths, ended, keys, prompt_lengths, text_lengths = map(np.concatenate, zip(*rows, strict=True))
    return Part(
        tokens=np.frombuffer(tokens, dtype=f"u{tokens.itemsize}"),
        lengths=np.diff(np.cumsum(piece_lengths)[ended], prepend=0),
        keys=keys,
        prompt_lengths=prompt_lengths.astype(np.uint32),
        text_lengths=text_lengths,
        counts=np.array([text_lengths.sum(), words], dtype=np.int64),
    )


def _of_documents(pieces: list[Piece], encoded: Encoded) -> Encoded:
    """What was counted of the pieces, for a document's first one that of the document."""
    if all(piece.last and piece.document for piece in pieces):
        return encoded
    keys, words, text_lengths = encoded.keys.copy(), encoded.words.copy(), encoded.text_lengths.copy()
    for number, piece in enumerate(pieces):
        if piece.document and not piece.last:
            data = piece.document.text.encode()
            keys[number], text_lengths[number] = key_of(data), len(data)
            words[number] = count_words(piece.document.text)
    return encoded._replace(keys=keys, words=words, text_lengths=text_lengths)
