"""The commands that tell what there is: the shipped recipes, the recipe's schema, versions and hardware."""

import json
from typing import Annotated

import typer

from hfpretrain.cli_options import AsJson, complete_shipped


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Write a copy of this one to edit.", show_default=False, autocompletion=complete_shipped),
    ] = None,
) -> None:
    """List the shipped recipes and job scripts; with a name, write a copy into this folder.

    \b
    Examples:
      hfpretrain recipes
      hfpretrain recipes quickstart-mlm
      hfpretrain recipes slurm
    """
    from hfpretrain.shipped import SCRIPTS, copy_recipe, shipped_recipes

    if name is not None:
        for target in copy_recipe(name):
            typer.echo(str(target))
        return
    found = shipped_recipes() | SCRIPTS
    width = max(map(len, found))
    for stem, summary in found.items():
        typer.echo(f"{stem:<{width}}  {summary}")


def schema() -> None:
    """Print the recipe's JSON Schema, by which editors complete and check recipes.

    \b
    Examples:
      hfpretrain schema
      hfpretrain schema > recipe.schema.json
    """
    from hfpretrain.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def env(as_json: AsJson = False) -> None:
    """Print versions and hardware, for a bug report.

    \b
    Examples:
      hfpretrain env
      hfpretrain env --json
    """
    import platform

    import torch

    from hfpretrain.hardware import choose_precision, device_name, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        **versions(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": choose_precision("auto", device),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<13} {value}")
