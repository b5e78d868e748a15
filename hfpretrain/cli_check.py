"""The command that plans a run: on this machine by trying it, on others by arithmetic."""

import json
from typing import Annotated

import typer

from hfpretrain.cli_options import AsJson, Overrides, RecipeFile
from hfpretrain.errors import UserError
from hfpretrain.process import prepare_environment


def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", metavar="N", help="Plan for so many GPUs instead.", min=1, show_default=False),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="Of this kind, e.g. h100 (the default).", show_default=False),
    ] = None,
    per_node: Annotated[
        int | None,
        typer.Option("--gpus-per-node", metavar="N", help="GPUs of a node. Default: 8.", min=1, show_default=False),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(
            metavar="GBIT",
            help="Gb/s between nodes for each GPU. Default: what such nodes usually have.",
            min=0.001,
            show_default=False,
        ),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            help="Share of the GPU's matrix rate that is reached. Default: 0.4.", min=0.001, max=1, show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Validate and plan without training: model, data, time, sample rows, start-up proofs.

    With --gpus, for machines that are not at hand: memory on each GPU by strategy, what bounds the speed, and what to
    set. Neither data nor weights are read for that.

    \b
    Examples:
      hfpretrain check my.yaml
      hfpretrain check my.yaml model.size=15M train.batch_size=128
      hfpretrain check my.yaml --gpus 64 --gpu h100
      hfpretrain check my.yaml --gpus 16 --gpu l40s --network 25 --json
    """
    from hfpretrain.recipe import load

    loaded = load(recipe, overrides or [])
    of_gpus = {"--gpu": gpu, "--gpus-per-node": per_node, "--network": network, "--mfu": mfu, "--json": as_json or None}
    if gpus is None and (given := [name for name, value in of_gpus.items() if value is not None]):
        raise UserError(f"{given[0]} goes with --gpus", hint="give the number of GPUs to plan for, such as --gpus 8")
    prepare_environment()
    if gpus is None:
        from rich.console import Console

        from hfpretrain.check import check

        Console(highlight=False).print(check(loaded), soft_wrap=True)
        return
    from hfpretrain.check_gpus import plan_on

    planned = plan_on(loaded, gpu=gpu or "h100", gpus=gpus, per_node=per_node, network=network, mfu=mfu)
    typer.echo(json.dumps(planned.as_json()) if as_json else str(planned))
