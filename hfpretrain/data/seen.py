"""Words that were tokenised before are not tokenised again: most of a text is few words, many times.

A text is cut before white space, where the tokenizer's own rules end a word, so that its tokens are those of its words,
one after another. For which tokenizers and texts that holds is decided by what they are made of, never by trying.
"""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

MOST_WORDS = 100_000
"""As many are remembered, about 30 MB; then it begins anew."""
LONGEST_WORD = 32
"""Characters. Texts of longer words on average, such as Chinese, have few of them twice."""

# GPT-2's words (Radford et al. 2019), as tokenizers' ByteLevel has them: a space begins the word after it.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# With the white space before each, and what there is at the end; other white space would go with some of these.
_CUT = re.compile(r"[ \t\n\r]*[^ \t\n\r]+|[ \t\n\r]+")
_OTHER_SPACE = re.compile(r"[^\S \t\n\r]")


def cuts_at_spaces(specification: str) -> bool:
    """Whether to this tokenizer.json no word goes on from a visible character to white space.

    What comes before the words (the normalizer) has to look at single characters, and nothing may cross their borders.
    """
    content = json.loads(specification)
    normalizer, splitter, model = content["normalizer"], content["pre_tokenizer"], content["model"]
    if normalizer and normalizer["type"] not in ("BertNormalizer", "Lowercase"):
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


class SeenWords:
    """The token ids of the words of a tokenizer that cuts at spaces."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.ids: dict[str, list[int]] = {}
        """By the word, with the white space before it."""

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The token ids of each text; None where it cannot be cut, or has few words for its length."""
        cut = [self._words(text) for text in texts]
        words: set[str] = set().union(*(each for each in cut if each))
        if len(self.ids) + len(words) > MOST_WORDS:
            self.ids.clear()
        unseen = [word for word in words if word not in self.ids]
        encodings = self.backend.encode_batch_fast(unseen, add_special_tokens=False)
        self.ids.update((word, encoding.ids) for word, encoding in zip(unseen, encodings, strict=True))
        known = self.ids.__getitem__
        return [None if each is None else list(itertools.chain.from_iterable(map(known, each))) for each in cut]

    @staticmethod
    def _words(text: str) -> list[str] | None:
        if _OTHER_SPACE.search(text):
            return None
        words: list[str] = _CUT.findall(text)
        return words if len(text) <= LONGEST_WORD * len(words) else None
