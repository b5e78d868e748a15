"""Words that were tokenised before are not tokenised again: most of a text is few words, many times.

A text is cut before white space, where the tokenizer's own rules end a word, so that its tokens are those of its words,
one after another. For which tokenizers and texts that holds is decided by what they are made of, never by trying.
"""

import itertools
import json
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

MOST_WORDS = 200_000
"""As many are remembered, some 20 MB; then it begins anew."""
LONGEST_WORD = 32
"""Bytes. Texts of longer words on average, such as Chinese, have few of them twice."""

# GPT-2's words (Radford et al. 2019), as tokenizers' ByteLevel has them: a space begins the word after it.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# A word goes with the white space before it; other white space than this would go with some of these, too.
_SPACE = b" \t\n\r"
_OTHER_SPACE = [chr(code) for code in range(0x3001) if chr(code).isspace() and chr(code).encode() not in _SPACE]
_IS_SPACE = np.isin(np.arange(256), list(_SPACE))
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse

IntArray: TypeAlias = npt.NDArray[np.int64]
HashArray: TypeAlias = npt.NDArray[np.uint64]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
TokenArray: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def cuts_at_spaces(specification: str) -> bool:
    """Whether to this tokenizer.json no word goes on from a visible character to white space.

    What comes before the words (the normalizer) has to look at single characters, and nothing may cross their borders.
    """
    content = json.loads(specification)
    normalizer, splitter, model = content["normalizer"], content["pre_tokenizer"], content["model"]
    kind = normalizer["type"] if normalizer else None
    # BERT's drops characters between spaces, which only its own splitter does not see.
    bert = splitter is not None and splitter["type"] == "BertPreTokenizer"
    if kind not in (None, "Lowercase") and not (kind == "BertNormalizer" and bert):
        return False
    if model["type"] not in ("BPE", "WordPiece", "Unigram") or model.get("dropout"):
        return False
    if any(not token["special"] for token in content["added_tokens"]):  # they are looked for across words
        return False
    return splitter is not None and _splits_at_spaces(splitter)


