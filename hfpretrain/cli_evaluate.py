"""The command that evaluates a model, and how it prints what that came to."""

import json
import os
from typing import Annotated, Any

import typer

from hfpretrain.cli_options import AsJson, complete_run
from hfpretrain.errors import UserError
from hfpretrain.process import prepare_environment


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A run, a model folder or a Hub id.", show_default=False, autocompletion=complete_run),
    ],
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
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]", help="Tasks of lm-evaluation-harness (next-word models).", show_default=False
        ),
    ] = None,
    include_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where tasks of your own are.", show_default=False)
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric of the evaluate library: a script's path or a Hub name.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model: loss, perplexity, bits per byte, accuracy, minimal pairs, tasks.

    \b
    Examples:
      hfpretrain evaluate runs/my
      hfpretrain evaluate runs/my --data novel.txt --json
      hfpretrain evaluate runs/my --pairs blimp.jsonl
      hfpretrain evaluate runs/my --tasks hellaswag,arc_easy
    """
    looks_at_text = data is not None or (pairs is None and tasks is None)
    for option, given in (("--metric", metric), ("--pseudo-perplexity", pseudo_perplexity)):
        if given and not looks_at_text:
            said = f"{option} is about text, and beside --pairs and --tasks none is looked at by itself"
            raise UserError(said, hint="name a file with --data")
    if include_path is not None and tasks is None:
        raise UserError("--include-path is where tasks are, and none is named", hint="name them with --tasks")
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tasks is not None and not names:
        raise UserError("--tasks names no task", hint="for example --tasks blimp,arc_easy")
    prepare_environment()
    from hfpretrain.evaluation import evaluate_model

    result: dict[str, Any] = {}
    if looks_at_text or pairs is not None:
        metrics = tuple(metric or ())
        result = evaluate_model(model, data, pairs=pairs, pseudo_perplexity=pseudo_perplexity, metrics=metrics)
    if names:
        from hfpretrain.evaluation.harness import run_tasks

        result["tasks"] = run_tasks(model, names, include_path=include_path)
    if int(os.environ.get("RANK", "0")):  # of several processes one prints
        return
    if as_json:
        typer.echo(json.dumps(result))
        return
    groups, of_tasks = result.pop("groups", {}), result.pop("tasks", {})
    for key, values in groups.items():
        result |= {f"{key} {value}": found["accuracy"] for value, found in values.items()}
    for task, values in of_tasks.items():
        result |= {f"{task} {name}": value for name, value in values.items()}
    print_values(result)


def print_values(values: dict[str, Any]) -> None:
    """A line for each."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        typer.echo(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
