"""What no recipe holds, under whatever key: secrets, signs that cannot be shown, and nesting without end."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hfpretrain.secrets import holds_secret, is_secret_key, without_secrets

Keys = tuple[str | int, ...]
"""The way to a value: ("data", "sources", 0, "weight")."""

DEEPEST = 60
"""Levels of mappings and lists in each other; the libraries that read and write them recurse."""
_LONGEST_KEY = 60
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SECRET = "a recipe holds no secrets: take it out and set the library's own variable, such as HF_TOKEN"


def cleaned(value: Any, wrong: Callable[[Keys, str], object], keys: Keys = ()) -> Any:
    """A copy with null for what no recipe may hold; each such place is told to `wrong`, never with its content."""
    if len(keys) > DEEPEST:
        wrong(keys[:3], "it is nested too deeply")
        return None
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            problem = text_problem(str(key))
            here = (*keys, key)
            if problem is None and is_secret_key(str(key)) and isinstance(item, str | int) and item is not True:
                problem = _SECRET if item else None
            if problem:
                wrong(here, problem)
            else:
                kept[key] = cleaned(item, wrong, here)
        return kept
    if isinstance(value, list | tuple):
        return [cleaned(item, wrong, (*keys, index)) for index, item in enumerate(value)]
    if isinstance(value, str) and (problem := text_problem(value)):
        wrong(keys, problem)
        return None
    return value


def text_problem(text: str) -> str | None:
    """Why no recipe may hold the text, or None."""
    if found := _CONTROL.search(text):
        return f"holds the control character {found[0]!r}; remove it"
    if found := _SURROGATE.search(text):
        return f"holds half of a surrogate pair, {found[0]!r}; write the whole character"
    return _SECRET if holds_secret(text) else None


def dotted(keys: Keys) -> str:
    """How errors and overrides spell a way to a value: data.sources.0.weight. Long keys are cut, secrets hidden."""
    parts = [without_secrets(str(key)) for key in keys]
    return ".".join(part if len(part) <= _LONGEST_KEY else part[: _LONGEST_KEY - 3] + "..." for part in parts)


def printable(text: str) -> str:
    """The text on one line, with escapes such as \\x1b for what a terminal would obey or cannot show."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)
