"""Writes docs/reference/: a recipe's keys from the schema, commands from the command line. `python docs/generate.py`

Descriptions are the docstrings of the code; only the examples are written apart, in reference/examples.yaml.
tests/test_docs.py sees that the pages are fresh, that every key is in an example, and that the examples load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml

from hfpretrain.cli import app
from hfpretrain.recipe import json_schema

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by `python docs/generate.py`: change the docstrings in hfpretrain, not this page. -->"

ABOUT_RECIPES = """\
A recipe is one YAML file. Every key has a default but `objective` and a data source. A key that is unknown, has the
wrong type or contradicts another is an error with its line, and all of a file are told at once. On the command line
`KEY=VALUE` sets any key over the file: `train.duration=50`, `data.sources.0.files=my.txt`; the value is YAML.

Editors complete and check recipes by the JSON Schema, which `hfpretrain schema` prints. A first line such as
`# yaml-language-server: $schema=recipe.schema.json` tells them where it lies.

## Amounts

Where a type is *amount*, write what you would say: `600 steps`, `20M tokens`, `10M words`, `3 epochs`, `10 minutes`,
`1.5 hours`, `5%`. A plain integer is steps. `k`, `M`, `B` and `T` are thousands, millions, billions and trillions. The
description of a key says which units it takes; `20 tokens per parameter` and `1e18 FLOPs` are for `train.duration`.
"""

ABOUT_COMMANDS = """\
Results go to stdout, everything else to stderr; `--json` prints results for a script. `KEY=VALUE` sets any key of the
[recipe](recipe.md) over the file.

| exit status | means |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | the input is wrong: a sentence says what, and what to do |
| 128 + n | stopped by signal n, saved where there was something to save (142: `train.max_time` is over) |

| variable | is for |
|---|---|
| `HFPRETRAIN_MODEL` | the model of `fill` and `generate` where none is named |
| `HFPRETRAIN_CACHE` | the folder of prepared data; otherwise `~/.cache/hfpretrain` |
| `HFPRETRAIN_PATIENCE` | seconds for which a process that trains waits for the others of its run; otherwise 1800 |
| `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` | the Hub: who you are, its cache, and whether to ask it at all |
| `NO_COLOR` | no colours |
"""

EXAMPLES: dict[str, list[str]] = yaml.safe_load((REFERENCE / "examples.yaml").read_text(encoding="utf-8"))


def main() -> None:
    """Writes both pages."""
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """The text of each page, by its file."""
    return {REFERENCE / "recipe.md": recipe_page(), REFERENCE / "commands.md": commands_page()}


# The recipe


def recipe_page() -> str:
    """Every block of a recipe: its keys in a table, then how they look in a file."""
    schema = json_schema()
    lines = [MADE, "", "# The recipe", "", ABOUT_RECIPES]
    for where, block in blocks(schema):
        lines += [f"## {where}" if where else "## The keys", ""]
        if where:
            lines += [text_of(block["description"]), ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        for key, entry in block["properties"].items():
            default = "required" if key in block.get("required", ()) else default_of(entry)
            at = f"{where}.{key}".strip(".")
            about = entry.get("description") or schema["$defs"][next(references(entry))]["description"]
            lines.append(row(f"`{key}`", type_of(entry, at), default, text_of(about)))
        for example in EXAMPLES.get(where, []):
            lines += ["", "```yaml", example.rstrip(), "```"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def blocks(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each block with the dotted key that it stands at, in the order of the recipe: the whole, then what is in it."""
    seen: set[str] = set()

    def walk(where: str, block: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield where, block
        for key, entry in block["properties"].items():
            for name in references(entry):
                if name != "Amount" and name not in seen:
                    seen.add(name)
                    yield from walk(f"{where}.{key}".strip("."), schema["$defs"][name])

    yield from walk("", schema)


def references(entry: dict[str, Any]) -> Iterator[str]:
    """The definitions that an entry of the schema leads to."""
    if "$ref" in entry:
        yield entry["$ref"].rpartition("/")[2]
    for option in [*entry.get("anyOf", ()), *([entry["items"]] if "items" in entry else ())]:
        yield from references(option)


def type_of(entry: dict[str, Any], where: str) -> str:
    """What a key takes, in words; blocks are links to where they are described."""
    if "anyOf" in entry:
        return " or ".join(type_of(option, where) for option in entry["anyOf"] if option.get("type") != "null")
    if "enum" in entry:
        return " or ".join(f"`{choice}`" for choice in entry["enum"])
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        if name == "Amount":
            return "[amount](#amounts)"
        at = {"Source": "data.sources"}.get(name, where)
        return f"[{at}](#{slug(at)})"
    if "items" in entry:
        return f"list of {type_of(entry['items'], where)}"
    if "prefixItems" in entry:
        return f"list of {len(entry['prefixItems'])}: {type_of(entry['prefixItems'][0], where)} each"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "below"}
    limits = [f"{sign} {entry[word]:g}" for word, sign in signs.items() if word in entry and entry[word] < 2**62]
    return " ".join([words.get(entry["type"], "mapping"), ", ".join(limits)]).strip()


