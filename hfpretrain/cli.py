"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

import json
import logging
import os
import shlex
import signal
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hfpretrain.cli_data import print_sources
from hfpretrain.cli_evaluate import evaluate
from hfpretrain.cli_experiments import find_lr, sweep
from hfpretrain.cli_init import init
from hfpretrain.cli_models import load_model, print_next_words, vars_of
from hfpretrain.cli_options import AsJson, ModelName, Overrides, RecipeFile
from hfpretrain.errors import HFPretrainError, UserError
from hfpretrain.process import CurrentStderr, follow_launcher, leave, prepare_environment
from hfpretrain.secrets import without_secrets
from hfpretrain.training.signals import StopNow, stop_on_signals

if TYPE_CHECKING:
    from hfpretrain.inference import CausalLM, MaskedLM

log = logging.getLogger(__name__)

app = typer.Typer(
    name="hfpretrain",
    help="Pre-train a language model from one YAML recipe on the Hugging Face stack.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run stopped; start it if there is none.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume even if recipe or data changed in what is learnt.")
    ] = False,
    from_run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Start from the weights of this run, or checkpoint.", show_default=False),
    ] = None,
    with_optimizer: Annotated[
        bool, typer.Option("--with-optimizer", help="With --from-run: and from its optimizer's state.")
    ] = False,
) -> None:
    """Train what the recipe says.

    Example: hfpretrain train recipes/quickstart-mlm.yaml train.duration="100 steps"
    """
    from hfpretrain.recipe import load

    with stop_on_signals():  # from here on: importing the libraries takes seconds
        follow_launcher()
        prepare_environment()
        again = resume or allow_changes
        if from_run is None:
            if with_optimizer:
                raise UserError("--with-optimizer goes with --from-run", hint="name the run whose state is meant")
            loaded = load(recipe, overrides or [])
        else:
            from hfpretrain.training.lineage import load_from_run

            loaded = load_from_run(recipe, overrides or [], from_run, with_optimizer=with_optimizer, resume=again)
        from hfpretrain.training.loop import train

        run = train(loaded, resume=again, allow_changes=allow_changes)
    if int(os.environ.get("RANK", "0")) == 0:
        report = run.report()
        typer.echo(f"run         {run.path}")
        typer.echo(f"time        {report['seconds']:.0f} s for {report['steps']} steps, {report['tokens']} tokens")
        typer.echo(
            f"speed       {report['tokens_per_second']:.0f} tokens/s, {report['mfu']:.0%} of the hardware's rate"
        )
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
        command = "fill" if loaded.objective == "mlm" else "generate"
        typer.echo(
            f"next        hfpretrain {command} {shlex.quote(report['example'])} --model {shlex.quote(str(run.path))}"
        )


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Validate and plan without training: model, data, time, sample rows, start-up proofs.

    Example: hfpretrain check recipes/quickstart-clm.yaml
    """
    from hfpretrain.recipe import load

    loaded = load(recipe, overrides or [])
    prepare_environment()
    from rich.console import Console

    from hfpretrain.check import check

    Console(highlight=False).print(check(loaded), soft_wrap=True)


app.command()(init)
app.command("find-lr")(find_lr)
app.command()(sweep)


@app.command()
def data(
    recipe: RecipeFile,
    overrides: Overrides = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Prepare one of N shares, e.g. 3/16.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prepare a recipe's data ahead of training: tokenizer and tokens, into the cache. Interrupted, it goes on.

    Example: hfpretrain data recipes/quickstart-clm.yaml
    """
    from hfpretrain.recipe import load

    with stop_on_signals():
        loaded = load(recipe, overrides or [])
        prepare_environment()
        from hfpretrain.preparation import prepare_data

        print_sources(prepare_data(loaded, shard), shard, as_json)


