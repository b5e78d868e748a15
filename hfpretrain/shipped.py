"""The recipes and job scripts that come with hfpretrain: what there is, and a copy to edit."""

import re
import shutil
from pathlib import Path

from hfpretrain.errors import RecipeError, UserError, nearest

SCRIPTS = {"slurm": "Job scripts for SLURM: train.sh trains on any number of nodes, data.sh prepares the data."}
"""Folders beside the recipes, by name, and what is in them."""


def shipped_recipes() -> dict[str, str]:
    """The name of each shipped recipe, and the first sentence of its comments."""
    return {path.stem: _summary(path.read_text(encoding="utf-8")) for path in sorted(_folder().glob("*.yaml"))}


def copy_recipe(name: str) -> list[Path]:
    """Copies a shipped recipe, and the data that it names, into the working directory; returns what was written.

    Of a name of SCRIPTS it is the folder of that name.
    """
    name = name.removesuffix(".yaml")
    known = shipped_recipes() | SCRIPTS
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close}?" if close else "hfpretrain recipes lists them"
        raise RecipeError(f"no shipped recipe is called {name}", hint=hint)
    folder = _folder()
    if name in SCRIPTS:
        copies = {path: Path(name, path.name) for path in sorted((folder / name).glob("*.sh"))}
    else:
        recipe = folder / f"{name}.yaml"
        text = recipe.read_text(encoding="utf-8")
        data = [path for path in folder.glob("*.jsonl") if f"recipes/{path.name}" in text]
        copies = {recipe: Path(recipe.name), **{path: Path("recipes", path.name) for path in data}}
    for target in copies.values():
        if target.exists():
            raise UserError(f"{target} is there already", hint="remove it or go to another folder")
    for source, target in copies.items():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    return list(copies.values())


def _folder() -> Path:
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def _summary(recipe: str) -> str:
    lines = [line[2:] for line in recipe.splitlines() if line.startswith("# ") and "yaml-language-server" not in line]
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0]
