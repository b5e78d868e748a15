"""What encoding makes of a batch of texts, with what a store counts of each; and how it goes through a pipe.

This room and seen.py are all that a process which only encodes needs (worker.py): no torch, no transformers.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from hfpretrain.data.seen import HashArray, IntArray, SeenWords, TokenArray, cuts_at_spaces

LONG = 1_000_000
"""Characters of a text that is large for memory: its words are counted one by one, since a list would be larger."""
_WORD = re.compile(r"\S+")


class Encoded(NamedTuple):
    """The texts of a batch as token ids, without special tokens around them."""

    tokens: TokenArray
    """Of all texts, one after another."""
    lengths: IntArray
    """[texts]: tokens of each."""
    keys: HashArray
    """[texts]: a hash of each, so that equal texts have equal keys."""
    words: IntArray
    """[texts]: between white space."""
    text_lengths: IntArray
    """[texts]: UTF-8 bytes of each."""
    prompt_lengths: IntArray | None = None
    """[texts]: how many of a document's tokens are no targets, special tokens before it included; None: none of any."""

    @staticmethod
    def of(texts: list[bytes], ids: Iterable[Any], dtype: npt.DTypeLike, prompts: IntArray | None = None) -> "Encoded":
        """Of texts and the token ids of each, lists or arrays."""
        arrays = [np.asarray(each, dtype=dtype) for each in ids]
        return Encoded(
            tokens=np.concatenate([np.zeros(0, dtype=dtype), *arrays]),
            lengths=_lengths(arrays),
            keys=_keys(texts),
            words=np.array([count_words(text.decode()) for text in texts], dtype=np.int64),
            text_lengths=_lengths(texts),
            prompt_lengths=prompts,
        )


class TextEncoder:
    """Texts to token ids by the tokenizers library, and faster where words that were seen before are enough."""

    def __init__(self, specification: str, dtype: npt.DTypeLike) -> None:
        """`specification` is a tokenizer.json in which no text can become a special token."""
        self.specification, self.dtype = specification, np.dtype(dtype)
        self.backend = Tokenizer.from_str(specification)
        self.backend.encode_special_tokens = True
        self.seen = SeenWords(self.backend, self.dtype) if cuts_at_spaces(specification) else None

    def encode(self, texts: list[bytes]) -> Encoded:
        """The texts' tokens. They are UTF-8."""
        seen = self.seen.encode(texts) if self.seen else None
        if seen is None:
            return Encoded.of(texts, self._encode_plainly(texts), self.dtype)
        if seen.cut.all():
            return Encoded(seen.tokens, seen.lengths, _keys(texts), seen.words, _lengths(texts))
        cut = iter(np.split(seen.tokens, np.cumsum(seen.lengths)))
        others = iter(self._encode_plainly([text for text, is_cut in zip(texts, seen.cut, strict=True) if not is_cut]))
        return Encoded.of(texts, [next(cut if is_cut else others) for is_cut in seen.cut], self.dtype)

    def _encode_plainly(self, texts: list[bytes]) -> list[list[int]]:
        # The fast variant tracks no offsets, which only prompts need.
        encodings = self.backend.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def count_words(text: str) -> int:
    """How many words, between white space, a text has."""
    return len(text.split()) if len(text) < LONG else sum(1 for _ in _WORD.finditer(text))


def key_of(text: bytes) -> int:
    """The hash of a text by which equal ones are found."""
    return int(_keys([text])[0])


def _keys(texts: list[bytes]) -> HashArray:
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _lengths(items: list[Any]) -> IntArray:
    return np.fromiter(map(len, items), dtype=np.int64, count=len(items))


# ----------------------------------------------------------------------------------------------------------- in a pipe

_NUMBER = np.dtype(np.int64)


def pack_texts(texts: list[bytes]) -> bytes:
    """Texts as `read_texts` reads them: how many, the bytes of each, and all of them."""
    return b"".join([np.array([len(texts)]).tobytes(), _lengths(texts).tobytes(), *texts])


def read_texts(read: Callable[[int], bytes]) -> list[bytes] | None:
    """The texts of the next batch, of a function that reads so many bytes or, at the end, fewer; None at the end."""
    head = read(_NUMBER.itemsize)
    if len(head) < _NUMBER.itemsize:
        return None
    lengths = np.frombuffer(read(int(np.frombuffer(head, dtype=_NUMBER)[0]) * _NUMBER.itemsize), dtype=_NUMBER)
    ends = np.cumsum(lengths)
    size = int(ends[-1]) if len(ends) else 0
    data = read(size)
    if len(data) < size:
        return None
    return [data[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def pack_encoded(encoded: Encoded) -> bytes:
    """A batch without prompts as `take_encoded` takes it: how many texts and tokens, and then the arrays."""
    sizes = np.array([len(encoded.lengths), len(encoded.tokens)])
    arrays = (encoded.tokens, encoded.lengths, encoded.keys, encoded.words, encoded.text_lengths)
    return b"".join([sizes.tobytes(), *(array.tobytes() for array in arrays)])


def take_encoded(received: bytearray, dtype: npt.DTypeLike) -> Encoded | None:
    """Takes a batch away from the beginning of what was received; None while it is not whole."""
    start = 2 * _NUMBER.itemsize
    if len(received) < start:
        return None
    texts, tokens = np.frombuffer(bytes(received[:start]), dtype=_NUMBER).tolist()
    types = [np.dtype(dtype), _NUMBER, np.dtype(np.uint64), _NUMBER, _NUMBER]
    ends = np.cumsum(
        [start, *(kind.itemsize * count for kind, count in zip(types, [tokens, *[texts] * 4], strict=True))]
    )
    if len(received) < ends[-1]:
        return None
    content = bytes(received[: ends[-1]])
    del received[: ends[-1]]
    return Encoded(
        *(np.frombuffer(content[a:b], dtype=kind) for kind, a, b in zip(types, ends, ends[1:], strict=False))
    )