def _splits_at_spaces(splitter: dict[str, Any]) -> bool:
    if splitter["type"] == "Sequence":
        first, *others = splitter["pretokenizers"]
        inside = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
        return _splits_at_spaces(first) and all(each == inside for each in others)
    if splitter["type"] == "Split":
        rest = {key: splitter[key] for key in ("pattern", "behavior", "invert")}
        return rest == {"pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    if splitter["type"] == "ByteLevel":
        return bool(splitter["use_regex"]) and not splitter["add_prefix_space"]
    return bool(splitter["type"] == "BertPreTokenizer")


class Seen(NamedTuple):
    """The texts of a batch that were cut into words."""

    cut: BoolArray
    """[texts of the batch]: which these are."""
    tokens: TokenArray
    """Of the texts that were cut, one after another."""
    lengths: IntArray
    """[texts that were cut]: tokens of each."""
    words: IntArray
    """[texts that were cut]: between white space."""


class SeenWords:
    """The token ids of the words of a tokenizer that cuts at spaces.

    The words of many texts are looked up at once: by a hash, computed for all of them together, and then compared byte
    for byte, so that a hash which two words share costs time and changes nothing.
    """

    def __init__(self, backend: Tokenizer, dtype: npt.DTypeLike = np.uint32) -> None:
        self.backend, self.dtype = backend, dtype
        self._powers = self._inverses = np.ones(1, dtype=np.uint64)
        self._forget()

    def _forget(self) -> None:
        self._spelled = self._tokens = np.zeros((0, 2), dtype=np.int64)
        """[words, 2] each: where a word begins in `_spelling`, and its tokens in `_ids`, and how many they are."""
        self._spelling = np.zeros(0, dtype=np.uint8)
        self._ids: TokenArray = np.zeros(0, dtype=self.dtype)
        self._hashes = np.zeros(0, dtype=np.uint64)
        """[at most words], sorted, with the number of the word that has it in `_with_hash`."""
        self._with_hash = np.zeros(0, dtype=np.int64)

    def encode(self, texts: list[bytes]) -> "Seen | None":
        """The token ids of the texts that can be cut into words and have many for their length; None: there are none.

        The texts are UTF-8.
        """
        cut = _without_other_space(texts)
        if cut.any():
            found = texts if cut.all() else list(itertools.compress(texts, cut))
            data, starts, firsts = _cut(found)
            words = np.diff(firsts, append=len(starts))
            many = np.fromiter(map(len, found), dtype=np.int64, count=len(found)) <= LONGEST_WORD * words
            if not many.all():
                cut[np.flatnonzero(cut)[~many]] = False
                if not many.any():
                    return None
                data, starts, firsts = _cut(list(itertools.compress(texts, cut)))
            return self._encode(cut, data, starts, firsts)
        return None

    def _encode(self, cut: BoolArray, data: ByteArray, starts: IntArray, firsts: IntArray) -> "Seen":
        if len(self._spelled) > MOST_WORDS:
            self._forget()
        words = self._look_up(data, starts)  # which may replace what is known
        places, lengths = self._tokens[words].T
        last = np.append(starts[firsts[1:]], len(data)) - 1
        return Seen(
            cut=cut,
            tokens=self._ids[ranges(places, lengths)],
            lengths=np.add.reduceat(lengths, firsts),
            words=np.diff(firsts, append=len(starts)) - _IS_SPACE[data[last]],
        )

    def _look_up(self, data: ByteArray, starts: IntArray) -> IntArray:
        """The number of each word of a text; one that was not known is tokenised, and known from now on."""
        lengths = np.diff(starts, append=len(data))
        hashes = self._hash(data, starts)
        words = np.zeros(len(starts), dtype=np.int64)
        known = np.zeros(len(starts), dtype=np.bool_)
        if len(self._hashes):
            places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            words = self._with_hash[places]
            known = (self._hashes[places] == hashes) & (self._spelled[words, 1] == lengths)
            candidates = np.flatnonzero(known)
            here = data if known.all() else data[np.repeat(known, lengths)]
            there = self._spelling[ranges(self._spelled[words[candidates], 0], lengths[candidates])]
            ends = np.cumsum(lengths[candidates])
            wrong = np.searchsorted(ends, np.flatnonzero(here != there), side="right")
            known[candidates[wrong]] = False
        unknown = np.flatnonzero(~known)
        if len(unknown):
            numbers: dict[bytes, int] = {}
            for place in unknown.tolist():
                spelled = data[starts[place] : starts[place] + lengths[place]].tobytes()
                words[place] = numbers.setdefault(spelled, len(self._spelled) + len(numbers))
            self._learn(list(numbers), hashes[unknown], words[unknown])
        return words

    def _learn(self, spelled: list[bytes], hashes: HashArray, words: IntArray) -> None:
        """Tokenises new words, the next by number, and remembers them; `hashes` are those of `words`, by number."""
        encodings = self.backend.encode_batch_fast([each.decode() for each in spelled], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        self._spelled = _with_more(self._spelled, len(self._spelling), list(map(len, spelled)))
        self._tokens = _with_more(self._tokens, len(self._ids), list(map(len, ids)))
        self._spelling = np.concatenate([self._spelling, np.frombuffer(b"".join(spelled), dtype=np.uint8)])
        self._ids = np.concatenate([self._ids, np.array([each for some in ids for each in some], dtype=self.dtype)])
        fresh, first = np.unique(hashes, return_index=True)
        new = ~np.isin(fresh, self._hashes)
        places = np.searchsorted(self._hashes, fresh[new])
        self._hashes = np.insert(self._hashes, places, fresh[new])
        self._with_hash = np.insert(self._with_hash, places, words[first[new]])

    def _hash(self, data: ByteArray, starts: IntArray) -> HashArray:
        """A hash of each word of a text: its bytes as the coefficients of a polynomial, modulo 2^64."""
        if len(data) >= len(self._powers):
            size = 2 * len(data) + 1
            for name, base in (("_powers", _MULTIPLIER), ("_inverses", pow(_MULTIPLIER, -1, 2**64))):
                bases = np.full(size, base, dtype=np.uint64)
                bases[0] = 1
                setattr(self, name, np.multiply.accumulate(bases))
        sums = np.zeros(len(data) + 1, dtype=np.uint64)
        np.cumsum((data + np.uint64(1)) * self._powers[: len(data)], out=sums[1:])
        ends = np.append(starts[1:], len(data))
        return np.asarray((sums[ends] - sums[starts]) * self._inverses[starts], dtype=np.uint64)


def _without_other_space(texts: list[bytes]) -> BoolArray:
    """Which texts are not empty and have no white space but that which words go with."""
    if all(texts) and not _other_space(b"".join(texts)):
        return np.ones(len(texts), dtype=np.bool_)
    return np.array([bool(text) and not _other_space(text) for text in texts], dtype=np.bool_)


def _other_space(text: bytes) -> bool:
    characters = text.decode()  # in which a character is found faster than its bytes
    return any(each in characters for each in _OTHER_SPACE)


def _cut(texts: list[bytes]) -> tuple[ByteArray, IntArray, IntArray]:
    """All texts as one, where each of its words starts, and which word is the first of each text.

    The white space at the end of a text is a word of its own.
    """
    data = np.frombuffer(b"".join(texts), dtype=np.uint8)
    texts_at = np.cumsum([0, *map(len, texts)])[:-1]
    space = _IS_SPACE[data]
    begins = space.copy()
    begins[1:] &= ~space[:-1]
    begins[texts_at] = True
    starts = np.flatnonzero(begins)
    return data, starts, np.searchsorted(starts, texts_at)


def ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """The places of ranges, one after another: starts[0], starts[0] + 1, ..., starts[1], ..."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _with_more(ranges: IntArray, start: int, lengths: list[int]) -> IntArray:
    """Ranges [ranges, 2] of starts and lengths, and more that follow one another from `start` on."""
    more = np.array(lengths, dtype=np.int64)
    return np.concatenate([ranges, np.stack([start + np.cumsum(more) - more, more], axis=1)])
