"""metrics.jsonl: a line per logged step and per evaluation, in step order, none twice."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hfpretrain.training.guard import Step
from hfpretrain.training.lines import Lines, Written
from hfpretrain.training.trackers import Trackers

PHASES = ("data", "forward_backward", "optimizer")
"""What the time of a step is split into; the rest is other."""


@dataclass
class Window:
    """Sums since the last logged step. Saved with a checkpoint, so that a resumed run logs the same averages."""

    loss: float = 0.0
    targets: int = 0
    gradient_norm: float = 0.0
    steps: int = 0
    nonfinite: int = 0
    """Steps whose loss or gradient was no number: they count in `steps` only."""
    spikes: int = 0
    overflows: int = 0
    """Steps left out by fp16's loss scale: their gradient does not count in `gradient_norm`."""
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the time that each phase took, and other."""
        shares = {name: self.phases.get(name, 0.0) / max(self.seconds, 1e-9) for name in PHASES}
        # A GPU works on while Python waits for data: only what the GPU was idle is time lost.
        busy = shares["forward_backward"] + shares["optimizer"]
        shares["data"] = min(shares["data"], max(0.0, 1 - busy))
        return {
            name: round(share, 4) for name, share in (shares | {"other": max(0.0, 1 - sum(shares.values()))}).items()
        }


class Phases:
    """Measures the phases of steps: by the clock, or on CUDA, which works on while Python goes ahead, by its events."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str, *, on_device: bool = True) -> Iterator[None]:
        """Counts what happens inside as the phase `name`; `on_device` says whether it is the device's work."""
        if self.on_cuda and on_device:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self.events.append((name, start, end))
            return
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """The seconds since the last time. The device has to have been waited for."""
        for name, start, end in self.events:
            self.seconds[name] = self.seconds.get(name, 0.0) + start.elapsed_time(end) / 1000
        self.events.clear()
        seconds, self.seconds = self.seconds, {}
        return seconds


class Metrics:
    """Collects what each step came to on the device, and writes a line when asked."""

    def __init__(
        self, phases: Phases, window: Window, steady: Window, lines: Lines | None, trackers: Trackers | None = None
    ) -> None:
        self.phases, self.window = phases, window
        self.lines, self.trackers = lines, trackers
        """What the first process writes, and whom it tells."""
        self.steady, self.warm, self.last = steady, False, Window()
        """`steady`: steps and seconds of all windows but the first after a start, which warms up."""
        self.clock = time.monotonic()
        self.added: list[tuple[int, int, torch.Tensor]] = []
        self.unheard: list[Step] = []
        """Steps gathered, for `heed` to hear of."""

    def add(self, step: int, targets: int, outcome: torch.Tensor) -> None:
        """One step, counted from 1: its targets, and what `train_step` returned, all over all processes."""
        self.added.append((step, targets, outcome))

    def gather(self) -> Window:
        """The window with everything added so far. This is where the device is waited for."""
        if self.added:
            outcomes = torch.stack([outcome for *_, outcome in self.added]).cpu().double().tolist()
            for (number, targets, _), (loss, norm, *judged) in zip(self.added, outcomes, strict=True):
                step = Step(number, loss, targets, norm, *map(bool, judged))
                self.unheard.append(step)
                self.window.steps += 1
                self.window.nonfinite += step.nonfinite
                self.window.spikes += step.spike
                self.window.overflows += step.overflow
                if not step.nonfinite:
                    self.window.loss += loss
                    self.window.targets += targets
                    self.window.gradient_norm += 0.0 if step.overflow else norm
            self.added = []
            for name, seconds in self.phases.take().items():
                self.window.phases[name] = self.window.phases.get(name, 0.0) + seconds
        now = time.monotonic()
        self.window.seconds += now - self.clock
        self.clock = now
        return self.window

    def restart_clock(self) -> None:
        """What passed since the last `gather` (an evaluation, a checkpoint) is not training time."""
        self.clock = time.monotonic()

    def start_window(self) -> None:
        if self.warm:
            self.steady.steps += self.window.steps
            self.steady.seconds += self.window.seconds
        self.warm, self.last, self.window = True, self.window, Window()

    @property
    def seconds_per_step(self) -> float | None:
        """Without warm-up, evaluation and saving; of a run that logged once with its warm-up, of none None."""
        window = self.steady if self.steady.steps else self.last
        return window.seconds / window.steps if window.steps else None

    def write(self, line: dict[str, Any]) -> None:
        if self.lines:
            self.lines.add(json.dumps(line))
        if self.trackers:
            self.trackers.tell(line)

    def save(self) -> Written:
        """Makes what was written durable, as far as that is possible."""
        return self.lines.save() if self.lines else Written()

    def finish(self) -> None:
        """The last thing of a run, however it ends: trackers send what they still hold."""
        if self.trackers:
            self.trackers.finish()
