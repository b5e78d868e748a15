"""Batches: what an optimizer step sees, as a pure function of (recipe, data, step)."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hfpretrain.data.blocks import PADDING, Block, Blocks, IntArray, Stream, split
from hfpretrain.data.encoding import Encoder
from hfpretrain.data.mixing import ENDLESS, Mix, Order, described, lay_out, require_enough
from hfpretrain.data.order import derived, permuted
from hfpretrain.data.sources import open_sources
from hfpretrain.data.stores import store_of
from hfpretrain.data.streaming import StreamedPart
from hfpretrain.data.tokens import TokenStore, end_of_document
from hfpretrain.errors import DataError
from hfpretrain.recipe import Amount, Recipe
from hfpretrain.recipe_stages import source_numbers, stages_of, training_sources, validation_sources, whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

COUNTS = ("documents", "tokens", "words", "text_bytes", "left_out")
"""What is told of a source."""
WELL_FILLED = 0.95
"""Of a part's block positions that hold tokens: with less, its share of the tokens is less than that of the blocks."""


@dataclass(frozen=True)
class Row:
    """A block in its place, with the seed of the choices made for it there (its masks)."""

    block: Block
    seed: int
    step: int | None = None
    """The step that it is trained in; None for one that is held out."""


@dataclass(frozen=True)
class StoredPart:
    """Sources that are gone through as one, in blocks of one size: those of a mix each by itself, others together."""

    number: int
    sources: tuple[int, ...]
    """Their numbers: the places in `recipe_stages.training_sources`."""
    blocks: Blocks
    seed: int

    def block(self, index: int) -> Block:
        """The block at `index`, counted from the start of the run, over all epochs."""
        return self.blocks[self._place(index)]

    def documents(self, index: int) -> list[tuple[int, int]]:
        """The documents that a block shows tokens of, as (source, document)."""
        return self.blocks.documents(self._place(index))

    def beginning(self, source: int, document: int, tokens: int) -> IntArray:
        """The first token ids of a document."""
        store = self.blocks.stream.stores[source]
        start, end = store.offsets[document], store.offsets[document + 1]
        return np.asarray(store.tokens[start : min(end, start + tokens)], dtype=np.int64)

    def _place(self, index: int) -> int:
        epoch, rest = divmod(index, len(self.blocks))
        return permuted(rest, len(self.blocks), derived(self.seed, "order", self.number, epoch))


Part: TypeAlias = StoredPart | StreamedPart


