"""`python -m chaos`, in the folder tests: disturbs runs in every way and prints a table of what came of it.

Exit status 1 if a single run did not end as the undisturbed one did; its folder is kept.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chaos.experiment import Disturbance, Experiment, Outcome, at_point, at_random, restarted, signalled
from chaos.points import POINTS


@dataclass(frozen=True)
class Case:
    """One disturbed run; `kind` is its line in the table."""

    experiment: Experiment
    kind: str
    name: str
    disturbances: list[Disturbance]

    def run(self, seed: int) -> tuple[str, ...]:
        """Its row of the table."""
        began = time.time()
        outcome = self.experiment.run(
            self.name, *self.disturbances, seed=f"{seed}/{self.experiment.folder.name}/{self.name}"
        )
        say(f"{self.experiment.folder.name}/{self.name}: {outcome.ended}; {time.time() - began:.0f} s")
        return row(
            self.experiment, self.kind if outcome.ended == "killed" else f"{self.kind}: {outcome.ended}", outcome
        )


def row(experiment: Experiment, kind: str, outcome: Outcome) -> tuple[str, ...]:
    """The cells of a table's row; the last one is empty unless all is well."""
    if outcome.trouble:
        say(f"FAILED, {experiment.folder.name}, {kind}: {outcome.trouble}")
    return experiment.objective, str(experiment.processes), kind, "" if outcome.trouble else "identical"


def kills(experiment: Experiment, count: int, seed: int) -> list[Case]:
    """Half of them at the named points in turn, the others at random moments, some of these twice in one run."""
    choices = random.Random(f"{seed}/{experiment.folder.name}")
    points = list(POINTS)
    if experiment.processes == 2:
        choices.shuffle(points)  # there are fewer kills than points
    cases = []
    for number in range(count - count // 2):
        point = points[number % len(points)]
        nth = choices.randint(POINTS[point].lowest, POINTS[point].highest)
        name = f"kill-{number}-{point.replace(' ', '-')}-{nth}"
        cases.append(Case(experiment, f"kill {point}", name, [at_point(point, nth)]))
    for number in range(count - count // 2, count):
        kind, disturbances = "kill at a random moment", [at_random()]
        if number % 3 == 2 and experiment.processes == 2:
            kind, disturbances = "kill of one of the two, at a random moment", [at_random(rank=1)]
        elif number % 3 == 2:
            kind, disturbances = "kill at a random moment, and another after --resume", [at_random(of=2)] * 2
        cases.append(Case(experiment, kind, f"kill-{number}-random", disturbances))
    return cases


def restarts(experiment: Experiment, count: int) -> list[Case]:
    """At random moments, of one process or the other."""
    kind = "kill of one of the two, restarted by torchrun"
    return [Case(experiment, kind, f"restart-{number}", [restarted()]) for number in range(count)]


def signals(experiment: Experiment, count: int) -> list[Case]:
    """At random moments."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    return [
        Case(experiment, "signal", f"signal-{number}-{kinds[number % 3].name}", [signalled(kinds[number % 3])])
        for number in range(count)
    ]


def table(rows: list[tuple[str, ...]]) -> str:
    """Equal rows counted, as Markdown."""
    lines = ["| objective | processes | disturbance | runs | identical at the end |", "|---|--:|---|--:|--:|"]
    all_of, identical = Counter(row[:-1] for row in rows), Counter(row[:-1] for row in rows if row[-1])
    lines += [f"| {' | '.join(cells)} | {count} | {identical[cells]} |" for cells, count in all_of.items()]
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each objective, in one process")
    parser.add_argument("--two-process-kills", type=int, default=3, help="of each objective, in two processes")
    parser.add_argument("--restarts", type=int, default=5, help="of each objective, in two processes, by torchrun")
    parser.add_argument("--signals", type=int, default=25, help="of each objective")
    parser.add_argument("--fresh", type=int, default=3, help="undisturbed runs of each objective")
    parser.add_argument("--seed", type=int, default=0, help="what chooses the moments")
    parser.add_argument("--side-by-side", type=int, default=2, help="processes at the same time")
    options = parser.parse_args()
    began = time.time()
    folder = Path(tempfile.mkdtemp(prefix="hfpretrain-chaos-"))
    say(f"runs are in {folder}")
    rows: list[tuple[str, ...]] = []
    single: list[Case] = []
    double: list[Case] = []
    for objective in ("clm", "mlm"):
        alone = Experiment(folder / objective, objective, fresh=options.fresh, side_by_side=options.side_by_side)
        say(f"{objective}: {alone.starting_seconds:.1f} s until it trains, {alone.training_seconds:.1f} s from there")
        rows += [row(alone, "none: fresh runs of one recipe", outcome) for outcome in alone.fresh]
        single += kills(alone, options.kills, options.seed) + signals(alone, options.signals)
        if options.two_process_kills or options.restarts:
            together = Experiment(folder / f"{objective}-two-processes", objective, processes=2)
            double += kills(together, options.two_process_kills, options.seed) + restarts(together, options.restarts)
    with ThreadPoolExecutor(options.side_by_side) as threads:
        rows += threads.map(lambda case: case.run(options.seed), single)
    rows += [case.run(options.seed) for case in double]
    print(table(rows))
    good = sum(1 for each in rows if each[-1])
    print(f"\n{good} of {len(rows)} runs are identical. Seed {options.seed}, {(time.time() - began) / 60:.0f} minutes.")
    if good == len(rows):
        shutil.rmtree(folder)
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