@app.command()
def fill(
    text: Annotated[str, typer.Argument(help="A text with [MASK] or <mask> in it.", show_default=False)],
    model: ModelName = None,
    top_k: Annotated[int, typer.Option(help="Predictions per mask.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Fill the masks of a text: token, probability, sentence.

    Example: hfpretrain fill "The quick [MASK] fox jumps over the lazy dog."
    """
    masked: MaskedLM = load_model(model, "mlm")
    predictions = masked.fill(text, top_k=top_k)
    if as_json:
        typer.echo(json.dumps([[vars_of(each) for each in mask] for mask in predictions], ensure_ascii=False))
        return
    for number, mask in enumerate(predictions):
        if len(predictions) > 1:
            typer.echo(f"mask {number + 1}")
        width = max(len(each.token) for each in mask)
        for each in mask:
            typer.echo(f"{each.token:<{width}}  {each.probability:6.1%}  {each.sentence}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from.", show_default=False)],
    model: ModelName = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to generate at most. Default: 64, or 16 a word.", min=1, show_default=False),
    ] = None,
    words: Annotated[
        int | None, typer.Option(help="Generate exactly so many words.", min=1, show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher samples.", min=0)] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.", min=1, show_default=False)] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample among the likeliest of this joint probability.", min=0, max=1, show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)] = None,
    top_k_next: Annotated[
        int | None,
        typer.Option(help="Print the likeliest next words and their probabilities instead.", min=1, show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt; the text is streamed as it comes.

    Example: hfpretrain generate "I love to eat pizza with" --words 1
    """
    causal: CausalLM = load_model(model, "clm")
    if top_k_next is not None:
        print_next_words(causal, prompt, top_k_next, as_json)
        return
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "words": words,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    if as_json:
        text = causal.generate(prompt, **settings)
        typer.echo(json.dumps({"prompt": prompt, "continuation": text}, ensure_ascii=False))
        return
    for piece in causal.stream(prompt, **settings):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


app.command()(evaluate)


@app.command()
def push(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a checkpoint or a model folder.", show_default=False)
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name on the Hub.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; without it, private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch, made if there is none. Default: main.", show_default=False)
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.", show_default=False)] = None,
) -> None:
    """Push a model to the Hub, private unless told otherwise. Repeated, it sends what is missing.

    Example: hfpretrain push runs/quickstart-mlm my-name/quickstart-mlm
    """
    prepare_environment()
    from hfpretrain.publish import AGAIN, push

    def stop(number: int, frame: object) -> None:
        typer.echo(f"stopped; {AGAIN}", err=True)
        leave(128 + number)

    # Python would wait for the uploads on other threads.
    signal.signal(signal.SIGINT, stop)
    for pushed in push(model, repo_id, public=public, revision=revision, message=message):
        if not pushed.changed:
            log.info("the Hub has all of it already")
        typer.echo(pushed.url)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    replay: Annotated[
        int | None,
        typer.Option(
            "--replay",
            metavar="N",
            help="Train N steps again from a checkpoint and compare.",
            min=1,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check every file of a run against its manifests. Exit status 1 if something is not what was saved.

    Example: hfpretrain verify runs/quickstart-clm --replay 50
    """
    prepare_environment()
    from hfpretrain import verify

    good = True
    with stop_on_signals():
        for finding in chain(verify.verify(run), verify.replay(run, replay) if replay else ()):
            good &= finding.good
            typer.echo(f"{finding.what:<36} {finding.found}")
    if not good:
        leave(1)


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List the runs here, a line each, newest first."""
    from hfpretrain.run import runs

    lines: list[dict[str, Any]] = [{"run": str(run.path), **vars(run.summary())} for run in runs(folder)]
    if as_json:
        typer.echo(json.dumps(lines))
        return
    if not lines:
        log.info("no runs in %s", folder)
    width = max((len(str(line["run"])) for line in lines), default=0)
    for line in lines:
        loss = f"loss {line['loss']:.4f}" if line["loss"] is not None else ""
        tokens = f"{line['tokens']} tokens" if line["tokens"] is not None else ""
        typer.echo(
            f"{line['run']:<{width}}  {line['state']:<8}  {line['objective'] or '':<3}  {tokens}  {loss}".rstrip()
        )


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Write a copy of this one to edit.", show_default=False)] = None,
) -> None:
    """List the shipped recipes; with a name, write a copy into this folder.

    Example: hfpretrain recipes quickstart-mlm
    """
    from hfpretrain.shipped import copy_recipe, shipped_recipes

    if name is not None:
        for target in copy_recipe(name):
            typer.echo(str(target))
        return
    found = shipped_recipes()
    width = max(map(len, found))
    for stem, summary in found.items():
        typer.echo(f"{stem:<{width}}  {summary}")


@app.command()
def schema() -> None:
    """Print the recipe's JSON Schema."""
    from hfpretrain.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def env(as_json: AsJson = False) -> None:
    """Print versions and hardware, for a bug report."""
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


def main() -> NoReturn:
    """The entry point: our errors as a sentence and their exit status, nothing else."""
    said = logging.getLogger("hfpretrain")
    said.setLevel(logging.INFO)
    handler = CurrentStderr()
    said.addHandler(handler)
    try:
        app()
    except HFPretrainError as error:
        typer.echo(f"error: {without_secrets(str(error))}", err=True)
        leave(error.exit_status)
    except StopNow as stop:
        typer.echo(f"error: {stop}", err=True)
        leave(128 + stop.signal)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        leave(130)
    finally:
        said.removeHandler(handler)
    sys.exit(0)
