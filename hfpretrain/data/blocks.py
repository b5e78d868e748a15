"""Blocks: `block_size` tokens cut from documents that follow one another, none left out.

A `Stream` is the documents of one side (training or validation) laid end to end; `Blocks` cuts it. The
last block is filled with padding, so that every token stands in exactly one block position.
"""

import bisect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hfpretrain.data.tokens import TokenStore

log = logging.getLogger(__name__)

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

PADDING = -1
"""The document number of padding."""


@dataclass(frozen=True)
class Block:
    """`block_size` tokens and the one that follows them, which is the last one's next-word target.

    All three arrays have the shape [block_size + 1].
    """

    token_ids: IntArray
    targets: BoolArray
    """Whether the token may be learnt: not padding, and not part of a prompt."""
    documents: IntArray
    """Numbers the documents of this block 0, 1, 2, ...; PADDING for padding."""


@dataclass(frozen=True)
class Stream:
    """Token ranges of token stores, laid end to end. `ranges` is [[store, start, end], ...]."""

    stores: Sequence[TokenStore]
    ranges: IntArray

    @property
    def starts(self) -> IntArray:
        """Where each range begins in the stream, and the stream's end: [ranges + 1]."""
        return np.concatenate([[0], np.cumsum(self.ranges[:, 2] - self.ranges[:, 1])])


def split(stores: Sequence[TokenStore], share: float, seed: int, *, whole: bool = False) -> tuple[IntArray, IntArray]:
    """Ranges for training and for validation, with about `share` of the tokens in the second.

    Documents are chosen by a hash of their text and the seed, so that equal documents are on one side. When
    no document is small enough for that share, the tail of the longest is held out; never that of a pair.
    """
    train, held_out = [], []
    choices = [_held_out(store, 0.0 if whole else share, seed) for store in stores]
    if len(stores) > 1:
        texts = np.concatenate([store.keys[chosen] for store, chosen in zip(stores, choices, strict=True)])
        choices = [chosen | np.isin(store.keys, texts) for store, chosen in zip(stores, choices, strict=True)]
    for number, (store, chosen) in enumerate(zip(stores, choices, strict=True)):
        train.append(_ranges(number, store, ~chosen))
        held_out.append(_ranges(number, store, chosen))
        budget = round(share * int(store.offsets[-1]))
        if not whole and not chosen.any() and budget > 1 and store.prompt_lengths is None:
            longest = int(np.argmax(np.diff(store.offsets)))
            end = int(store.offsets[longest + 1])
            budget = min(budget, end - int(store.offsets[longest]) - 1)
            if len(store.keys) > 1:
                log.info(
                    "no document is as small as %.3g%% of the data; the longest one's tail is held out", 100 * share
                )
            train[-1] = _without(train[-1], end - budget, end)
            held_out[-1] = np.array([[number, end - budget, end]], dtype=np.int64)
    return np.concatenate(train), np.concatenate(held_out)


def _held_out(store: TokenStore, share: float, seed: int) -> BoolArray:
    chosen = np.zeros(len(store.keys), dtype=np.bool_)
    budget = share * int(store.offsets[-1])
    if budget < 1 or len(store.keys) < 2:
        return chosen
    order = _mixed(np.asarray(store.keys), seed)
    # Only documents early in the seeded order can be chosen: looking at a few times the share is enough and
    # keeps the sorting small for large corpora.
    few = min(1.0, 4 * share + 1000 / len(order))
    candidates = np.flatnonzero(order <= np.uint64(min(2**64 - 1, int(few * 2**64))))
    lengths = np.asarray(store.offsets)[candidates + 1] - np.asarray(store.offsets)[candidates]
    texts, which = np.unique(order[candidates], return_inverse=True)  # equal texts are one
    sizes = np.bincount(which, weights=lengths, minlength=len(texts))
    fits = sizes <= budget
    taken = fits & (np.cumsum(np.where(fits, sizes, 0)) <= budget)
    chosen[candidates[taken[which]]] = True
    return chosen


