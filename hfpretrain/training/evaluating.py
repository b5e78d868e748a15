"""Evaluations during a run: what they are written down as, and that a signal puts them off."""

from hfpretrain.card import sample_in_words
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.training.begin import Progress
from hfpretrain.training.console import Display
from hfpretrain.training.guard import gathered
from hfpretrain.training.metrics import Metrics
from hfpretrain.training.reporting import refresh_page
from hfpretrain.training.samples import samples_now
from hfpretrain.training.session import Session
from hfpretrain.training.signals import StopRequest


def evaluate_now(
    session: Session, metrics: Metrics, display: Display, at: Progress, request: StopRequest, *, everything: bool
) -> None:
    """Evaluates, writes and shows the result. Asked to stop, it leaves that for the resume."""
    gathered(session, metrics)
    most = None if everything else session.recipe.evaluation.max_tokens
    evaluated = session.evaluator(
        # Not the wrapped one, whose processes would wait for each other at every forward.
        session.accelerator.unwrap_model(session.model, keep_torch_compile=True),
        micro_batch_size=session.micro_batch_size,
        max_tokens=most,
        stopped=lambda: bool(request.signal),
        tell=display.evaluating,
    )
    # A sharded model runs on all processes together, so that each has the samples made.
    asked = session.accelerator.is_main_process or is_sharded(session.model)
    shown = samples_now(session) if evaluated and asked else []
    at.evaluation_due = evaluated is None
    if evaluated is None:
        metrics.restart_clock()
        return
    at.evaluated, at.evaluated_after, at.evaluated_all = evaluated, at.step, most is None
    metrics.write({"step": at.step, **evaluated.as_dict()} | ({"samples": shown} if shown else {}))
    display.say(f"step {at.step}: {evaluated}")
    for sample in shown:
        display.say("  " + " ".join(sample_in_words(sample).split()))
    refresh_page(session, at)
    metrics.restart_clock()
