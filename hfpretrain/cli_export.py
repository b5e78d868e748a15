"""The command that exports a model to another runtime."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hfpretrain.cli_options import AsJson
from hfpretrain.process import prepare_environment
from hfpretrain.training.signals import stop_on_signals


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, a checkpoint, a model folder or a Hub id.", show_default=False)
    ],
    to: Annotated[Literal["onnx", "gguf"], typer.Option(help="For onnxruntime, or for llama.cpp.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder (onnx) or a file (gguf). Default: onnx or NAME.gguf in RUN.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a model to ONNX or GGUF. What is written is loaded again and has to predict the same.

    \b
    Examples:
      hfpretrain export runs/my --to onnx
      hfpretrain export runs/my --to gguf --output my.gguf
    """
    with stop_on_signals():
        prepare_environment()
        from hfpretrain.export import export as export_model
        from hfpretrain.files import size_in_words

        exported = export_model(model, to, output, force=force)
    same = exported.agreement
    if as_json:
        numbers = {"positions": same.positions, "same_top5": same.same, "largest_difference": same.worst}
        typer.echo(json.dumps({"path": str(exported.path), "bytes": exported.bytes, **numbers}))
        return
    typer.echo(f"written   {exported.path}, {size_in_words(exported.bytes)}")
    typer.echo(
        f"checked   the same five likeliest tokens at {same.same:,} of {same.positions:,} positions, "
        f"log-probabilities within {same.worst:.1g}"
    )
