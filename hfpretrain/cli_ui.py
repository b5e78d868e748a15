"""The command that serves a page to try models on."""

import os
import threading
from pathlib import Path
from typing import Annotated

import typer

from hfpretrain.cli_options import complete_run
from hfpretrain.process import prepare_environment


def ui(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run, checkpoint, model folder or Hub id to begin with.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--runs", help="Where runs are looked for.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="The address to serve on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.", show_default=False)
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Serve a page to fill masks, to generate, to compare two models, and to watch the curves of runs.

    \b
    Examples:
      hfpretrain ui
      hfpretrain ui runs/quickstart-clm --no-open
    """
    prepare_environment()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from hfpretrain.ui import build_page, models_here, opened, serve

    if model is not None:
        opened(model)  # what is wrong with it is said here and not on the page
    page = build_page(folder, model)
    address = serve(page, host=host, port=port, open_browser=not no_open)
    typer.echo(address)
    if not models_here(folder, model):
        typer.echo(f"no runs in {folder}: type a folder or org/name as the model", err=True)
    typer.echo("until Ctrl-C", err=True)
    threading.Event().wait()
