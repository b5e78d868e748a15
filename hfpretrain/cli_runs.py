"""The command that lists runs, and what `train` prints of one at its end."""

import json
import logging
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfpretrain.amounts import count, span
from hfpretrain.cli_options import AsJson, complete_folder

if TYPE_CHECKING:
    from hfpretrain.run import Run, Summary

log = logging.getLogger(__name__)

DAY = 86_400


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.", autocompletion=complete_folder)] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs here, a line each, newest first: state, objective, tokens, held-out loss, age.

    \b
    Examples:
      hfpretrain runs
      hfpretrain runs sweeps/lr --json
    """
    from hfpretrain.run import runs

    found = [(run, run.summary()) for run in runs(folder)]
    if as_json:
        typer.echo(json.dumps([_as_dict(run, known) for run, known in found]))
        return
    if not found:
        log.info("no runs in %s", folder)
        return
    rows = [[str(run.path), *_cells(known)] for run, known in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def _cells(known: "Summary") -> list[str]:
    state: str = known.state
    if known.duration is not None:
        verb = "at" if state == "running" else "stopped at"
        state = f"{'running, ' if state == 'running' else ''}{verb} step {known.step} of {known.duration}"
        state = state.removesuffix(" steps")
    return [
        state,
        known.objective or "",
        f"{count(known.tokens)} tokens" if known.tokens is not None else "",
        f"loss {known.loss:.4f}" if known.loss is not None else "",
        age(time.time() - known.changed) if known.changed else "",
    ]


def age(seconds: float) -> str:
    """How long ago something was: `just now`, `12 min ago`, `3 h ago`, `5 days ago`."""
    if seconds < 60:
        return "just now"
    if seconds < 2 * DAY:
        return f"{span(seconds).split(' min' if seconds < 3600 else ' h')[0]} {'min' if seconds < 3600 else 'h'} ago"
    return f"{int(seconds // DAY)} days ago"


def _as_dict(run: "Run", known: "Summary") -> dict[str, Any]:
    changed = datetime.fromtimestamp(known.changed, tz=UTC).isoformat(timespec="seconds") if known.changed else None
    return {"run": str(run.path), **vars(known), "changed": changed}


def print_run(run: "Run", objective: str) -> None:
    """What a finished run came to, and the command to try it with."""
    report = run.report()
    typer.echo(f"run         {run.path}")
    typer.echo(f"time        {report['seconds']:.0f} s for {report['steps']} steps, {report['tokens']} tokens")
    typer.echo(f"speed       {report['tokens_per_second']:.0f} tokens/s, {report['mfu']:.0%} of the hardware's rate")
    if report.get("loss") is not None:
        typer.echo(f"loss        {report['loss']:.4f} (training)")
    if "validation_loss" in report:
        bits = report.get("validation_bits_per_byte")
        typer.echo(
            f"validation  loss {report['validation_loss']:.4f}, perplexity {report['validation_perplexity']:.2f}"
            + (f", {bits:.4f} bits per byte" if bits else "")
        )
    if report.get("validation_floor") is not None:
        floor = f"loss {report['validation_floor']:.4f}"
        typer.echo(f"floor       {floor}: what the grammar of the builtin corpus itself comes to on these texts")
    if "averaged" in report:
        loss = report["averaged"].get("validation_loss")
        typer.echo(f"averaged    {'' if loss is None else f'loss {loss:.4f} (validation), '}in {run.averaged}")
    if "pairs_accuracy" in report:
        typer.echo(f"pairs       {report['pairs_accuracy']:.1%} of {report['pairs']}")
    command = "fill" if objective == "mlm" else "generate"
    typer.echo(
        f"next        hfpretrain {command} {shlex.quote(report['example'])} --model {shlex.quote(str(run.path))}"
    )
