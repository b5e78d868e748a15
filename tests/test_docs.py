"""The documentation: references are fresh, links lead somewhere, and what it shows to be typed is understood."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hfpretrain import recipe as recipes
from hfpretrain.cli import app
from hfpretrain.errors import RecipeError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: Any = typer.main.get_command(app)

_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert _spec and _spec.loader
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def fences(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each fenced block."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in fence.findall(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


# The references


@pytest.mark.parametrize("page", generate.pages(), ids=lambda path: path.stem)
def test_the_references_are_those_of_the_code(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == generate.pages()[page], "refresh it: python docs/generate.py"


def test_the_examples_of_the_reference_load(tmp_path: Path) -> None:
    for where, texts in generate.EXAMPLES.items():
        for text in texts:
            given = yaml.safe_load(text)
            missing = {"objective": "clm", "data": "{sources: [{builtin: everyday}]}"}
            lines = [f"{key}: {value}\n" for key, value in missing.items() if key not in given]
            file = tmp_path / "recipe.yaml"
            file.write_text("".join([*lines, text]), encoding="utf-8")
            try:
                recipes.load(file)
            except RecipeError as error:
                pytest.fail(f"docs/reference/examples.yaml, {where or 'the keys'}: {error}")


def test_every_key_is_in_an_example_of_its_block() -> None:
    shown: dict[str, set[str]] = {}
    examples = [(where, text) for where, texts in generate.EXAMPLES.items() for text in texts]
    for where, example in ((where, yaml.safe_load(text)) for where, text in examples):
        values = [example]
        for key in filter(None, where.split(".")):
            values = [value[key] for value in values if key in value]
            values = [item for value in values for item in (value if isinstance(value, list) else [value])]
        shown.setdefault(where, set()).update(key for value in values for key in value)
    blocks = {where: block["properties"] for where, block in generate.blocks(recipes.json_schema())}
    blocks[""] = {key: entry for key, entry in blocks[""].items() if key not in blocks}
    missing = [f"{where}.{key}" for where, keys in blocks.items() for key in keys if key not in shown.get(where, ())]
    assert not missing, "add them to docs/reference/examples.yaml"


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {generate.slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")) for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target = "".join(link)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
        elif page.parent != ROOT and not file.is_relative_to(ROOT / "docs"):
            wrong.append(f"{target} (outside docs/, where the built site cannot lead)")
    assert not wrong


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text.partition("nav:")[2]))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}


# Commands


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `hfpretrain ...` that a block for a shell shows, as the shell would split them."""
    for language, text in fences(page):
        if language not in ("console", "sh", "bash"):
            continue
        lines = text.replace("\\\n", " ").splitlines()
        for line in (line.strip() for line in lines):
            if language == "console":
                if not line.startswith("$ "):
                    continue
                line = line.removeprefix("$ ")
            if "hfpretrain" not in line or line.startswith("#"):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split, lexer.commenters = True, "#"
            words = list(lexer)
            starts = [place for place, word in enumerate(words) if word == "hfpretrain"]
            for start in starts:
                if start and words[start - 1] not in ("-m", "srun", "&&", "||", ";", "do", "!") and "=" not in words[0]:
                    continue  # pip install hfpretrain and the like
                rest = words[start + 1 :]
                end = next((place for place, word in enumerate(rest) if set(word) <= set("|&;<>()")), len(rest))
                yield rest[:end]


def inline_commands(page: Path) -> Iterator[list[str]]:
    """The words of every `hfpretrain ...` within a text, which may leave out what is to be filled in."""
    for text in re.findall(r"`hfpretrain ([^`]+)`", prose(page)):
        yield text.split()


@pages
def test_commands_parse(page: Path) -> None:
    for arguments in shown_commands(page):
        if arguments[:1] in ([], ["--help"]):
            continue
        name, *rest = arguments
        assert name in COMMANDS.commands, f"hfpretrain {shlex.join(arguments)}"
        try:
            with COMMANDS.commands[name].make_context(name, list(rest)):
                pass
        except typer.Exit:  # --help
            pass
        except Exception as error:
            pytest.fail(f"hfpretrain {shlex.join(arguments)}: {error}")
    for name, *rest in inline_commands(page):
        if name.isupper() or name.startswith("-"):  # COMMAND, --help
            continue
        assert name in COMMANDS.commands, f"hfpretrain {name}"
        known = {option for each in COMMANDS.commands[name].params for option in each.opts}
        assert {word for word in rest if word.startswith("--")} <= known, f"hfpretrain {name} {' '.join(rest)}"


def test_there_are_commands_to_parse() -> None:
    assert sum(1 for page in PAGES for _ in shown_commands(page)) > 40


# Recipes


def has_source(recipe: Any) -> bool:
    return isinstance(recipe, dict) and "objective" in recipe and "data" in recipe


@pages
def test_whole_recipes_load(page: Path, tmp_path: Path) -> None:
    for language, text in fences(page):
        if language == "yaml" and page.parent.name != "reference" and has_source(yaml.safe_load(text)):
            file = tmp_path / "recipe.yaml"
            file.write_text(text, encoding="utf-8")
            recipes.load(file)
