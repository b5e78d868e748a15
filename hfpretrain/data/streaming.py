"""Streamed sources: read while the run trains, a window of documents at a time, and never whole on the disk.

A window is so many documents that they make WINDOW_TOKENS tokens, or what is left of the stream; its blocks come in a
random order of its own. When the stream ends it begins anew. Where windows begin follows from the stream alone, so that
the block at a place of the run is a function of seed and place, as it is of prepared data, and every process reads the
same. What is remembered of windows, in checkpoints too, only saves reading what lies before them.
"""

import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfpretrain.data.blocks import Block, Blocks, IntArray, Stream
from hfpretrain.data.encoding import Encoder
from hfpretrain.data.order import derived, permuted
from hfpretrain.data.parts import Part as Encoded
from hfpretrain.data.parts import batched, gathered
from hfpretrain.data.row_stream import ROWS, State
from hfpretrain.data.sources import Document, OpenSource
from hfpretrain.data.tokens import TokenStore
from hfpretrain.errors import DataError

log = logging.getLogger(__name__)

WINDOW_TOKENS = 2**20
KEPT_WINDOWS, KEPT_MARKS = 3, 64
"""The latest windows are in memory: a step may have blocks of two, and the guard looks back. Marks are small."""


@dataclass(frozen=True)
class Mark:
    """Where a window begins."""

    window: int = 0
    block: int = 0
    """How many blocks come before it, over all epochs."""
    epoch: int = 0
    rows: int = 0
    """Of its epoch, before it."""
    documents: int = 0
    """Of its epoch, before it."""
    state: State | None = None
    """Of the reader; None at the beginning of an epoch."""


@dataclass(frozen=True)
class Window:
    """The documents from a mark on, and where the next window begins."""

    mark: Mark
    blocks: Blocks
    following: Mark

    @property
    def store(self) -> TokenStore:
        """The window's tokens, in memory."""
        return self.blocks.stream.stores[0]


