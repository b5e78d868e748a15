"""Text becomes token ids, exactly as `tokenizer(text)` gives them, at the speed of the tokenizers library."""

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.encoded import Encoded, TextEncoder
from hfpretrain.data.seen import IntArray, TokenArray, ranges
from hfpretrain.data.sources import Document
from hfpretrain.errors import DataError

log = logging.getLogger(__name__)

# A token costs about 100 bytes while the tokenizers library holds its encoding, and one text is encoded by one thread:
# a long document is cut into pieces of this many characters or up to twice as many.
PIECE_CHARACTERS = 65_536
BORDER = re.compile(r"(?<=\w)(?=\s)|(?<=[.!?。！？])(?=\S)")
BORDERS_TRIED, BORDER_CONTEXT = 16, 500


class Piece(NamedTuple):
    """A text to encode at once: a document, or a part of a long one."""

    text: str
    document: Document | None
    """The document that begins here."""
    last: bool
    """Whether the document ends here."""


class Encoder:
    """Text to token ids, with the special tokens kept apart: `before` and `after` stand around every document."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> None:
        self.end_id = end_id
        self.before: list[int] = []
        self.after: list[int] = []
        self.texts: TextEncoder | None = None
        """Without it the tokenizer is one that is written in Python."""
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        largest = max([len(tokenizer) - 1, end_id or 0, *vocabulary.values()])
        self.typecode: Literal["H", "I"] = "H" if largest < 2**16 else "I"
        self.identity = {"class": type(tokenizer).__name__, "special": sorted(tokenizer.all_special_ids)}
        if tokenizer.is_fast:
            specification = _plain_specification(tokenizer.backend_tokenizer.to_str())
            self.texts = TextEncoder(specification, self.typecode)
            self.before, self.after = _surroundings(self.texts.backend)
            if end_id is not None and self.after[-1:] != [end_id]:
                self.after.append(end_id)
        else:
            specification = json.dumps([sorted(vocabulary.items()), tokenizer.init_kwargs], default=str, sort_keys=True)
        self.identity["specification"] = hashlib.sha256(specification.encode()).hexdigest()

    def encode(self, pieces: list[Piece]) -> Encoded:
        """The pieces as token ids; `before` and `after` are not among them."""
        texts = [piece.text.encode() for piece in pieces]
        if self.texts is None:
            return Encoded.of(texts, map(self._encode_slowly, pieces), self.typecode)
        if not any(piece.document and piece.document.prompt_characters for piece in pieces):
            return self.texts.encode(texts)
        encodings = self.texts.backend.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        prompts = np.array(list(map(self._prompt_length, pieces, encodings)), dtype=np.int64)
        return Encoded.of(texts, (encoding.ids for encoding in encodings), self.typecode, prompts)

    def _prompt_length(self, piece: Piece, encoding: Any) -> int:
        if piece.document is None or not (prompt := piece.document.prompt_characters):
            return 0
        ends = (place for place, (_, end) in enumerate(encoding.offsets) if end > prompt)
        return next(ends, len(encoding.ids)) + len(self.before)

    def surrounded(self, pieces: list[Piece], encoded: Encoded) -> tuple[TokenArray, IntArray]:
        """The tokens and their number for each piece, with `before` and `after` around every document."""
        if not self.before and not self.after:
            return encoded.tokens, encoded.lengths
        begin = np.array([piece.document is not None for piece in pieces])
        end = np.array([piece.last for piece in pieces])
        lengths = encoded.lengths + len(self.before) * begin + len(self.after) * end
        ends = np.cumsum(lengths)
        starts = ends - lengths
        tokens = np.empty(int(lengths.sum()), dtype=encoded.tokens.dtype)
        tokens[starts[begin, None] + np.arange(len(self.before))] = self.before
        tokens[ranges(starts + len(self.before) * begin, encoded.lengths)] = encoded.tokens
        tokens[ends[end, None] - len(self.after) + np.arange(len(self.after))] = self.after
        return tokens, lengths

    def _encode_slowly(self, piece: Piece) -> list[int]:
        """For tokenizers written in Python: they say no offsets, and are given whole documents."""
        if piece.document and piece.document.prompt_characters:
            raise DataError(
                f"the tokenizer {type(self.tokenizer).__name__} cannot tell prompts from completions",
                hint="use a fast tokenizer, one with a tokenizer.json",
            )
        ids: list[int] = self.tokenizer(piece.text, split_special_tokens=True, verbose=False)["input_ids"]
        return ids if self.end_id is None or ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def pieces(self, documents: Iterable[Document]) -> Iterator[Piece]:
        """The documents, in pieces of PIECE_CHARACTERS to twice as many where one is long."""
        most = 2 * PIECE_CHARACTERS
        for document in documents:
            if len(document.text) > most and self.texts is not None and not document.prompt_characters:
                yield from self._cut(document, self.texts.backend)
            else:
                yield Piece(document.text, document, last=True)

    @staticmethod
    def _cut(document: Document, backend: Tokenizer) -> Iterator[Piece]:
        text, start = document.text, 0
        while len(text) - start > 2 * PIECE_CHARACTERS:
            border = _border(text, start, backend)
            if border is None:
                log.info("a text of %d characters cannot be cut safely: it is encoded in one go", len(text))
                break
            yield Piece(text[start:border], None if start else document, last=False)
            start = border
        yield Piece(text[start:], None if start else document, last=True)


def _border(text: str, start: int, backend: Tokenizer) -> int | None:
    """Where the text after `start` can be cut so that the tokens stay the same, proven on what stands around."""
    candidates = BORDER.finditer(text, start + PIECE_CHARACTERS, start + 2 * PIECE_CHARACTERS)
    for match in itertools.islice(candidates, BORDERS_TRIED):
        border = match.start()
        left, right = text[border - BORDER_CONTEXT : border], text[border : border + BORDER_CONTEXT]
        whole, *parts = backend.encode_batch_fast([left + right, left, right], add_special_tokens=False)
        if whole.ids == parts[0].ids + parts[1].ids:
            return border
    return None


def _plain_specification(specification: str) -> str:
    """The tokenizer's JSON without truncation and padding, in which no text can become a special token.

    `encode_special_tokens` alone does not do it: the model's vocabulary holds the special tokens as well, and a Unigram
    model (or a WordPiece model split at spaces) finds "</s>" there. So they get names that no text has; ids stay.
    """
    content = json.loads(specification)
    content["truncation"] = content["padding"] = None
    model = content["model"]
    vocabulary = model.get("vocab", {})
    if model.get("type") == "BPE" and not model.get("ignore_merges"):  # merges never make a special token
        return json.dumps(content)
    known = {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else vocabulary
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    names = {name: f"{name}\uffff" for name in special if name in known}  # U+FFFF is no character
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return json.dumps(content)


def _surroundings(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer's own post-processor puts before and after every text."""
    # Any text with a token of its own shows them apart; the vocabulary is where to find one.
    for number in range(backend.get_vocab_size()):
        encoding = backend.encode(backend.decode([number]))
        mask = encoding.special_tokens_mask
        if 0 in mask:
            first, last = mask.index(0), len(mask) - mask[::-1].index(0)
            return encoding.ids[:first], encoding.ids[last:]
    return backend.encode("").ids, []