class Batches:
    """The training blocks of each part in their order, and the validation blocks.

    `sources` holds the counts of each training source (documents, tokens, words, text_bytes, and what filters
    left out), held-out part included; `mixing` says in lines what is mixed, repeated and used up when.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        order: Order,
        validation: Blocks | None,
        *,
        seed: int,
        tokens: int | None = 0,
        stores: Sequence[TokenStore] = (),
        fingerprint: str = "",
        sources: Sequence[dict[str, Any]] = (),
        source_keys: Sequence[str] = (),
        mixing: Sequence[str] = (),
    ) -> None:
        self.parts, self.order, self.validation = parts, order, validation
        self.sizes, self.seed, self.fingerprint = order.batches, seed, fingerprint
        self.tokens = tokens
        """Training tokens of all sources; None where one is streamed."""
        self.stores = stores
        """The tokens of each training source; of a streamed one those of its first window."""
        self.sources, self.source_keys, self.mixing = sources, source_keys, mixing

    @property
    def blocks(self) -> int:
        """How many blocks there are to train on; of a streamed source those of its first window count."""
        return sum(len(part.blocks) for part in self.parts)

    def row(self, position: int) -> Row:
        """The block at `position`, counted over all steps and epochs from the start of the run.

        Where sources that are not repeated are used up within a step, the rest of it is blocks of padding.
        """
        place, seed = self.order.place(position), derived(self.seed, "row", position)
        block = self._empty(position) if place is None else self.parts[place[0]].block(place[1])
        return Row(block, seed, self.sizes.step_at(position))

    def _empty(self, position: int) -> Block:
        size = int(self.order.segment(position).rates["tokens"])
        padding = np.full(size + 1, self.parts[0].blocks.padding_id, dtype=np.int64)
        return Block(padding, np.zeros(size + 1, dtype=np.bool_), np.full(size + 1, PADDING, dtype=np.int64))

    def documents(self, step: int, place: int) -> list[tuple[int, int]]:
        """The documents that a row of a step shows tokens of, as (source, document)."""
        found = self.order.place(self.sizes.before(step) + place)
        return [] if found is None else self.parts[found[0]].documents(found[1])

    def beginning(self, source: int, document: int, tokens: int) -> IntArray:
        """The first token ids of a document of a training source."""
        part = next(part for part in self.parts if source in part.sources)
        return part.beginning(source, document, tokens)

    def marks(self, step: int) -> dict[str, Any]:
        """From where streamed sources can be read on after so many steps, for `remember`."""
        taken = self.order.taken(self.sizes.before(step))
        return {part.identity: part.mark(taken[number]) for number, part in self._streamed()}

    def remember(self, marks: Mapping[str, Any]) -> None:
        """Takes over what an earlier process knew of streams, so that what lies before need not be read again."""
        for _, part in self._streamed():
            if part.identity in marks:
                part.remember(marks[part.identity])

    def interrupt(self) -> None:
        """Whoever waits for a stream that cannot be read just now gives up."""
        for _, part in self._streamed():
            part.interrupt()

    def _streamed(self) -> Iterator[tuple[int, StreamedPart]]:
        return ((number, part) for number, part in enumerate(self.parts) if isinstance(part, StreamedPart))

    def rows(self, step: int, places: range | None = None) -> list[Row]:
        """The rows of one step, or those of some `places` in it."""
        first = self.sizes.before(step)
        return [self.row(first + place) for place in (range(self.sizes.of(step)) if places is None else places)]

    def largest_rows(self, count: int) -> list[Row]:
        """So many rows of the first step whose blocks are the largest of the run."""
        largest = max(self.order.segments, key=lambda segment: segment.rates["tokens"])
        return self.rows(self.sizes.step_at(largest.start), range(count))

    def epochs(self, step: int) -> float | list[float]:
        """How many times each source was gone through after so many steps; one number where that is one.

        Of a streamed source, of which nobody knows how much is left, the times it was read to its end.
        """
        taken = self.order.taken(self.sizes.before(step))
        parts = [
            Fraction(part.epoch(blocks)) if isinstance(part, StreamedPart) else Fraction(blocks, len(part.blocks))
            for part, blocks in zip(self.parts, taken, strict=True)
        ]
        if len(parts) == 1:
            return round(float(parts[0]), 4)
        found = [Fraction(0) for _ in self.sources]
        for part, epochs in zip(self.parts, parts, strict=True):
            for source in part.sources:
                found[source] += epochs
        each = [round(float(epochs), 4) for epochs in found]
        return each if len(each) > 1 else each[0]

    def validation_rows(self, places: range) -> list[Row]:
        """Held-out blocks, in a fixed seeded order that mixes their sources, with masks that never change."""
        assert self.validation is not None
        size, seed = len(self.validation), derived(self.seed, "validation order")
        return [
            Row(self.validation[permuted(place, size, seed)], derived(self.seed, "validation row", place))
            for place in places
        ]


def open_batches(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", *, training: bool = True) -> Batches:
    """Tokenises what is not tokenised yet, holds out the validation part, and orders the rest.

    Raises DataError where a source cannot be read, is empty, or, for `training`, makes less than one block or, not
    to be repeated, not enough of them; RecipeError where stages do not follow one another.
    """
    data = recipe.data
    named, bad_rows = training_sources(data), data.on_bad_rows
    end_id, padding_id = end_of_document(tokenizer, recipe.objective), tokenizer.pad_token_id or 0
    opened = open_sources(named, on_bad_rows=bad_rows)
    stores = [_nothing() if source.stream else store_of(source, tokenizer, end_id=end_id) for source in opened]

    share = data.validation.value / 100 if isinstance(data.validation, Amount) else 0.0
    train, held_out = split(stores, share, derived(recipe.seed, "split") if share else 0, whole=not share)
    validation = Blocks(Stream(stores, held_out), data.block_size, padding_id=padding_id)
    if not isinstance(data.validation, Amount):
        own = validation_sources(data)
        others = [store_of(source, tokenizer, end_id=end_id) for source in open_sources(own, on_bad_rows=bad_rows)]
        others = others or stores
        stream = Stream(others, split(others, 0.0, 0, whole=True)[0])
        validation = Blocks(stream, data.block_size, padding_id=padding_id)
        known = sum(int(np.isin(other.keys, store.keys).sum()) for other in others for store in stores)
        if known and training:
            log.warning("documents of data.validation that are in the training data as well: %d", known)
    elif share and not validation.tokens:
        log.info("no validation: %s of the data is too little to hold out", data.validation)

    # The sentinels of a document that is turned round.
    room = 3 if recipe.objective == "clm" and recipe.fim.rate else 0
    parts: list[Part] = []
    shown = list(stores)

    def part_of(sources: tuple[int, ...], block_size: int) -> int:
        """The number of that part, which an earlier stage may have had, too."""
        for number, part in enumerate(parts):
            if part.sources == sources and part.blocks.block_size == block_size:
                return number
        streamed = [source for source in sources if opened[source].stream]
        if streamed and training:
            encoder = Encoder(tokenizer, end_id)
            cut = {"padding_id": padding_id, "room": room, "seed": recipe.seed}
            part = StreamedPart(streamed[0], opened[streamed[0]], encoder, block_size, **cut)
            parts.append(part)
            shown[streamed[0]] = part.first.store
        else:
            stream = Stream(stores, train[np.isin(train[:, 0], sources)])
            blocks = Blocks(stream, block_size, padding_id=padding_id, room=room)
            parts.append(StoredPart(len(parts), sources, blocks, recipe.seed))
        return len(parts) - 1

    mixes: list[Mix] = []
    for stage, sources in zip(stages_of(data), source_numbers(data), strict=True):
        assert stage.block_size is not None
        weights = whole_weights(stage.sources)
        groups = [tuple(sources)] if weights is None else [(number,) for number in sources]
        mixes.append(
            Mix(
                parts=tuple(part_of(group, stage.block_size) for group in groups),
                weights=weights or (1,),
                repeat=tuple(source.repeat for source in stage.sources)[: len(groups)],
                block_size=stage.block_size,
                words_per_token=tuple(_words_per_token([shown[number] for number in group]) for group in groups),
                until=stage.until,
            )
        )
    for store in shown:
        smallest = min(mix.block_size for mix in mixes)
        cut = int((np.diff(store.offsets) > smallest).sum()) if store.prompt_lengths is not None else 0
        if cut:
            log.warning("pairs longer than data.block_size, which lose part of their prompt: %d", cut)
    keys = [key for key, _ in named]
    names = _names(parts, keys)
    if training:
        _require_blocks(parts, names)
    sizes = [ENDLESS if isinstance(part, StreamedPart) else max(1, len(part.blocks)) for part in parts]
    duration = recipe.train.duration if training else Amount.steps(1)  # of which only the held-out part is looked at
    order = lay_out(mixes, sizes, batch_size=recipe.train.batch_size, duration=duration)
    if training:
        require_enough(order)
    # Of the documents' texts and lengths, not of the files, which may be moved and copied.
    digest = hashlib.sha256()
    for source in opened:
        if source.stream:
            digest.update(json.dumps(source.fingerprint, sort_keys=True).encode())
    for store in [*shown, *(validation.stream.stores if validation.stream.stores is not stores else ())]:
        for array in (store.keys, store.offsets, store.prompt_lengths):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
    # And of what each id means: another tokenizer may make as many tokens of each text.
    words = sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)
    digest.update(json.dumps([*words, end_id]).encode())
    return Batches(
        parts,
        order,
        validation if validation.tokens else None,
        seed=recipe.seed,
        tokens=None if any(source.stream for source in opened) else int((train[:, 2] - train[:, 1]).sum()),
        stores=shown,
        fingerprint=digest.hexdigest(),
        sources=[
            dict.fromkeys(COUNTS) if source.stream else {key: store.manifest[key] for key in COUNTS}
            for source, store in zip(opened, stores, strict=True)
        ],
        source_keys=keys,
        mixing=[*described(order, mixes, names), *_filled(parts, names)],
    )


def _words_per_token(stores: Sequence[TokenStore]) -> Fraction:
    """Words (between spaces) that go with a token on average."""
    words, tokens = (sum(store.manifest[key] for store in stores) for key in ("words", "tokens"))
    return Fraction(words, max(1, tokens))


def _names(parts: Sequence[Part], keys: Sequence[str]) -> list[str]:
    """How messages call each part: by the key of its source, with its blocks where they are of several sizes."""
    sizes = {part.blocks.block_size for part in parts}
    return [
        " and ".join(keys[source] for source in part.sources)
        + (f" in blocks of {part.blocks.block_size}" if len(sizes) > 1 else "")
        for part in parts
    ]


def _require_blocks(parts: Sequence[Part], names: Sequence[str]) -> None:
    """Raises DataError where a part is less than one block."""
    for part, name in zip(parts, names, strict=True):
        if not part.blocks.paired and part.blocks.tokens < part.blocks.block_size:
            where = name if len(parts) > 1 else "the training data"
            size = part.blocks.block_size
            raise DataError(
                f"{where} has {part.blocks.tokens} tokens, less than one block of {size} (data.block_size)",
                hint="give more text, or set a smaller data.block_size",
            )


def _filled(parts: Sequence[Part], names: Sequence[str]) -> list[str]:
    """A line for each part of a mix whose blocks hold much padding: shares are of blocks."""
    filled = [part.blocks.tokens / (max(1, len(part.blocks)) * part.blocks.block_size) for part in parts]
    said = "its blocks hold {:.0%} tokens, the rest is padding, so that its share of the tokens is less"
    return [
        f"{name}: {said.format(share)}"
        for name, share in zip(names, filled, strict=True)
        if share < WELL_FILLED and len(parts) > 1
    ]


def _nothing() -> TokenStore:
    """What stands for the tokens of a streamed source, which are not known beforehand."""
    none = np.zeros(0, dtype=np.uint64)
    return TokenStore(none.astype(np.uint16), np.zeros(1, dtype=np.int64), none, None, 0, "", dict.fromkeys(COUNTS, 0))
