"""What the types of dataclass fields mean: to the loader, to a reader of its errors, and as JSON Schema.

Fields are text, numbers (limits as `Annotated[float, Range(...)]`), booleans, Literals, Amounts, tuples,
dicts, other dataclasses, and unions of these.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

from hfpretrain.amounts import Amount, amount_schema
from hfpretrain.errors import nearest
from hfpretrain.secrets import without_secrets


class Range(NamedTuple):
    """Limits of a number, attached to its type: `Annotated[int, Range(minimum=1)]`."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = zip(("at least", "above", "at most", "below"), self, strict=True)
        return " and ".join(f"{word} {limit}" for word, limit in words if limit is not None)


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, ranges included."""
    return typing.get_type_hints(kind, include_extras=True)


def alias(field: dataclasses.Field[Any]) -> str:
    """The key of a dataclass field in YAML: `from` cannot be a name in Python."""
    return str(field.metadata.get("alias", field.name))


def options_of(hint: Any) -> list[Any]:
    """The members of a union without None; any other type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for option in typing.get_args(hint) if option is not type(None)]
    return [hint]


def unwrapped(hint: Any) -> tuple[Any, Range | None]:
    """A type without its range, and the range."""
    if typing.get_origin(hint) is Annotated:
        kind, limits = typing.get_args(hint)
        return kind, limits
    return hint, None


def fits(hint: Any, value: Any) -> bool:
    """Whether a plain value has the shape of a type (not a union); what is inside is not looked at."""
    kind, _ = unwrapped(hint)
    origin, is_bool = typing.get_origin(kind), isinstance(value, bool)
    if origin is Literal:
        return any(type(option) is type(value) and option == value for option in typing.get_args(kind))
    if kind is Amount:
        return (isinstance(value, str | int) and not is_bool) or (isinstance(value, float) and value.is_integer())
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin is dict or dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float) and not is_bool
    return isinstance(value, kind) and (kind is bool or not is_bool)


# Words for errors


def choice(hint: Any) -> str:
    """What a type allows, in words: `an integer or auto`."""
    words = [word for option in options_of(hint) for word in _words(option)]
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


def _words(hint: Any) -> list[str]:
    kind, _ = unwrapped(hint)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return list(args)
    if origin is tuple:
        return ["a list" if args[-1] is ... else f"a list of {len(args)} values"]
    if origin is dict or (dataclasses.is_dataclass(kind) and kind is not Amount):
        return ["a mapping"]
    words = {int: "an integer", float: "a number", str: "text", Amount: "an amount such as 600 steps or 5%"}
    return ["true", "false"] if kind is bool else [words[kind]]


def shown(value: Any) -> str:
    """A value as a reader of the file knows it, in a few words."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value) if isinstance(value, float) or abs(value) < 2**64 else "a huge number"
    return f"a Python {type(value).__name__}"


def quoted(text: str) -> str:
    """A text in quotes, without secrets, and only its beginning if it is long."""
    text = without_secrets(text)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def advice(value: Any, hint: Any) -> str:
    """What to write instead of a value that does not fit, if that can be told."""
    kinds = [unwrapped(option)[0] for option in options_of(hint)]
    wants_list = any(typing.get_origin(kind) is tuple for kind in kinds)
    if wants_list and isinstance(value, dict):
        return "; begin each item of the list with a dash, like `- builtin: everyday`"
    if wants_list and isinstance(value, str):
        return f"; write [{value}]" if len(value) <= 40 else ""
    if not isinstance(value, str):
        return ""
    if (int in kinds or float in kinds) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value):
        return "; remove the quotes"
    near = nearest(value.lower(), [word for option in options_of(hint) for word in _words(option)])
    return f"; did you mean {near}?" if near else ""


def unknown_key(key: str, known: Iterable[str], root: type) -> str:
    """What to say about a key that is not there: one like it, the same one elsewhere, or those that are."""
    known = list(known)
    elsewhere = [path for path in _paths(root) if path.split(".")[-1] == key]
    meant = nearest(key, known) or " or ".join(elsewhere)
    return f"unknown key; did you mean {meant}?" if meant else f"unknown key; the keys here are {', '.join(known)}"


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        hint = hints_of(kind)[field.name]
        if dataclasses.is_dataclass(hint) and hint is not Amount:
            yield from _paths(typing.cast(type, hint), f"{prefix}{alias(field)}.")
        else:
            yield prefix + alias(field)


# JSON Schema


def schema_of(root: type) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a dataclass; descriptions are the docstrings of its fields."""
    definitions: dict[str, Any] = {}
    _schema(root, definitions)
    top = definitions.pop(root.__name__)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": root.__name__, **top} | {
        "$defs": dict(sorted(definitions.items()))
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kind, limits = unwrapped(hint)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(option, definitions) for option in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args[-1] is ...:
        least = {"minItems": 1} if dataclasses.is_dataclass(args[0]) else {}
        return {"type": "array", "items": _schema(args[0], definitions)} | least
    if origin is tuple:
        return {"type": "array", "prefixItems": [_schema(arg, definitions) for arg in args], "minItems": len(args)}
    if origin is dict:
        return {"type": "object"}
    if kind is Amount or dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = amount_schema() if kind is Amount else _object(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    name = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}[kind]
    words = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    bounds = zip(words, limits or (), strict=bool(limits))
    return {"type": name} | {word: limit for word, limit in bounds if limit is not None}


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    docs, hints = _docstrings(kind), hints_of(kind)
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        entry: dict[str, Any] = {"description": docs[field.name]} if field.name in docs else {}
        entry |= _schema(hints[field.name], definitions)
        if field.default == ():  # a recipe with every default written out has it
            entry.pop("minItems", None)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(alias(field))
        elif field.default not in (None, "", (), dataclasses.MISSING) and not dataclasses.is_dataclass(
            hints[field.name]
        ):
            entry["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        if isinstance(field.default, Amount):
            entry["default"] = str(field.default)
        properties[alias(field)] = entry
    summary = " ".join((kind.__doc__ or "").split())
    shape = {"description": summary, "type": "object", "properties": properties, "additionalProperties": False}
    return shape | ({"required": required} if required else {})


def _docstrings(kind: type) -> dict[str, str]:
    """The text under each field of a class; Python itself keeps none of them."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found
