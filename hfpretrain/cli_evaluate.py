"""The command that evaluates a model, and how it prints what that came to."""

import json
from typing import Annotated, Any

import typer

from hfpretrain.process import prepare_environment


def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="A local file or folder. Default: the run's held-out part.", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl", help="Minimal pairs: sentence_good and sentence_bad on each line.", show_default=False
        ),
    ] = None,
    pseudo_perplexity: Annotated[
        bool, typer.Option("--pseudo-perplexity", help="Also mask each token by itself (masked models).")
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric of the evaluate library: a script's path or a Hub name.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a model: loss, perplexity, bits per byte, accuracy, minimal pairs, tasks.

    Example: hfpretrain evaluate runs/quickstart-clm --data novel.txt
    """
    prepare_environment()
    from hfpretrain.evaluation import evaluate_model

    result = evaluate_model(model, data, pairs=pairs, pseudo_perplexity=pseudo_perplexity, metrics=tuple(metric or ()))
    if as_json:
        typer.echo(json.dumps(result))
        return
    groups = result.pop("groups", {})
    for key, values in groups.items():
        result |= {f"{key} {value}": found["accuracy"] for value, found in values.items()}
    print_values(result)


def print_values(values: dict[str, Any]) -> None:
    """A line for each."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        typer.echo(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
