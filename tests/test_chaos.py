"""Chaos in short: a run that is killed with -9 ends as if nothing had happened. `make chaos` does it at length."""

from pathlib import Path

from chaos.experiment import Experiment, Outcome, at_point, at_random


def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    """Of one run: without a manifest, then while an old checkpoint is removed, then at a random moment."""
    experiment = Experiment(tmp_path / "mlm", "mlm")
    kills = at_point("before the manifest", 3), at_point("while pruning", 3), at_random(of=3)
    assert experiment.run("killed", *kills, seed="0") == Outcome("killed")