class StreamedPart:
    """The blocks of one streamed source. `source` is its number; two threads may ask at once."""

    def __init__(
        self,
        source: int,
        opened: OpenSource,
        encoder: Encoder,
        block_size: int,
        *,
        padding_id: int,
        room: int,
        seed: int,
    ) -> None:
        self.sources = (source,)
        self.opened, self.encoder, self.block_size = opened, encoder, block_size
        self.padding_id, self.room, self.seed = padding_id, room, seed
        cut = [ROWS, WINDOW_TOKENS, block_size, room, encoder.end_id]
        identity = json.dumps([opened.fingerprint, encoder.identity, cut], sort_keys=True)
        self.identity = hashlib.sha256(identity.encode()).hexdigest()
        """Of the stream and how it is cut: marks are good for the same one."""
        self._marks: dict[int, Mark] = {0: Mark()}
        self._windows: list[Window] = []
        self._reading: Iterator[tuple[list[Document], int, State]] | None = None
        self._at = Mark()
        self._lock = threading.Lock()
        """Held while the stream is read, which may take long: marks and windows are replaced, never changed."""
        self.first = self._window(0)

    @property
    def blocks(self) -> Blocks:
        """Those of the first window."""
        return self.first.blocks

    def block(self, index: int) -> Block:
        """The block at `index`, counted from the start of the run, over all epochs."""
        window = self._window(index)
        return window.blocks[self._place(window, index)]

    def documents(self, index: int) -> list[tuple[int, int]]:
        """The documents that a block shows tokens of, as (source, document of its epoch)."""
        window = self._window(index)
        found = window.blocks.documents(self._place(window, index))
        return [(self.sources[0], window.mark.documents + document) for _, document in found]

    def _place(self, window: Window, index: int) -> int:
        seed = derived(self.seed, "window", *self.sources, window.mark.window)
        return permuted(index - window.mark.block, len(window.blocks), seed)

    def beginning(self, _source: int, document: int, tokens: int) -> IntArray:
        """The first token ids of a document in one of the latest windows; none if it is in no such window."""
        for window in reversed(self._windows):
            here, store = document - window.mark.documents, window.store
            if 0 <= here < len(store.keys):
                start, end = store.offsets[here], store.offsets[here + 1]
                return np.asarray(store.tokens[start : min(end, start + tokens)], dtype=np.int64)
        return np.zeros(0, dtype=np.int64)

    def epoch(self, blocks: int) -> int:
        """How many times the stream was read to its end before so many blocks, if they are among the latest."""
        return self._nearest(blocks).epoch

    def mark(self, blocks: int) -> dict[str, Any]:
        """From where the block after so many can be read, for `remember`."""
        return dataclasses.asdict(self._nearest(blocks))

    def _nearest(self, blocks: int) -> Mark:
        return max((mark for mark in self._marks.values() if mark.block <= blocks), key=lambda mark: mark.block)

    def remember(self, mark: dict[str, Any]) -> None:
        """Takes over where an earlier process had been."""
        known = Mark(**mark)
        with self._lock:
            self._marks = {**self._marks, known.window: known}

    def interrupt(self) -> None:
        """Whoever waits for the stream to be readable again gives up."""
        assert self.opened.stream is not None
        self.opened.stream.interrupt()

    def _window(self, index: int) -> Window:
        """The window that holds the block at `index`, read if need be, with those before it that have no mark."""
        with self._lock:
            for window in self._windows:
                if window.mark.block <= index < window.following.block:
                    return window
            nearest = self._nearest(index)
            if self._reading is None or not nearest.block <= self._at.block <= index:
                self._begin(nearest)
            try:
                while True:
                    window = self._read()
                    if index < window.following.block:
                        return window
            except BaseException:
                self._reading = None
                raise

    def _begin(self, mark: Mark) -> None:
        """Reads from a mark on."""
        self._reading, self._at = self.opened.batches(mark.state, mark.rows), mark

    def _read(self) -> Window:
        """The window at which the reader is."""
        mark = at = self._at
        found: list[Encoded] = []
        tokens = 0
        while tokens < WINDOW_TOKENS:
            assert self._reading is not None
            batch = next(self._reading, None)
            if batch is None:
                if at.documents == 0:
                    raise DataError(f"{self.opened.key} has no text", hint="give a source with at least one document")
                if at.epoch == 0:
                    log.info("%s: read to its end: documents: %d; it begins anew", self.opened.key, at.documents)
                    self.opened.say_what_is_missing()
                at = Mark(mark.window, mark.block, at.epoch + 1)
                self._begin(at)
                if tokens:
                    break
                mark = at
                continue
            documents, read, state = batch
            pieces = self.encoder.pieces(documents)
            encoded = ((batch, self.encoder.encode(batch)) for batch in batched(pieces))
            found.append(gathered(self.encoder, encoded))
            tokens += len(found[-1].tokens)
            behind = at.documents + len(found[-1].keys)
            at = dataclasses.replace(at, rows=at.rows + read, documents=behind, state=state)
        store = _in_memory(found, paired=len(self.opened.columns) > 1)
        stream = Stream([store], np.array([[0, 0, tokens]], dtype=np.int64))
        blocks = Blocks(stream, self.block_size, padding_id=self.padding_id, room=self.room)
        self._at = dataclasses.replace(at, window=mark.window + 1, block=mark.block + len(blocks))
        window = Window(mark, blocks, self._at)
        self._windows = [*self._windows[-KEPT_WINDOWS + 1 :], window]
        marks = {**self._marks, self._at.window: self._at}
        self._marks = {number: marks[number] for number in {0, *sorted(marks)[-KEPT_MARKS:]}}
        return window


def _in_memory(parts: list[Encoded], *, paired: bool) -> TokenStore:
    """The documents of some parts as a token store."""
    lengths, keys, prompts, texts, counts = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("lengths", "keys", "prompt_lengths", "text_lengths", "counts")
    )
    tokens = np.concatenate([part.tokens for part in parts])
    text_bytes, words = (int(count) for count in counts.reshape(-1, 2).sum(axis=0))
    numbers = {"documents": len(keys), "tokens": len(tokens), "words": words, "text_bytes": text_bytes}
    return TokenStore(
        tokens=tokens,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        keys=keys,
        prompt_lengths=prompts if paired else None,
        text_bytes=text_bytes,
        fingerprint="",
        manifest=numbers,
        text_lengths=texts,
    )
