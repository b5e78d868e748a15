"""Arguments and options that several commands have, and what a shell completes them with."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

DEEPEST = 30
"""So many folders in each other, of which each is the only one, are gone through: a link may lead back."""
LARGEST_FOLDER = 2000
"""Of a folder with more in it nothing is completed: it would take longer than to type."""


def _in_folder(incomplete: str, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """What begins like `incomplete` in its folder: folders, with a slash, and what is wanted."""
    start, _, name = incomplete.rpartition("/")
    prefix = incomplete.removesuffix(name)
    try:
        folder = Path(f"{start}/" if start or incomplete.startswith("/") else ".").expanduser()
        entries = sorted(islice(folder.iterdir(), LARGEST_FOLDER + 1))
    except (OSError, RuntimeError):  # of an unknown ~user
        return
    if len(entries) > LARGEST_FOLDER:
        return
    entries = [path for path in entries if path.name.startswith(name) and (name or not path.name.startswith("."))]
    found = [path for path in entries if wanted(path) or path.is_dir()]
    if len(found) == 1 and not wanted(found[0]) and len(folder.parts) < DEEPEST:  # shells would end the word here
        yield from _in_folder(f"{prefix}{found[0].name}/", wanted)
        return
    yield from (f"{prefix}{path.name}{'' if wanted(path) else '/'}" for path in found)


def complete_recipe(incomplete: str) -> list[str]:
    """YAML files, and folders that may hold some."""
    return list(_in_folder(incomplete, lambda path: path.suffix in (".yaml", ".yml")))


def complete_folder(incomplete: str) -> list[str]:
    """Folders."""
    return list(_in_folder(incomplete, lambda path: False))


def complete_run(incomplete: str) -> list[str]:
    """Runs: those in runs/ as well, without its name being typed."""
    found = list(_in_folder(incomplete, _is_run))
    if "runs/".startswith(incomplete):
        found = [*_in_folder("runs/", _is_run), *(each for each in found if each != "runs/")]
    return list(dict.fromkeys(found))


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def complete_shipped(incomplete: str) -> list[tuple[str, str]]:
    """The shipped recipes and job scripts, with what they are."""
    from hfpretrain.shipped import SCRIPTS, shipped_recipes

    return [(name, what) for name, what in (shipped_recipes() | SCRIPTS).items() if name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """The keys of a recipe, with dots and an equals sign; of a single one its default, or its values, too."""
    schema = json.loads((Path(__file__).parent / "recipe.schema.json").read_text(encoding="utf-8"))
    found = {key: value for key, value in _keys(schema, schema["$defs"]) if key.startswith(incomplete)}
    if len(found) != 1:
        return list(found)
    ((key, value),) = found.items()
    values = value.get("enum") or [value.get("default")]
    return [key, *(f"{key}{each}" for each in values if isinstance(each, str | int | float) and " " not in str(each))]


def _keys(block: dict[str, Any], blocks: dict[str, Any], before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in block["properties"].items():
        inner = blocks.get(value.get("$ref", "").rpartition("/")[2], {})
        if "properties" in inner:
            yield from _keys(inner, blocks, f"{before}{key}.")
        else:
            yield f"{before}{key}=", value


RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="The recipe: a YAML file.", show_default=False, autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Keys to set over the file, e.g. train.duration=50.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory.", show_default=False, autocompletion=complete_run),
]
ModelFolder = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, a checkpoint or a model folder.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A run, checkpoint, model folder or Hub id. Default: $HFPRETRAIN_MODEL, else the newest finished run.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
