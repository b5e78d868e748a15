"""Amounts as people write them: `600 steps`, `20M tokens`, `10M words`, `3 epochs`, `1.5 hours`, `5%`; for a whole run
also `20 tokens per parameter` and `1e18 FLOPs`; sizes: `3MB`, and of models `15M`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from hfpretrain.errors import RecipeError, nearest

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
_Unit = Literal["steps", "tokens", "words", "epochs", "seconds", "percent", "tokens per parameter", "FLOPs"]
_WORDS: dict[str, tuple[_Unit, int]] = {
    "step": ("steps", 1),
    "token": ("tokens", 1),
    "word": ("words", 1),
    "epoch": ("epochs", 1),
    "second": ("seconds", 1),
    "minute": ("seconds", 60),
    "hour": ("seconds", 3600),
    "day": ("seconds", 86400),
    "tokens per parameter": ("tokens per parameter", 1),
    "flop": ("FLOPs", 1),
}
OF_THE_MODEL = ("tokens per parameter", "FLOPs")
"""Units that are so many tokens only when the model is known."""
_UNIT = r"[A-Za-z]+(?:\s+per\s+[A-Za-z]+)?"
_SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LARGEST, _MOST_FLOPS = 10**18, 10**30
_EXAMPLES = "600 steps, 20M tokens, 3 epochs, 10 minutes or 5%"

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]{1,9})?)\s*(kB|KB|MB|GB)")
_PARAMETERS = re.compile(r"([0-9]+(?:\.[0-9]{1,9})?)\s*([kKMBT]?)")
_BYTES = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Amount:
    """So much of something, as people say it: `600 steps`, `20M tokens`, `3 epochs`, `10 minutes`, `5%`."""

    value: float
    unit: _Unit

    @staticmethod
    def steps(value: float) -> Amount:
        return Amount(value, "steps")

    @staticmethod
    def percent(value: float) -> Amount:
        return Amount(value, "percent")

    @staticmethod
    def parse(value: str | float) -> Amount:
        """The amount that `value` says; a plain integer is steps. Raises RecipeError with one sentence."""
        text = str(value).strip()
        match = re.fullmatch(rf"({_NUMBER})(?:([kKMBT]?)\s+({_UNIT})|\s*(%)|)", text.removesuffix(".0"))
        if not match:
            if re.match(rf"-{_NUMBER}", text):
                raise RecipeError(f"an amount cannot be negative: {_shown(text)}")
            raise RecipeError(f"{_shown(text)} is not an amount; write for example {_EXAMPLES}")
        number, scale, word, percent = match.groups()
        exact = Decimal(number) * _SCALES[scale or ""]
        singular = " ".join((word or "steps").lower().split()).removesuffix("s")
        singular = singular.replace("token per", "tokens per")
        if exact > (_MOST_FLOPS if singular == "flop" else _LARGEST):
            raise RecipeError(f"{_shown(text)} is too much")
        if percent:
            if exact > 100:
                raise RecipeError(f"{_shown(text)} is more than 100%")
            return Amount.percent(_whole_or_float(exact))
        if singular not in _WORDS:
            near = nearest(word.lower(), [known if " " in known else f"{known}s" for known in _WORDS])
            raise RecipeError(
                f"{_shown(text)}: unknown unit {_shown(word)}; "
                + (f"did you mean {near}?" if near else f"write for example {_EXAMPLES}")
            )
        unit, factor = _WORDS[singular]
        if unit in ("steps", "tokens", "words") and exact != int(exact):
            raise RecipeError(f"{_shown(text)}: {unit} are whole numbers")
        return Amount(_whole_or_float(exact * factor), unit)

    def __str__(self) -> str:
        """The shortest spelling that `parse` reads as this very amount."""
        *shorter, plain = self._spellings()
        return next((text for text in shorter if len(text.split()[0]) <= 6 and Amount.parse(text) == self), plain)

    def _spellings(self) -> Iterator[str]:
        if self.unit in ("tokens", "words"):
            for scale in "TBMk":
                if self.value >= _SCALES[scale]:
                    yield f"{_number(self.value / _SCALES[scale])}{scale} {self.unit}"
        if self.unit == "seconds":
            for word in ("day", "hour", "minute"):
                count = self.value / _WORDS[word][1]
                if count >= 1:
                    yield f"{_number(count)} {word}{'' if count == 1 else 's'}"
        if self.unit == "FLOPs":
            yield f"{self.value:g} FLOPs".replace("e+", "e")
        if self.unit == "percent":
            yield f"{_number(self.value)}%"
        else:
            yield f"{_number(self.value)} {self.unit.removesuffix('s') if self.value == 1 else self.unit}"


def amount_schema() -> dict[str, object]:
    """The JSON Schema of an amount."""
    words = "|".join(word for word in _WORDS if word != "flop") + "|FLOP"
    return {
        "description": f"An amount: {_EXAMPLES}. A plain integer is steps.",
        "type": ["string", "integer"],
        "minimum": 0,
        "pattern": rf"^\s*{_NUMBER}([kKMBT]?\s+({words})s?|\s*%|)\s*$",
        "examples": ["600 steps", "20M tokens", "3 epochs", "10 minutes", "1.5 hours", "5%", 600],
    }


def size_in_bytes(text: str) -> int:
    """Bytes that `500kB`, `3MB` or `1GB` say (powers of ten). Raises RecipeError with one sentence."""
    match = _SIZE.fullmatch(text.strip())
    size = int(Decimal(match[1]) * _BYTES[match[2]]) if match else 0
    if not 0 < size <= _LARGEST:
        raise RecipeError(f"{_shown(text)} is not a size; write for example 500kB, 3MB or 1GB")
    return size


def span(seconds: float) -> str:
    """A time as people read it: `45 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def parameters_of(text: str | int) -> int:
    """Parameters that `15M`, `0.2M`, `1.1B` or a whole number say. Raises RecipeError with one sentence."""
    match = _PARAMETERS.fullmatch(str(text).strip())
    number = Decimal(match[1]) * _SCALES[match[2]] if match else Decimal(0)
    if not 1000 <= number <= 10**13 or number != int(number):
        raise RecipeError(f"{_shown(str(text))} is not a number of parameters; write for example 350k, 15M or 1.1B")
    return int(number)


def count(number: float) -> str:
    """A number with three digits and a unit: `950`, `12.3k`, `4.56M`, `1.2B`."""
    number = float(f"{number:.3g}")  # 999,999 are 1M
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _whole_or_float(exact: Decimal) -> float:
    return int(exact) if exact == int(exact) else float(exact)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
