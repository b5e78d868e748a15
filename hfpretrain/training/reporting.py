"""The report of a run while it goes on and at its end. What fails here is said once, and stops nothing."""

import logging

from hfpretrain.data.floor import grammar_loss
from hfpretrain.files import write_whole
from hfpretrain.report import Curves, Told, page, write_page
from hfpretrain.run import Run
from hfpretrain.training.begin import Progress
from hfpretrain.training.session import Session

log = logging.getLogger(__name__)

CANNOT = "the report cannot be written (%s: %s); hfpretrain report %s tries again"


def refresh_page(session: Session, at: Progress) -> None:
    """Writes report.html anew if there is something new to show. Only the first process does.

    What was added to metrics.jsonl since the last time is all that is read.
    """
    if not session.accelerator.is_main_process:
        return
    run, plan = session.run, session.plan
    try:
        if not session.curves.read(run.metrics_file):
            return
        facts = {**session.facts, "seconds": at.seconds, "done": plan.done(at.step, at.seconds)}
        facts |= {"validation_floor": floor_of(session), "planned_steps": plan.steps}
        told = Told.from_facts(session.recipe.name, "running", facts, session.curves, session.recipe)
        write_whole(run.page_file, page(told))
    except Exception as error:  # whatever it is, the run is worth more
        if not session.said_no_page:
            session.said_no_page = True
            log.warning(CANNOT, type(error).__name__, error, run.path)


def add_page(run: Run, curves: Curves | None = None) -> None:
    """Writes the page of a finished run; `curves` are those that were read so far."""
    try:
        write_page(run, curves=curves)
    except Exception as error:
        log.warning(CANNOT, type(error).__name__, error, run.path)


def floor_of(session: Session) -> float | None:
    """What the builtin corpus allows, found out once: see `grammar_loss`."""
    if "validation_floor" not in session.facts:
        isolated = session.facts["packing"] == "documents"
        session.facts["validation_floor"] = grammar_loss(session.recipe, session.batches, isolated=isolated)
    floor: float | None = session.facts["validation_floor"]
    return floor
