"""The command that writes a recipe from four answers, asked for on a terminal."""

import contextlib
import logging
import shlex
import sys
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from hfpretrain.errors import UserError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


def init(
    objective: Annotated[
        str | None, typer.Option(help="clm (next word) or mlm (masked words).", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A file, a folder, a glob, builtin everyday, or org/dataset.", show_default=False),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Parameters: 1M, 15M, 124M, ...", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; NAME.yaml is written.", show_default=False)] = None,
) -> None:
    """Write a commented recipe from four answers: objective, data, size and name. What no flag says is asked.

    \b
    Examples:
      hfpretrain init
      hfpretrain init --objective mlm --data corpus/ --size 15M --name mine
      hfpretrain init --data "builtin everyday"
      hfpretrain init --data org/dataset --size 124M
    """
    from hfpretrain import init as recipes

    goal = _answer("objective", objective, "clm", recipes.parse_objective, "clm (next word) or mlm (masked words)")
    what = "a file, a folder, a glob, builtin everyday, or org/dataset on the Hub"
    found = _answer("data", data, recipes.BUILTIN, recipes.find_data, what)
    log.info("data: %s", found.told)
    parameters = _answer("size", size, recipes.suggested_size(found), recipes.parse_size, "parameters: 1M, 15M, 124M")
    suggested = recipes.suggested_name(goal, found, parameters)
    file = _answer("name", name, suggested, recipes.parse_name, "of the run, and of its recipe NAME.yaml")
    recipes.write_recipe(goal, found, parameters, file)
    quoted = shlex.quote(str(file))
    typer.echo(f"recipe  {file}")
    typer.echo(f"next    hfpretrain check {quoted}")
    typer.echo(f"        hfpretrain train {quoted}")


def _answer(key: str, given: str | None, default: str, parse: Callable[[str], Answer], what: str) -> Answer:
    """What a flag says; or what is answered on a terminal, where a wrong answer is asked for again; or the default."""
    if given is not None:
        return parse(given)
    if not sys.stdin.isatty():
        log.info("%s: %s, as no --%s is given", key, default, key)
        return parse(default)
    while True:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            text = typer.prompt(f"{key}, {what}", default=default, err=True)
        try:
            return parse(str(text))
        except UserError as error:
            typer.echo(str(error), err=True)
