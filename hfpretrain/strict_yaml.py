"""YAML without surprises: parsing that keeps every place, and writing that reads back as the same values.

PyYAML follows YAML 1.1: it reads `1e-3` as text, `no` as false, `010` as 8 and `1:30` as 90. Here plain
values mean what YAML 1.2 says (numbers, `true`, `false`, `null`; everything else is text), and anchors,
aliases and tags are refused.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml

from hfpretrain.errors import RecipeError

_PLAIN = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
_TAG = "tag:yaml.org,2002:"

LARGEST, LARGEST_BYTES = "1 MiB", 2**20
"""No recipe is larger, and PyYAML takes a second for each megabyte."""
_DEEPEST = 60
"""Levels of mappings and lists in each other, long before Python gives up."""


class SyntaxProblem(Exception):
    """Text that is not YAML: what is wrong, the line and the column (from 1), and what to do."""

    def __init__(self, problem: str, line: int, column: int, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line, self.column, self.hint = problem, line, column, hint


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", event.start_mark)
        if getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases have no meaning in a recipe", event.start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else."""


for _kind, _pattern, _first in _PLAIN:
    _resolver = (_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), ["" if sign == "\0" else sign for sign in _first])
    _Loader.add_implicit_resolver(*_resolver)
    _Dumper.add_implicit_resolver(*_resolver)


def parse(text: str) -> yaml.Node | None:
    """The node tree of one YAML document, None for an empty one. Raises SyntaxProblem."""
    try:
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line, column = _line_and_column(text, error.position)
        raise SyntaxProblem(f"the character {chr(error.character)!r} is not allowed", line, column) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        words = ", ".join(part for part in (error.context, error.problem) if part)
        raise SyntaxProblem(words, line, column, _hint(words)) from None
    except RecursionError:
        raise SyntaxProblem("it is nested too deeply", 1, 1) from None
    except (ValueError, OverflowError):
        raise SyntaxProblem("an escaped character does not exist", 1, 1) from None
    return node


def scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    """The value of a plain or quoted scalar. Raises ValueError with a sentence for tags and unreadable numbers."""
    kind, text = node.tag.removeprefix(_TAG), str(node.value)
    pattern = next((pattern for name, pattern, _ in _PLAIN if name == kind), None)
    if kind == "str":
        return text
    if pattern is None or not re.fullmatch(pattern, text):
        raise ValueError(tag_problem(node) or f"{text!r} is not what its tag says; write the plain value")
    if kind == "int":
        if len(text) > 1000:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text, 0 if text.startswith(("0x", "0o")) else 10)
    if kind == "float":
        return float(re.sub(r"\.(?=[iInN])", "", text))
    return text.lower() == "true" if kind == "bool" else None


def tag_problem(node: yaml.Node) -> str | None:
    """Why a node's tag is refused, or None for the tags that plain YAML has by itself."""
    known = {"map", "seq", "str", *(kind for kind, _, _ in _PLAIN)}
    if node.tag in {_TAG + kind for kind in known}:
        return None
    tag = node.tag if len(node.tag) <= 60 else f"{node.tag[:57]}..."
    return f"the tag {tag!r} has no meaning in a recipe; write the plain value"


def write(values: dict[str, Any]) -> str:
    """YAML that `parse` reads as the same values, keys in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def read_text(path: str | Path, *, hint: str) -> str:
    """The text of a UTF-8 file. Raises RecipeError; `hint` goes with a file that is not there."""
    try:
        data = _read(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file", hint=hint) from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a directory, not a recipe", hint="give the path of a YAML file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{str(path)!r}: cannot be read: {error}") from None
    if len(data) > LARGEST_BYTES:
        raise RecipeError(f"{path}: larger than {LARGEST}, which no recipe is", hint="name data files in data.sources")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise RecipeError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x})", hint="save the file as UTF-8") from None


def _read(path: str | Path) -> bytes:
    """The bytes of a regular file, LARGEST_BYTES + 1 at most: a device or a pipe could go on for ever."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RecipeError(f"{path}: a pipe or a device, not a recipe", hint="give the path of a YAML file")
        return file.read(LARGEST_BYTES + 1)


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe too, at whose other end is nobody."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def _hint(words: str) -> str | None:
    if "'\\t'" in words:
        return "indent with spaces, not with tabs"
    if "alias" in words or "anchor" in words or "cannot start any token" in words:
        return "put text that begins with a sign such as *, &, % or @ in quotes"
    if "mapping values are not allowed" in words or "could not find expected ':'" in words:
        return "check the indentation and the colons; text that holds a colon and a space goes in quotes"
    return None
