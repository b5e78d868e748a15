"""Text becomes token ids, exactly as `tokenizer(text)` gives them, at the speed of the tokenizers library."""

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.seen import SeenWords, cuts_at_spaces
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
        self.backend: Tokenizer | None = None
        self.seen: SeenWords | None = None
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        largest = max([len(tokenizer) - 1, end_id or 0, *vocabulary.values()])
        self.typecode: Literal["H", "I"] = "H" if largest < 2**16 else "I"
        self.identity = {"class": type(tokenizer).__name__, "special": sorted(tokenizer.all_special_ids)}
        if tokenizer.is_fast:
            specification = _plain_specification(tokenizer.backend_tokenizer.to_str())
            self.backend = Tokenizer.from_str(specification)
            self.backend.encode_special_tokens = True
            self.seen = SeenWords(self.backend, np.dtype(self.typecode)) if cuts_at_spaces(specification) else None
            self.before, self.after = _surroundings(self.backend)
            if end_id is not None and self.after[-1:] != [end_id]:
                self.after.append(end_id)
        else:
            specification = json.dumps([sorted(vocabulary.items()), tokenizer.init_kwargs], default=str, sort_keys=True)
        self.identity["specification"] = hashlib.sha256(specification.encode()).hexdigest()

    def encodings(self, pieces: list[Piece]) -> list[Any]:
        """The token ids of each piece or, where there are prompts, what the tokenizers library says of it."""
        if self.backend is None:
            return [self._encode_slowly(piece) for piece in pieces]
        texts = [piece.text for piece in pieces]
        if any(piece.document and piece.document.prompt_characters for piece in pieces):
            return list(self.backend.encode_batch(texts, add_special_tokens=False))
        # The fast variant tracks no offsets, which only prompts need.
        if self.seen is None:
            return [each.ids for each in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        found = self.seen.encode(texts)
        others = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        encoded = iter(self.backend.encode_batch_fast(others, add_special_tokens=False))
        return [next(encoded).ids if ids is None else ids for ids in found]

    def ids(self, pieces: list[Piece], encodings: list[Any]) -> Iterator[tuple[Piece, Any, int]]:
        """Each piece with its token ids, a list or an array, and how many of its document's are no targets.

        `before` and `after` are not among them.
        """
        if self.backend is None:
            yield from ((piece, ids, 0) for piece, ids in zip(pieces, encodings, strict=True))
            return
        for piece, encoding in zip(pieces, encodings, strict=True):
            ids = encoding.ids if hasattr(encoding, "offsets") else encoding
            length = 0
            if piece.document and (prompt := piece.document.prompt_characters):
                ends = (place for place, (_, end) in enumerate(encoding.offsets) if end > prompt)
                length = next(ends, len(ids)) + len(self.before)
            yield piece, ids, length

    def _encode_slowly(self, piece: Piece) -> list[int]:
        """For tokenizers written in Python: they say no offsets, and are given whole documents."""
        if piece.document and piece.document.prompt_characters:
            raise DataError(
                f"the tokenizer {type(self.tokenizer).__name__} cannot tell prompts from completions",
                hint="use a fast tokenizer, one with a tokenizer.json",
            )
        ids: list[int] = self.tokenizer(piece.text, split_special_tokens=True, verbose=False)["input_ids"]
        return ids if self.end_id is None or ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def pieces(self, document: Document) -> Iterator[Piece]:
        """The document, in pieces of PIECE_CHARACTERS to twice as many if it is long."""
        text, start = document.text, 0
        if self.backend is not None and not document.prompt_characters:
            while len(text) - start > 2 * PIECE_CHARACTERS:
                border = _border(text, start, self.backend)
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
