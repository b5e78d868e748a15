"""Which tokens a masked language model has to guess: how many, and single tokens, whole words or spans.

However they are chosen, each token is a target with exactly the masking rate as its probability. All choices for a row
come from its own seed and its own tokens, so that they do not depend on how a batch is cut.
"""

import functools
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.blocks import BoolArray, IntArray
from hfpretrain.errors import ModelError
from hfpretrain.recipe import Masking, Ramp

WORD_SPREAD = 8
"""The mean square of a word's length in tokens over its mean, at most: what the number of targets in whole words
varies by, against that of single tokens. English in bytes has about 6."""


def rate_of(masking: Masking, step: int, steps: int | None) -> float:
    """The masking rate in a step of `steps`."""
    if not isinstance(masking.rate, Ramp):
        return masking.rate
    assert steps is not None, "the recipe allows no rate that moves over a run of unknown length"
    done = min(1.0, step / max(1, steps - 1))
    return masking.rate.from_ + done * (masking.rate.to - masking.rate.from_)


def highest_rate(masking: Masking) -> float:
    """The masking rate, or the highest of one that moves."""
    return max(masking.rate.from_, masking.rate.to) if isinstance(masking.rate, Ramp) else masking.rate


def most_targets(masking: Masking, rate: float, positions: int) -> int:
    """A number of targets at that rate that so many positions very rarely exceed: six deviations above most."""
    spread = {"token": 1, "word": WORD_SPREAD, "span": 2 * masking.mean_span - 1}[masking.unit]
    return min(positions, int(positions * rate + 6 * (positions * rate * (1 - rate) * spread) ** 0.5))


@dataclass(frozen=True)
class WordBorders:
    """What each token of a vocabulary, by its id, says about the word that it stands in.

    Two neighbours are of one word where the first leaves it open and the second goes on with it.
    """

    goes_on: BoolArray
    leaves_open: BoolArray

    def begins(self, token_ids: IntArray) -> BoolArray:
        """Whether a word begins at each token."""
        begins = ~self.goes_on[token_ids]
        begins[1:] |= ~self.leaves_open[token_ids[:-1]]
        return begins


def choose_words(maskable: BoolArray, begins: BoolArray, rate: float, random: np.random.Generator) -> BoolArray:
    """Whole words, each chosen by itself. `begins` says where one begins; all arrays are [tokens]."""
    word = np.cumsum(begins)
    return (random.random(len(begins) + 1)[word] < rate) & maskable


def choose_spans(
    maskable: BoolArray, begins: BoolArray, rate: float, mean: float, random: np.random.Generator
) -> BoolArray:
    """Spans of geometric length, `mean` tokens on average, with at least one token between two of them.

    As in SpanBERT (Joshi et al. 2020), but that lengths are not cut at 10, and none reaches over what may not be
    masked or over a place where `begins` says so. Whether a token is masked depends on the one before it: after a
    masked one with probability 1 - 1/mean, which makes the lengths geometric, after another one with the probability
    that keeps their share at `rate`, which is at most 1 - 1/mean. At the beginning it is the rate itself.
    """
    begins = begins | ~np.concatenate([[False], maskable[:-1]])
    draw = random.random(len(maskable))
    goes_on, starts = 1 - 1 / mean, rate / (mean * (1 - rate))
    masked = maskable & (draw < np.where(begins, rate, starts))
    left_out = ~maskable | (draw >= np.where(begins, rate, goes_on))
    # What is neither is as the token before it.
    decided = np.maximum.accumulate(np.where(masked | left_out, np.arange(len(draw)), 0))
    return masked[decided]


def word_borders(tokenizer: PreTrainedTokenizerBase) -> WordBorders:
    """Which tokens go on with a word and which leave one open, found once for the whole vocabulary.

    Where tokens carry a mark (## or </w>) it says so. Where they carry spaces, words are runs of letters and digits
    without one; as BERT does, each Chinese character is a word and punctuation none. Raises ModelError if tokens show
    neither.
    """
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    model: dict[str, Any] = json.loads(backend.to_str())["model"] if backend else {}
    tokens = tokenizer.get_vocab()
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    goes_on, leaves_open = np.zeros((2, max(tokens.values()) + 1), dtype=np.bool_)
    if prefix:
        leaves_open[:] = True
        goes_on[[number for token, number in tokens.items() if token.startswith(prefix)]] = True
    elif suffix:
        goes_on[:] = True
        leaves_open[[number for token, number in tokens.items() if not token.endswith(suffix)]] = True
    elif model.get("type") != "WordLevel":  # whose tokens are words
        text_of = _text_of(backend) if backend else None
        if text_of is None:
            raise ModelError(
                f"masking.unit: the tokens of this {type(tokenizer).__name__} do not show where words begin",
                hint="set masking.unit: token or span, or choose another tokenizer",
            )
        for token, number in tokens.items():
            if text := text_of(token):
                # A Chinese character begins with one of these bytes, if it is cut up.
                goes_on[number] = _in_word(text[0]) and not 0xDCE4 <= ord(text[0]) <= 0xDCE9
                leaves_open[number] = _in_word(text[-1])
    special = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    goes_on[special] = leaves_open[special] = False
    return WordBorders(goes_on, leaves_open)


def _text_of(backend: Tokenizer) -> Callable[[str], str] | None:
    """What gives the text of a token with its spaces; None if the tokenizer throws spaces away.

    A byte that is no character by itself becomes one of Unicode's lone surrogates.
    """
    probe = "x y"
    if backend.normalizer:
        probe = backend.normalizer.normalize_str(probe)
    parts = [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(probe)] if backend.pre_tokenizer else [probe]
    space = "".join(parts).partition("x")[2].partition("y")[0]
    if not space:
        return None
    if space != "Ġ":
        return lambda token: _byte_of(token) or token.replace(space, " ")
    codes = _byte_level()
    return lambda token: bytes(codes[char] for char in token if char in codes).decode("utf-8", "surrogateescape")


def _byte_of(token: str) -> str | None:
    """The text of a token that stands for a byte, such as <0x0A>."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)]).decode("utf-8", "surrogateescape")
    return None


@functools.cache
def _byte_level() -> dict[str, int]:
    """The byte that each character of GPT-2's byte-level alphabet stands for: printable ones for themselves, the rest
    in their order for characters from 256 on."""
    themselves = [byte for byte in range(256) if chr(byte) in pre_tokenizers.ByteLevel.alphabet()]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _in_word(character: str) -> bool:
    """Whether a character can stand inside a word: a letter, a digit, an accent or a part of a character."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a character outside ASCII
        return True
    chinese = 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2FA1F
    return not chinese and (character.isalnum() or unicodedata.category(character)[0] == "M")
