"""The commands that try things out before a long run: the learning-rate range test, and sweeps."""

import json
import logging
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfpretrain.amounts import count, span
from hfpretrain.cli_options import AsJson, Overrides, RecipeFile
from hfpretrain.errors import UserError
from hfpretrain.process import launched, leave, prepare_environment

if TYPE_CHECKING:
    from hfpretrain.sweep import Outcome
    from hfpretrain.training.range_test import RangeTest

log = logging.getLogger(__name__)

WIDTH, HEIGHT = 72, 16
"""Signs of a drawn curve, without its axes."""


def find_lr(
    recipe: RecipeFile,
    overrides: Overrides = None,
    first: Annotated[float, typer.Option("--from", help="The lowest rate.")] = 1e-6,
    last: Annotated[float, typer.Option("--to", help="The highest rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps from the lowest to the highest.", min=20)] = 100,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate: a range test on a copy of the start of the run, its curve and a suggestion.

    \b
    Examples:
      hfpretrain find-lr my.yaml
      hfpretrain find-lr my.yaml optimizer.name=muon --from 1e-5 --steps 200
    """
    from hfpretrain.recipe import load

    if not 0 < first < last < math.inf:
        raise UserError("--from and --to are rates above 0, the first below the second")
    loaded = load(recipe, overrides or [])
    prepare_environment()
    from hfpretrain.training.range_test import range_test

    found = range_test(loaded, first=first, last=last, steps=steps)
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        points = [vars(point) for point in found.points]
        typer.echo(json.dumps({"suggestion": found.suggestion, "least": vars(found.least), "points": points}))
        return
    typer.echo(drawn(found))
    typer.echo(f"least       loss {found.least.smoothed:.3f} (smoothed) at {found.least.rate:.1e}")
    typer.echo(
        f"suggestion  {found.suggestion:.1e}, where the loss falls the most; the recipe has {loaded.optimizer.lr}"
    )
    given = [each for each in overrides or [] if not each.startswith("optimizer.lr=")] + _elsewhere(loaded.output_dir)
    command = ["hfpretrain", "train", str(recipe), *given, f"optimizer.lr={found.suggestion:.1e}"]
    typer.echo(f"next        {shlex.join(command)}")


def drawn(found: "RangeTest") -> str:
    """The smoothed loss over the rates, which go up by equal factors; a line of colons where the suggestion is."""
    points = found.points
    low, top = found.least.smoothed, max(point.smoothed for point in points)
    first, last = (math.log10(points[place].rate) for place in (0, -1))

    def column(rate: float) -> int:
        return round((math.log10(rate) - first) / (last - first) * (WIDTH - 1))

    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for row in rows:
        row[column(found.suggestion)] = ":"
    for point in points:
        rows[round((top - point.smoothed) / max(top - low, 1e-9) * (HEIGHT - 1))][column(point.rate)] = "*"
    labels = {0: f"{top:.3f}", HEIGHT - 1: f"{low:.3f}"}
    margin = max(map(len, labels.values()))
    lines = [f"{labels.get(number, ''):>{margin}} |{''.join(row).rstrip()}" for number, row in enumerate(rows)]
    ruler = _ruler([(column(10.0**power), f"1e{power}") for power in range(math.ceil(first), math.floor(last) + 1)])
    return "\n".join([*lines, f"{'':>{margin}} +{'-' * WIDTH}", f"{'':>{margin}}  {ruler}", ""])


def _ruler(marks: Sequence[tuple[int, str]]) -> str:
    """Words that begin at their columns; one that would touch the one before is left out."""
    line = ""
    for place, word in marks:
        if not line or place > len(line):
            line = line.ljust(place) + word
    return line


def sweep(
    recipe: RecipeFile,
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE[,VALUE]...",
            help="Keys with several values, which make the grid, and others to set over the file.",
            show_default=False,
        ),
    ],
    duration: Annotated[
        str | None,
        typer.Option(
            "--duration",
            "--steps",
            help="Of each run: 200, or e.g. 2M tokens. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a grid of short runs, one after another, and compare them. Interrupted, the same command goes on.

    \b
    Examples:
      hfpretrain sweep my.yaml optimizer.lr=1e-3,3e-3 --steps 200
      hfpretrain sweep my.yaml optimizer.lr=1e-3,3e-3 train.batch_size=8,16
    """
    from hfpretrain.recipe import load
    from hfpretrain.sweep import parse, plan_sweep, run_sweep

    if launched():
        raise UserError("a sweep starts its runs itself, one after another", hint="start it without a launcher")
    prepare_environment()
    trials = plan_sweep(recipe, overrides, duration)
    outcomes = run_sweep(recipe, trials)
    best, axes = outcomes[0], trials[0].values
    command = None
    if best.state == "finished":
        given = [f"{key}={best.values.get(key, written[0])}" for key, written in map(parse, overrides)]
        command = shlex.join(["hfpretrain", "train", str(recipe), *given, *_elsewhere(load(recipe, given).output_dir)])
    if as_json:
        typer.echo(json.dumps({"runs": [vars(outcome) for outcome in outcomes], "command": command}))
    else:
        typer.echo(_table(outcomes, list(axes)))
        if command:
            typer.echo(f"best in full  {command}")
    if any(key.startswith("tokenizer.") for key in axes):
        log.warning("losses per token do not compare between tokenizers")
    if command is None:
        leave(1)


def _elsewhere(output_dir: str | None) -> list[str]:
    """The setting that a command needs for another directory, where that of the recipe holds a run already."""
    from hfpretrain.run import Run

    assert output_dir is not None, "a loaded recipe has one"
    names = (output_dir, *(f"{output_dir}-{number}" for number in range(2, 10**6)))
    free = next(name for name in names if Run(Path(name)).state == "empty")
    return [] if free == output_dir else [f"output_dir={free}"]


def _table(outcomes: "Sequence[Outcome]", keys: list[str]) -> str:
    """A line per run, the best first; of one that failed, why."""
    rows = [[*keys, "validation", "training", "tokens", "time", "run"]]
    for each in outcomes:
        losses = ["" if loss is None else f"{loss:.4f}" for loss in (each.validation_loss, each.loss)]
        tokens, time = (
            "" if each.tokens is None else count(each.tokens),
            "" if each.seconds is None else span(each.seconds),
        )
        last = each.run if each.state == "finished" else f"{each.run}: failed: {each.error}"
        rows.append([*(each.values[key] for key in keys), *losses, tokens, time, last])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
