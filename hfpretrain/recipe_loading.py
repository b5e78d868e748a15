"""From YAML to frozen dataclasses: all errors at once, each with its file, line and dotted key.

A `Draft` holds the plain values, where each came from (a line or an override) and what is wrong so far;
`Draft.build` makes the dataclass. Knows no recipe: the types, ranges, aliases and docstrings of the
dataclass fields say what is right, here and in the JSON Schema.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from hfpretrain import strict_yaml
from hfpretrain.amounts import Amount
from hfpretrain.errors import RecipeError
from hfpretrain.recipe_contents import DEEPEST, Keys, cleaned, dotted, printable
from hfpretrain.recipe_types import advice, alias, choice, fits, hints_of, options_of, shown, unknown_key, unwrapped
from hfpretrain.secrets import without_secrets, without_values

_AFTER_ALL_LINES = 2**62
_LARGEST_NUMBER = 2**63 - 1
_MOST_PROBLEMS, _LONGEST_SENTENCE = 50, 1000
_WRONG: Any = object()


@dataclasses.dataclass
class Draft:
    """Plain values on their way to a dataclass `root`. `label` names the file in errors, "" without one."""

    root: type
    label: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[Keys, tuple[int, str]] = dataclasses.field(default_factory=dict)
    problems: list[tuple[Keys, str]] = dataclasses.field(default_factory=list)
    doubted: set[Keys] = dataclasses.field(default_factory=set)
    """Every key at or above a problem."""
    at_fault: set[Keys] = dataclasses.field(default_factory=set)
    """Every key that has a problem itself."""
    broken_overrides: list[str] = dataclasses.field(default_factory=list)

    @staticmethod
    def from_file(root: type, path: str | Path) -> Draft:
        """Reads a YAML file. Raises RecipeError for one that is unreadable, no YAML or no mapping."""
        shipped = "`hfpretrain recipes` lists the shipped ones"
        text = strict_yaml.read_text(path, hint=shipped)
        try:
            node = strict_yaml.parse(text)
        except strict_yaml.SyntaxProblem as error:
            where = f"{path}:{error.line}:{error.column}"
            raise RecipeError(_sentence(f"{where}: not valid YAML: {error}"), hint=error.hint) from None
        draft = Draft(root, str(path))
        values = draft._plain(node, ()) if node else None
        if values is None:
            raise RecipeError(f"{path}: the file is empty; a recipe needs `objective` and `data`", hint=shipped)
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: the file holds {shown(values)}; a recipe is a mapping of `key: value` lines")
        draft.values = values
        return draft

    @staticmethod
    def from_mapping(root: type, mapping: dict[str, Any]) -> Draft:
        """Takes a mapping from Python, which stays as it is."""
        if not isinstance(mapping, dict):
            raise RecipeError(f"a recipe is a mapping, not {shown(mapping)}")
        try:
            return Draft(root, values=copy.deepcopy(mapping))
        except RecursionError:
            raise RecipeError("the mapping is nested too deeply") from None

    def override(self, text: str) -> None:
        """Applies `KEY=VALUE`: dotted keys and list indices on the left, YAML on the right."""
        key, equals, written = text.partition("=")
        parts = key.strip().split(".")
        said = without_values(text)
        label = f"override {said if len(said) <= 80 else said[:77] + '...'}"
        if not equals or not all(parts):
            self.broken_overrides.append(f"{label}: write KEY=VALUE, for example train.duration=50")
            return
        if len(parts) > DEEPEST:
            self.broken_overrides.append(f"{label}: the key has {len(parts)} parts, more than any")
            return
        if len(text) > strict_yaml.LARGEST_BYTES:
            self.broken_overrides.append(f"{label}: it is larger than {strict_yaml.LARGEST}")
            return
        try:
            node = strict_yaml.parse(written)
            self._set(parts, node, (_AFTER_ALL_LINES, label))
        except strict_yaml.SyntaxProblem as error:
            then = f"; {error.hint}" if error.hint else ""
            self.broken_overrides.append(f"{label}: the value is not valid YAML: {error}{then}")
        except LookupError as error:
            self.broken_overrides.append(f"{label}: {error.args[0]}")

    def _set(self, parts: list[str], node: yaml.Node | None, origin: tuple[int, str]) -> None:
        """Puts a value where the parts lead, opening sections on the way. LookupError if they lead nowhere."""
        keys: Keys = ()
        container: Any = self.values
        for position, part in enumerate(parts, start=1):
            step: str | int = part
            if isinstance(container, list):
                if not re.fullmatch(r"[0-9]{1,9}", part) or int(part) >= len(container):
                    raise LookupError(f"{dotted(keys)} has no item {part} (it holds {len(container)}, counted from 0)")
                step = int(part)
            elif not isinstance(container, dict):
                raise LookupError(f"{dotted(keys)} is {shown(container)} and has no keys")
            keys = (*keys, step)
            if position == len(parts):
                self.origins = {at: of for at, of in self.origins.items() if at[: len(keys)] != keys}
                self.origins[keys] = origin
                container[step] = self._plain(node, keys, origin) if node else None
            elif isinstance(container, dict) and container.get(part) is None:
                container[part] = {}
                self.origins[keys] = origin
            container = container[step]

    def wrong(self, keys: Keys, message: str) -> Any:
        """Notes an error at a key."""
        self.problems.append((keys, message))
        self.at_fault.add(keys)
        self.doubted.update(keys[:length] for length in range(len(keys) + 1))
        return _WRONG

    def doubtful(self, keys: Keys) -> bool:
        """Whether an error is noted at this key, above it or below it."""
        return keys in self.doubted or any(keys[:length] in self.at_fault for length in range(len(keys)))

    def given(self, keys: Keys) -> bool:
        """Whether there is a value at this key; null and empty collections are none."""
        value: Any = self.values
        for key in keys:
            try:
                value = value[key]
            except (LookupError, TypeError):
                return False
        return value is not None and value != {} and value != []

    def raise_problems(self) -> None:
        """Raises one RecipeError with a line per error, in the order of the file, overrides last."""
        lines = [(*self._origin(keys), f"{dotted(keys)}: {message}") for keys, message in self.problems]
        lines.sort(key=lambda line: line[0])
        found = [f"{where}: {what}" if where else what for _, where, what in lines] + self.broken_overrides
        sentences = list(dict.fromkeys(_sentence(sentence) for sentence in found))
        if len(sentences) > _MOST_PROBLEMS:
            more = f"and {len(sentences) - _MOST_PROBLEMS} more errors"
            sentences[_MOST_PROBLEMS:] = [f"{self.label}: {more}" if self.label else more]
        if sentences:
            raise RecipeError("\n".join(sentences))

    def _origin(self, keys: Keys) -> tuple[int, str]:
        known = (self.origins[keys[:length]] for length in range(len(keys), 0, -1) if keys[:length] in self.origins)
        return next(known, (0, self.label))

    def _plain(self, node: yaml.Node, keys: Keys, origin: tuple[int, str] | None = None) -> Any:
        """The Python value of a YAML node; notes where each key stands and what is written twice."""
        if isinstance(node, yaml.ScalarNode):
            try:
                return strict_yaml.scalar(node)
            except ValueError as error:
                self.wrong(keys, str(error))
                return None
        if problem := strict_yaml.tag_problem(node):
            self.wrong(keys, problem)
            return None
        if not isinstance(node, yaml.MappingNode):
            for index, child in enumerate(node.value):
                self._place((*keys, index), child, origin)
            return [self._plain(child, (*keys, index), origin) for index, child in enumerate(node.value)]
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._place((*keys, "?"), key_node, origin)
                self.wrong((*keys, "?"), "a key is one word, not a list or a mapping")
                continue
            here = (*keys, str(key_node.value))
            if problem := strict_yaml.tag_problem(key_node):
                self._place(here, key_node, origin)
                self.wrong(here, problem)
                continue
            first = self.origins[here] if here[-1] in values else None
            self._place(here, key_node, origin)
            if first:
                self.wrong(here, "the key is there twice" + ("" if origin else f", first in line {first[0]}"))
            values[str(key_node.value)] = self._plain(child, here, origin)
        return values

    def _place(self, keys: Keys, node: yaml.Node, origin: tuple[int, str] | None) -> None:
        line = node.start_mark.line + 1
        self.origins[keys] = origin or (line, f"{self.label}:{line}")

    # From plain values to dataclasses

    def build(self) -> Any:
        """The dataclass that the values say. A field that is wrong is noted and gets its default, or None."""
        self.values = cleaned(self.values, self.wrong)
        return self._mapping(self.values, self.root, ())

    def _mapping(self, values: dict[str, Any], kind: type, keys: Keys) -> Any:
        fields = {alias(field): field for field in dataclasses.fields(kind)}
        for key in values:
            if key not in fields:
                self.wrong((*keys, str(key)), unknown_key(str(key), fields, self.root))
        built: dict[str, Any] = {}
        for key, field in fields.items():
            here, hint, value = (*keys, key), hints_of(kind)[field.name], values.get(key)
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if value is None and dataclasses.is_dataclass(hint) and hint is not Amount:
                value = {}
            if value is None or value == "" == field.default:
                if required:
                    self.wrong(here, f"missing; it is {choice(hint)}")
                    built[field.name] = None
                continue
            read = self._read(value, hint, here)
            if read is not _WRONG:
                built[field.name] = read
            elif required:
                built[field.name] = typing.cast(type, hint)() if dataclasses.is_dataclass(hint) else None
        return kind(**built)

    def _read(self, value: Any, hint: Any, keys: Keys) -> Any:
        """`value` as what the type says, or _WRONG with the error noted."""
        option = next((option for option in options_of(hint) if fits(option, value)), None)
        if option is None:
            return self.wrong(keys, f"expects {choice(hint)}, not {shown(value)}{advice(value, hint)}")
        kind, limits = unwrapped(option)
        if kind is Amount:
            try:
                return Amount.parse(value)
            except RecipeError as error:
                return self.wrong(keys, error.message)
        if dataclasses.is_dataclass(kind):
            return self._mapping(value, typing.cast(type, kind), keys)
        if typing.get_origin(kind) is tuple:
            return self._tuple(value, typing.get_args(kind), keys)
        if typing.get_origin(kind) is dict:
            try:
                return _plain_copy(value)
            except TypeError as error:
                return self.wrong(keys, f"holds {error}")
        if kind is str and not value.strip():
            return self.wrong(keys, "is empty")
        if kind is int or kind is float:
            if limits and not limits.holds(value):  # also false for nan
                return self.wrong(keys, f"must be {limits}, not {shown(value)}")
            if abs(value) > _LARGEST_NUMBER:
                return self.wrong(keys, f"is too large: {shown(value)}")
            return kind(value)
        return value

    def _tuple(self, values: Any, kinds: tuple[Any, ...], keys: Keys) -> Any:
        if kinds[-1] is ...:
            kinds = (kinds[0],) * len(values)
        if len(values) != len(kinds):
            return self.wrong(keys, f"expects {len(kinds)} values, not {len(values)}")
        pairs = enumerate(zip(values, kinds, strict=True))
        read = tuple([self._read(value, kind, (*keys, index)) for index, (value, kind) in pairs])
        return _WRONG if _WRONG in read else read


def _sentence(text: str) -> str:
    """A line of an error: without secrets or line ends, and not endless whatever it quotes."""
    text = printable(without_secrets(text))
    return text if len(text) <= _LONGEST_SENTENCE else text[: _LONGEST_SENTENCE - 3] + "..."


def to_plain(value: Any) -> Any:
    """A dataclass as the mapping that `Draft.build` would take: amounts as text, tuples as lists."""
    if isinstance(value, Amount):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {alias(field): to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return copy.deepcopy(value)


def _plain_copy(value: Any) -> Any:
    """What YAML would have given: text keys, lists for tuples. TypeError for anything that YAML cannot hold."""
    if isinstance(value, dict):
        return {str(key): _plain_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_copy(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        raise TypeError("nan, which is no number")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{shown(value)}, which a YAML file cannot hold")
