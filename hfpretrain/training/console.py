"""What a person sees while a run goes on: a bar on a terminal, plain lines in a log. All on stderr."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hfpretrain.amounts import count, span

log = logging.getLogger(__name__)


class Display:
    """Shows progress: `update` after each logged step."""

    LINES = 20
    """Plain lines per run, at most, besides those of evaluations."""

    def __init__(self, *, enabled: bool, done: float, steps: int | None) -> None:
        self.enabled, self.steps = enabled, steps
        self.start_done, self.start_time, self.last_line = done, time.monotonic(), done
        self.bar: Progress | None = None
        console = Console(stderr=True)
        if enabled and console.is_terminal and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=console
            )
            self.task = self.bar.add_task("training", total=1.0, completed=int(done), text="")

    def __enter__(self) -> "Display":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, step: int, done: float, loss: float, tokens_per_second: float) -> None:
        if not self.enabled:
            return
        passed = time.monotonic() - self.start_time
        left = passed / max(done - self.start_done, 1e-9) * (1 - done)
        of = f"/{self.steps}" if self.steps else ""
        text = f"step {step}{of}  loss {loss:.4f}  {count(tokens_per_second)} tokens/s  {span(left)} left"
        if self.bar:
            self.bar.update(self.task, completed=done, text=text)
        elif done >= 1 or done - self.last_line >= 1 / self.LINES:
            self.last_line = done
            log.info("%s", text)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.enabled:
            return
        if self.bar:
            self.bar.console.print(text, highlight=False)
        else:
            log.info("%s", text)
