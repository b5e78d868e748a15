"""The report of a run while it goes on and at its end. What fails here is said once, and stops nothing."""

import logging

from hfpretrain.data.floor import grammar_loss
from hfpretrain.errors import UserError
from hfpretrain.report import Told, page, write_page, write_text
from hfpretrain.run import Run
from hfpretrain.training.begin import Progress
from hfpretrain.training.session import Session

log = logging.getLogger(__name__)


def refresh_page(session: Session, at: Progress, *, begins: bool = False) -> None:
    """Writes report.html anew if there is something new to show, or the run `begins`. Only the first process does.

    What was added to metrics.jsonl since the last time is all that is read.
    """
    if not session.accelerator.is_main_process:
        return
    run, plan = session.run, session.plan
    try:
        if session.curves.read(run.metrics_file) or begins:
            facts = {**session.facts, "seconds": at.seconds, "done": plan.done(at.step, at.seconds)}
            facts |= {"validation_floor": floor_of(session), "planned_steps": plan.steps}
            told = Told.from_facts(session.recipe.name, "running", facts, session.curves, session.recipe)
            write_text(run.page_file, page(told))
            if begins:
                log.info("report: %s, written anew at each evaluation", run.page_file)
    except Exception as error:  # whatever it is, the run is worth more
        say(error, run, session)


def add_page(run: Run, session: Session | None = None) -> None:
    """Writes the page of a finished run; of the session that it was, what is read already is not read again."""
    try:
        write_page(run, curves=session.curves if session else None)
    except Exception as error:
        say(error, run, session)


def say(error: Exception, run: Run, session: Session | None) -> None:
    """Once."""
    if session is None or not session.said_no_page:
        what = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        log.warning("the report is not written (%s); hfpretrain report %s tries again", what, run.path)
    if session is not None:
        session.said_no_page = True


def floor_of(session: Session) -> float | None:
    """What the builtin corpus allows, found out once: see `grammar_loss`."""
    if "validation_floor" not in session.facts:
        isolated = session.facts["packing"] == "documents"
        session.facts["validation_floor"] = grammar_loss(session.recipe, session.batches, isolated=isolated)
    floor: float | None = session.facts["validation_floor"]
    return floor
