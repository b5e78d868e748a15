"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

import json
import logging
import signal
import sys
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hfpretrain.cli_about import env, recipes, schema
from hfpretrain.cli_check import check
from hfpretrain.cli_data import print_sources
from hfpretrain.cli_evaluate import evaluate
from hfpretrain.cli_experiments import find_lr, sweep
from hfpretrain.cli_export import export
from hfpretrain.cli_init import init
from hfpretrain.cli_models import load_model, print_next_words, vars_of
from hfpretrain.cli_options import (
    AsJson,
    ModelFolder,
    ModelName,
    Overrides,
    RecipeFile,
    RunFolder,
)
from hfpretrain.cli_report import report
from hfpretrain.cli_runs import list_runs
from hfpretrain.cli_train import train
from hfpretrain.cli_ui import ui
from hfpretrain.errors import HFPretrainError
from hfpretrain.failures import report as report_failure
from hfpretrain.process import CurrentStderr, leave, prepare_environment
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


app.command()(train)


app.command()(check)
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

    \b
    Examples:
      hfpretrain data my.yaml
      hfpretrain data my.yaml --shard 3/16
      hfpretrain data my.yaml --json
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

    \b
    Examples:
      hfpretrain fill "The quick [MASK] fox jumps over the lazy dog."
      hfpretrain fill "A [MASK] day." --model runs/my --top-k 3
      hfpretrain fill "A <mask> day." --json
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

    \b
    Examples:
      hfpretrain generate "I love to eat pizza with" --words 1
      hfpretrain generate "Once" --model runs/my --temperature 0.8 --seed 1
      hfpretrain generate "I love to eat" --top-k-next 5
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
app.command()(report)
app.command()(export)
app.command()(ui)


@app.command()
def push(
    model: ModelFolder,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="org/name on the Hub.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; without it, private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch, made if there is none. Default: main.", show_default=False)
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.", show_default=False)] = None,
) -> None:
    """Push a model to the Hub, private unless told otherwise. Repeated, it sends what is missing.

    \b
    Examples:
      hfpretrain push runs/my my-name/my
      hfpretrain push runs/my my-name/my --public --message "First model"
      hfpretrain push runs/my my-name/my --revision second-try
    """
    prepare_environment(their_bars=True)
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
    run: RunFolder,
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

    \b
    Examples:
      hfpretrain verify runs/my
      hfpretrain verify runs/my --replay 50
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


app.command("runs")(list_runs)


app.command()(recipes)
app.command()(schema)
app.command()(env)


def fail(sentence: str, exit_status: int) -> NoReturn:
    """Ends the process with the sentence, which only one of several processes says."""
    if report_failure(sentence, exit_status):
        typer.echo(f"error: {without_secrets(sentence)}", err=True)
    leave(exit_status)


def main() -> NoReturn:
    """The entry point: our errors as a sentence and their exit status, nothing else."""
    said = logging.getLogger("hfpretrain")
    said.setLevel(logging.INFO)
    handler = CurrentStderr()
    said.addHandler(handler)
    try:
        app()
    except HFPretrainError as error:
        fail(str(error), error.exit_status)
    except StopNow as stop:
        fail(str(stop), 128 + stop.signal)
    except Exception as error:  # Python shows where; a launcher shows why
        report_failure(f"{type(error).__name__}: {error}", 1)
        raise
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        leave(130)
    finally:
        said.removeHandler(handler)
    sys.exit(0)
