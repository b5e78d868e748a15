"""The command that shows a run, or compares several, as a page."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hfpretrain.errors import UserError

log = logging.getLogger(__name__)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run directory; several are compared.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Default: report.html in the run, or comparison.html here.", show_default=False
        ),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print where it is, and open no browser.")] = False,
) -> None:
    """Write a run's report, or one that compares several runs, and open it in the browser.

    \b
    Examples:
      hfpretrain report runs/my
      hfpretrain report runs/small runs/large --no-open
    """
    from hfpretrain.report import write_comparison, write_page
    from hfpretrain.run import Run

    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice", hint="name each run once")
    if len(runs) == 1:
        written = write_page(Run(runs[0]), output)
    else:
        written = write_comparison([Run(run) for run in runs], output or Path("comparison.html"))
    typer.echo(str(written))
    if not no_open:
        open_in_browser(written)


def open_in_browser(page: Path) -> None:
    """Opens a page where there is a screen, and says so where there is none."""
    import webbrowser

    screen = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if not (screen and webbrowser.open(page.resolve().as_uri())):
        log.info("there is no browser here to open it with")