def _mixed(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        mixed = (keys ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return mixed ^ (mixed >> np.uint64(31))


def _ranges(number: int, store: TokenStore, selected: BoolArray) -> IntArray:
    """Neighbouring selected documents are one range."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], selected, [False]]).astype(np.int8)))
    offsets = np.asarray(store.offsets, dtype=np.int64)[edges].reshape(-1, 2)
    return np.column_stack([np.full(len(offsets), number, dtype=np.int64), offsets])


def _cuts(stream: Stream, block_size: int) -> IntArray:
    """Where blocks begin, and the end: whole documents as long as they fit, longer ones every `block_size` tokens."""
    cuts, position = [0], 0
    for number, start, end in stream.ranges.tolist():
        offsets = stream.stores[number].offsets
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, end, side="left"))
        for length in np.diff(np.clip(np.asarray(offsets[first : last + 1]), start, end)).tolist():
            if position > cuts[-1] and position + length - cuts[-1] > block_size:
                cuts.append(position)
            position += length
            while position - cuts[-1] > block_size:
                cuts.append(cuts[-1] + block_size)
    return np.array([*cuts, position] if position > cuts[-1] else cuts, dtype=np.int64)


def _roomy_starts(stream: Stream, room: int) -> IntArray:
    """Where each range begins in a stream that has `room` places before each document, and its end: [ranges + 1]."""
    lengths = stream.ranges[:, 2] - stream.ranges[:, 1]
    for number, store in enumerate(stream.stores):
        own = stream.ranges[:, 0] == number
        first = np.searchsorted(store.offsets, stream.ranges[own, 1], side="right") - 1
        lengths[own] += room * (np.searchsorted(store.offsets, stream.ranges[own, 2], side="left") - first)
    return np.concatenate([[0], np.cumsum(lengths)])


def _without(ranges: IntArray, start: int, end: int) -> IntArray:
    """`ranges` of one store less the tokens [start, end), which lie within one of them."""
    inside = (ranges[:, 1] <= start) & (end <= ranges[:, 2])
    (number, first, last) = ranges[inside][0]
    pieces = np.array([[number, first, start], [number, end, last]], dtype=np.int64)
    kept = np.concatenate([ranges[~inside], pieces[pieces[:, 1] < pieces[:, 2]]])
    return kept[np.argsort(kept[:, 1])]


class Blocks(Sequence[Block]):
    """A stream cut into blocks. `blocks[i]` is read from the token store when asked for.

    Text is cut every `block_size` tokens. Where the stream holds prompts and completions, a document that does not
    fit any more opens the next block, since a completion is of no use without its prompt. With `room`, each part of a
    document that a block shows can grow by so many tokens; what is left of the block is padding, and the token after
    it belongs to the next block alone.
    """

    def __init__(self, stream: Stream, block_size: int, *, padding_id: int, room: int = 0) -> None:
        self.stream = stream
        self.block_size = block_size
        self.padding_id = padding_id
        self._starts = stream.starts
        self.paired = any(stream.stores[number].prompt_lengths is not None for number in np.unique(stream.ranges[:, 0]))
        self._cuts = _cuts(stream, block_size) if self.paired else None
        assert not (room and self.paired)
        self.room = room
        self._roomy_starts = _roomy_starts(stream, room) if room else self._starts

    @property
    def tokens(self) -> int:
        """Tokens of the whole stream, padding not counted."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        if self._cuts is not None:
            return len(self._cuts) - 1
        return -(-int(self._roomy_starts[-1]) // (self.block_size - self.room))

    def _roomy_cut(self, index: int) -> int:
        """Where a block begins, if all are cut with room.

        Think of a stream where `room` places stand before each document. It is cut every block_size - room places:
        together with the room of the document that goes on at its beginning, a block is full at most.
        """
        place = index * (self.block_size - self.room)
        piece = int(np.searchsorted(self._roomy_starts, place, side="right")) - 1
        if piece == len(self.stream.ranges):
            return self.tokens
        place -= int(self._roomy_starts[piece])
        number, start, end = self.stream.ranges[piece].tolist()
        offsets = self.stream.stores[number].offsets
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, end, side="left"))

        def begins(document: int) -> int:
            return int(max(0, offsets[document] - start))

        found = (
            first
            - 1
            + bisect.bisect_right(
                range(first, last), place, key=lambda document: begins(document) + self.room * (document - first)
            )
        )
        into = place - begins(found) - self.room * (found - first)
        return int(self._starts[piece]) + begins(found) + max(0, into - self.room)

    def pieces(self, index: int) -> Iterator[tuple[int, int, int]]:
        """Where the tokens of a block, and the one that follows, come from: (store, start, end) each."""
        filled, position, length = 0, index * self.block_size, self.block_size + 1
        if self._cuts is not None:
            position = int(self._cuts[index])
            # The token after a cut is one to predict only where a document goes on.
            length = int(self._cuts[index + 1]) - position
            length += length == self.block_size
        elif self.room:
            position = self._roomy_cut(index)
            length = self._roomy_cut(index + 1) - position
        piece = int(np.searchsorted(self._starts, position, side="right")) - 1
        while filled < length and piece < len(self.stream.ranges):
            number, start, end = self.stream.ranges[piece].tolist()
            start += position - int(self._starts[piece])
            end = min(end, start + length - filled)
            yield number, start, end
            filled, position, piece = filled + end - start, position + end - start, piece + 1

    def documents(self, index: int) -> list[tuple[int, int]]:
        """The documents that a block shows tokens of, as (store, document)."""
        found = []
        for number, start, end in self.pieces(index):
            offsets = self.stream.stores[number].offsets
            first = int(np.searchsorted(offsets, start, side="right")) - 1
            found += [(number, document) for document in range(first, int(np.searchsorted(offsets, end, side="left")))]
        return found

    def __getitem__(self, index: int) -> Block:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        token_ids = np.full(self.block_size + 1, self.padding_id, dtype=np.int64)
        targets = np.zeros(self.block_size + 1, dtype=np.bool_)
        borders = np.zeros(self.block_size + 1, dtype=np.int64)
        filled = 0
        for number, start, end in self.pieces(index):
            store, here = self.stream.stores[number], slice(filled, filled + end - start)
            token_ids[here] = store.tokens[start:end]
            first = int(np.searchsorted(store.offsets, start, side="right")) - 1
            last = int(np.searchsorted(store.offsets, end, side="left"))
            begins = np.asarray(store.offsets[first:last], dtype=np.int64) - start
            borders[here.start] += 1
            borders[here.start + begins[1:]] += 1
            if store.prompt_lengths is None:
                targets[here] = True
            else:
                within = np.arange(end - start)
                document = np.searchsorted(begins, within, side="right") - 1
                targets[here] = within - begins[document] >= np.asarray(store.prompt_lengths[first:last])[document]
            filled = here.stop
        documents = np.cumsum(borders) - 1
        documents[filled:] = PADDING
        return Block(token_ids, targets, documents)
