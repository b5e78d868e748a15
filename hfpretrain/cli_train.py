"""The command that trains: in this process, or in several that it starts."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfpretrain.cli_options import Overrides, RecipeFile, complete_run
from hfpretrain.cli_runs import print_run
from hfpretrain.errors import UserError
from hfpretrain.failures import restart_count
from hfpretrain.process import (
    accelerate_configuration,
    follow_launcher,
    launched,
    leave,
    prepare_environment,
    started_alone,
)
from hfpretrain.training.signals import stop_on_signals

if TYPE_CHECKING:
    from hfpretrain.run import Run

log = logging.getLogger(__name__)


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
        typer.Option(
            metavar="RUN",
            help="Start from the weights of this run, or checkpoint.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    with_optimizer: Annotated[
        bool, typer.Option("--with-optimizer", help="With --from-run: and from its optimizer's state.")
    ] = False,
    processes: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Train in N processes on this machine; auto: one for each GPU.", show_default=False
        ),
    ] = None,
    restarts: Annotated[
        int, typer.Option(help="With --processes: go on by itself so often, where one of them fails.", min=0)
    ] = 0,
) -> None:
    """Train what the recipe says.

    \b
    Examples:
      hfpretrain train my.yaml
      hfpretrain train my.yaml --resume
      hfpretrain train my.yaml train.duration="100 steps" output_dir=runs/try
      hfpretrain train my.yaml 'data.sources=[{files: my.txt}]' optimizer.lr=3e-4
      hfpretrain train my.yaml --from-run runs/first name=second
      hfpretrain train my.yaml --processes auto --restarts 3
    """
    given = Given(recipe, overrides or [], resume, allow_changes, from_run, with_optimizer)
    with stop_on_signals():  # from here on: importing the libraries takes seconds
        if with_optimizer and from_run is None:
            raise UserError("--with-optimizer goes with --from-run", hint="name the run whose state is meant")
        several = _number_of_processes(given, processes, restarts)
        if several is None:
            run, objective = _train_here(given)
    if several is not None:
        from hfpretrain.launching import run_in_processes

        if status := run_in_processes(several, given.arguments(), restarts=restarts):
            leave(status)
    elif int(os.environ.get("RANK", "0")) == 0:
        print_run(run, objective)


@dataclass(frozen=True)
class Given:
    """What was typed, without what is about processes."""

    recipe: Path
    overrides: Sequence[str]
    resume: bool
    allow_changes: bool
    from_run: str | None
    with_optimizer: bool

    def arguments(self) -> list[str]:
        """As it is typed."""
        options = {
            "--resume": self.resume,
            "--allow-changes": self.allow_changes,
            "--with-optimizer": self.with_optimizer,
        }
        said = [option for option, wanted in options.items() if wanted]
        said += [] if self.from_run is None else ["--from-run", self.from_run]
        return ["train", str(self.recipe), *self.overrides, *said]


def _number_of_processes(given: Given, processes: str | None, restarts: int) -> int | None:
    """How many are to be started; None if this one is to train itself. Raises UserError."""
    if processes is None:
        if restarts:
            raise UserError("--restarts goes with --processes", hint="say how many, or auto")
        return None
    if launched():
        what = "--processes starts processes itself, and this is one that torchrun or accelerate launch has started"
        raise UserError(what, hint="leave out one of the two")
    prepare_environment()
    if given.from_run is None:
        from hfpretrain.recipe import load

        load(given.recipe, given.overrides)  # what is wrong with it is wrong for all of them, and is said at once
    from hfpretrain.launching import number_of_processes

    several = number_of_processes(processes)
    if several == 1 and not restarts:
        return None
    if configuration := accelerate_configuration():
        log.info("%s is for `accelerate launch` and not read: --processes and the recipe say all", configuration)
    return several


def _train_here(given: Given) -> "tuple[Run, str]":
    """Trains in this process. Returns the run and the recipe's objective."""
    from hfpretrain.recipe import load

    follow_launcher()
    prepare_environment()
    if started_alone():
        log.warning(
            "`accelerate launch` starts a single process on a CPU, whatever --num_processes says; "
            "`hfpretrain train --processes N` starts several"
        )
    again = given.resume or given.allow_changes or bool(restart_count())
    if given.from_run is None:
        loaded = load(given.recipe, given.overrides)
    else:
        from hfpretrain.training.lineage import load_from_run

        optimizer = given.with_optimizer
        loaded = load_from_run(given.recipe, given.overrides, given.from_run, with_optimizer=optimizer, resume=again)
    from hfpretrain.training.loop import train

    return train(loaded, resume=again, allow_changes=given.allow_changes), loaded.objective