def default_of(entry: dict[str, Any]) -> str:
    """The default as it is written in YAML."""
    if "default" not in entry:
        return ""
    value = entry["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else str(value).replace('e-0', 'e-')}`"


# The commands


def commands_page() -> str:
    """Every command: what it does, its arguments and options, examples."""
    group: Any = typer.main.get_command(app)
    lines = [MADE, "", "# The commands", "", ABOUT_COMMANDS]
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            lines += section(f"hfpretrain {name}", command)
    lines += section("hfpretrain", group)
    return "\n".join(lines).rstrip() + "\n"


def section(name: str, command: Any) -> list[str]:
    """One command."""
    said, examples = text_and_examples(f"{command.help or ''}\n\n{command.epilog or ''}")
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    usage = [name, *map(metavar, arguments), *(["[OPTIONS]"] if options else [])]
    lines = [f"## {name}", "", text_of(said), ""]
    if arguments:
        lines += ["```text", " ".join(usage), "```", "", "| argument | |", "|---|---|"]
        lines += [row(f"`{metavar(each)}`", described(each)) for each in arguments] + [""]
    if options:
        lines += ["| option | |", "|---|---|"]
        lines += [row(spelled(each), described(each)) for each in options] + [""]
    if examples:
        lines += ["```console", *(f"$ {each}" for each in examples), "```", ""]
    return lines


def text_and_examples(text: str) -> tuple[str, list[str]]:
    """A command's help, and the commands in it, which are on lines of their own or after `Example:`."""
    said, examples = [], []
    for line in text.replace("\b", "").splitlines():
        rest = re.sub(r"^\s*Examples?:\s*", "", line).strip()
        if re.match(r"(\$ )?hfpretrain ", rest):
            examples.append(rest.removeprefix("$ "))
        elif rest or not line.strip():
            said.append(rest)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(said)).strip(), examples


def metavar(argument: Any) -> str:
    """An argument as usage lines have it: in brackets if it may be missing."""
    word = str(argument.metavar or argument.name.upper())
    return word if argument.required or word.startswith("[") else f"[{word}]"


def spelled(option: Any) -> str:
    """An option's spellings, with what it takes."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    annotation = option.type_descriptor.annotation
    if annotation is bool or option.is_flag:
        return names
    words = {"int": "N", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}
    taken = option.metavar or words.get(getattr(annotation, "__name__", ""), "TEXT")
    return f"{names} `{taken}`" + (", several times" if option.multiple else "")


def described(parameter: Any) -> str:
    """A parameter's help, with its default where the help leaves that to us."""
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if parameter.show_default and default not in (None, False, ()) and not callable(default):
        text += f" Default: `{default}`."
    return text_of(text)


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def text_of(docstring: str) -> str:
    """A docstring as Markdown that shows it as it is; only backticks mean something in both."""
    return "".join(
        piece if number % 2 else re.sub(r"[*\[\]]", r"\\\g<0>", piece).replace("<", "&lt;")
        for number, piece in enumerate(re.split(r"(`[^`]*`)", docstring))
    )


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


if __name__ == "__main__":
    main()
