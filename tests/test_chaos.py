"""Chaos in short: a run that is killed with -9 ends as if nothing had happened. `make chaos` does it at length."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.experiment import Experiment, at_point, at_random


def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    """While the manifest is missing, while old checkpoints are removed, and at a random moment of training."""
    experiment = Experiment(tmp_path / "mlm", "mlm")
    kills = {
        "manifest": at_point("before the manifest", 3),
        "pruning": at_point("while pruning", 9),
        "random": at_random(),
    }
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(lambda name: experiment.run(name, kills[name], name), kills))
    assert [outcome.trouble for outcome in outcomes] == [None] * 3
    assert [outcome.ended for outcome in outcomes] == ["killed"] * 3
