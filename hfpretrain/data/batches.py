"""Batches: what an optimizer step sees, as a pure function of (recipe, data, step)."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from hfpretrain.data.blocks import Block, Blocks, IntArray, Stream, split
from hfpretrain.data.order import derived, interleaved, permuted
from hfpretrain.data.sources import open_source
from hfpretrain.data.tokens import TokenStore, end_of_document, prepare
from hfpretrain.errors import DataError
from hfpretrain.recipe import Amount, Recipe, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A block in its place, with the seed of the choices made for it there (its masks)."""

    block: Block
    seed: int


class Batches:
    """The training blocks of each mixed part in their order, and the validation blocks.

    `sources` holds the counts of each training source (documents, tokens, words, text_bytes), held-out part included.
    """

    def __init__(
        self,
        parts: Sequence[Blocks],
        weights: Sequence[Fraction],
        validation: Blocks | None,
        *,
        batch_size: int,
        seed: int,
        fingerprint: str = "",
        sources: Sequence[dict[str, int]] = (),
    ) -> None:
        self.parts, self.weights, self.validation = parts, weights, validation
        self.batch_size, self.seed, self.fingerprint = batch_size, seed, fingerprint
        self.sources = sources

    @property
    def blocks_per_epoch(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def tokens(self) -> int:
        """Training tokens of one epoch."""
        return sum(part.tokens for part in self.parts)

    @property
    def words_per_token(self) -> float:
        """Words (between spaces) that go with a training token on average, each source by its share of the tokens."""
        if len(self.parts) == 1:
            words, tokens = (sum(source[key] for source in self.sources) for key in ("words", "tokens"))
            return words / tokens
        shares = zip(self.sources, self.weights, strict=True)
        return float(sum(source["words"] / source["tokens"] * weight for source, weight in shares) / sum(self.weights))

    def _place(self, position: int) -> tuple[Blocks, int]:
        """The part, and the number of the block in it, at `position`."""
        part, index = interleaved(position, self.weights)
        blocks = self.parts[part]
        epoch, place = divmod(index, len(blocks))
        return blocks, permuted(place, len(blocks), derived(self.seed, "order", part, epoch))

    def row(self, position: int) -> Row:
        """The block at `position`, counted over all steps and epochs from the start of the run."""
        blocks, number = self._place(position)
        return Row(blocks[number], derived(self.seed, "row", position))

    def documents(self, step: int, place: int) -> list[tuple[int, int]]:
        """The documents that a row of a step shows tokens of, as (source, document)."""
        blocks, number = self._place(step * self.batch_size + place)
        return blocks.documents(number)

    def beginning(self, source: int, document: int, tokens: int) -> IntArray:
        """The first token ids of a document of a training source."""
        store = self.parts[0].stream.stores[source]
        start, end = store.offsets[document], store.offsets[document + 1]
        return np.asarray(store.tokens[start : min(end, start + tokens)], dtype=np.int64)

    def rows(self, step: int, places: range | None = None) -> list[Row]:
        """The rows of one step, or those of some `places` in range(batch_size)."""
        first = step * self.batch_size
        return [self.row(first + place) for place in (range(self.batch_size) if places is None else places)]

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

    Raises DataError where a source cannot be read, is empty, or, for `training`, makes less than one block.
    """
    data = recipe.data
    stores = _stores(recipe, data.sources, "data.sources", tokenizer)
    padding_id = tokenizer.pad_token_id or 0

    def blocks(stores: Sequence[TokenStore], ranges: IntArray) -> Blocks:
        return Blocks(Stream(stores, ranges), data.block_size, padding_id=padding_id)

    share = data.validation.value / 100 if isinstance(data.validation, Amount) else 0.0
    train, held_out = split(stores, share, derived(recipe.seed, "split") if share else 0, whole=not share)
    validation = blocks(stores, held_out)
    if not isinstance(data.validation, Amount):
        same = data.validation == data.sources
        others = stores if same else _stores(recipe, data.validation, "data.validation", tokenizer)
        validation = blocks(others, split(others, 0.0, 0, whole=True)[0])
        known = sum(int(np.isin(other.keys, store.keys).sum()) for other in others for store in stores)
        if known and training:
            log.warning("documents of data.validation that are in the training data as well: %d", known)
    elif share and not validation.tokens:
        log.info("no validation: %s of the data is too little to hold out", data.validation)

    weights = [source.weight for source in data.sources]
    if any(weight is not None for weight in weights):
        parts = [blocks(stores, train[train[:, 0] == number]) for number in range(len(stores))]
        shares = [Fraction(str(1 if weight is None else weight)) for weight in weights]
    else:
        parts, shares = [blocks(stores, train)], [Fraction(1)]
    for store in stores:
        cut = int((np.diff(store.offsets) > data.block_size).sum()) if store.prompt_lengths is not None else 0
        if cut:
            log.warning("pairs longer than data.block_size, which lose part of their prompt: %d", cut)
    for number, part in enumerate(parts):
        if training and not part.paired and part.tokens < data.block_size:
            where = f"data.sources.{number}" if len(parts) > 1 else "the training data"
            raise DataError(
                f"{where} has {part.tokens} tokens, less than one block of {data.block_size} (data.block_size)",
                hint="give more text, or set a smaller data.block_size",
            )
    # Of the documents' texts and lengths, not of the files, which may be moved and copied.
    digest = hashlib.sha256()
    for store in [*stores, *(validation.stream.stores if validation.stream.stores is not stores else ())]:
        for array in (store.keys, store.offsets, store.prompt_lengths):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
    # And of what each id means: another tokenizer may make as many tokens of each text.
    words = sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)
    digest.update(json.dumps([*words, end_of_document(tokenizer, recipe.objective)]).encode())
    return Batches(
        parts,
        shares,
        validation if validation.tokens else None,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        fingerprint=digest.hexdigest(),
        sources=[
            {key: store.manifest[key] for key in ("documents", "tokens", "words", "text_bytes")} for store in stores
        ],
    )


def _stores(
    recipe: Recipe, sources: Sequence[Source], key: str, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenStore]:
    end_id = end_of_document(tokenizer, recipe.objective)
    opened = [
        open_source(source, on_bad_rows=recipe.data.on_bad_rows, key=f"{key}.{number}")
        for number, source in enumerate(sources)
    ]
    return [prepare(source, tokenizer, end_id=end_id) for source in opened]
