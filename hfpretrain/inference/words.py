"""Words and tokens: what a word is, what tokens look like as text, and how many of them a model takes."""

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from hfpretrain.errors import ModelError, UserError

# A word, in the alphabet of `shape_of`: letters, joined by single hyphens or apostrophes.
WORD = re.compile(r"w+(?:jw+)*")
# What has to follow a word before it is known to be whole: "don'" may still become "don't".
WORD_END = re.compile(r"j? |jj")


@dataclass(frozen=True)
class Prediction:
    """A token or word that the model proposes."""

    token: str
    """Its text without spaces around it; a wordpiece that goes on with a word keeps its mark, as in `##ing`."""
    probability: float
    """Between 0 and 1."""
    sentence: str
    """The given text with it put in."""


class TokenText:
    """What tokens look like as text, for one tokenizer and a model with `rows` rows of vocabulary."""

    def __init__(self, tokenizer: Any, rows: int) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        marked = (id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self.special = sorted({*tokenizer.all_special_ids, *marked})
        ordinary = set(tokenizer.get_vocab().values()) - set(self.special)
        self.never = [token for token in range(rows) if token not in ordinary]
        # Some whole word or letter: what a token looks like is seen in the text after it.
        self.anchor = next(([token] for token in sorted(ordinary) if self.decode([token]).strip().isalpha()), [])

    def check(self, ids: list[int], name: str) -> None:
        """Raises ModelError for tokens that the model has no row for."""
        if max(ids) >= self.rows:
            raise ModelError(
                f"the tokenizer of {name} does not fit the model: token {max(ids)} is beyond its {self.rows} rows"
            )

    def decode(self, ids: list[int]) -> str:
        """The text of the ordinary tokens among `ids`."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def after(self, before: list[int], ids: list[int]) -> str:
        """The text that `ids` add behind `before`, with the space between the two if there is one."""
        tail = before[-8:]
        return self.decode(tail + ids)[len(self.decode(tail)) :]

    def piece(self, token: int) -> str:
        """The text of a token behind a word: " brown" for a new word, "ing" for one that goes on."""
        return self.after(self.anchor, [token])

    @functools.cached_property
    def pieces(self) -> list[str]:
        """The piece of every row; "" for those that are never predicted."""
        never, known = set(self.never), len(self.decode(self.anchor))
        return ["" if row in never else self.decode([*self.anchor, row])[known:] for row in range(self.rows)]

    def name(self, token: int) -> str:
        """The text of a token by itself, without spaces unless it is nothing else."""
        text = self.decode([token])
        return text.strip() or text


def shape_of(text: str) -> str:
    """A letter for each character: w(ord), j(oiner inside a word), ? (part of a character), or a space for the rest."""

    def kind(character: str) -> str:
        if character in "'’-":
            return "j"
        if character == "\N{REPLACEMENT CHARACTER}":
            return "?"
        # Vowel signs and accents are marks, not letters, but belong to words all the same.
        is_word = character.isalnum() or character in "_\u200c\u200d" or unicodedata.category(character)[0] == "M"
        return "w" if is_word else " "

    return "".join(map(kind, text))


def ends_a_word(text: str) -> bool:
    """Whether a word is whole when `text` stands behind it."""
    return bool(WORD_END.match(shape_of(text)))


def first_word(text: str) -> tuple[str, str]:
    """The word or punctuation mark that `text` begins with, and what follows; two empty texts if none has begun."""
    text = text.lstrip()
    shape = shape_of(text)
    if not shape or shape[0] == "?":
        return "", ""
    found = WORD.match(shape)
    end = found.end() if found else 1
    return text[:end], text[end:]


def rows_of(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def positions_of(model: Any) -> int | None:
    """How many tokens the model takes at most, or None if it does not say."""
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_at_least_one(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name} is {count}; it is at least 1")
