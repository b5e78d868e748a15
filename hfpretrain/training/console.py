"""What a person sees while a run goes on: a bar and the curve of the loss on a terminal, plain lines in a log."""

import logging
from types import TracebackType

from hfpretrain.amounts import count
from hfpretrain.terminal import Bar, Clock, wanted

log = logging.getLogger(__name__)


class Display:
    """Shows progress: `update` after each logged step."""

    LINES = 20
    """Plain lines per run, at most, besides those of evaluations."""

    def __init__(self, *, enabled: bool, done: float, steps: int | None) -> None:
        self.enabled, self.steps = enabled, steps
        self.clock, self.last_line, self.done = Clock(done), done, done
        self.words: tuple[str, ...] = ()
        self.bar = Bar("training") if enabled and wanted() else None

    def __enter__(self) -> "Display":
        if self.bar:
            self.bar.update(self.done)
            self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.__exit__(kind, error, trace)

    def update(self, step: int, done: float, loss: float, tokens_per_second: float) -> None:
        if not self.enabled:
            return
        of = f"/{self.steps}" if self.steps else ""
        at, left = f"step {step}{of}  loss {loss:.4f}", self.clock.left(done)
        speed = f"{count(tokens_per_second)} tokens/s"
        if self.bar:
            self.done, self.words = done, (at, left, speed)
            self.bar.add(loss)
            self.bar.update(done, *self.words)
        elif done >= 1 or done - self.last_line >= 1 / self.LINES:
            self.last_line = done
            log.info("%s  %s  %s", at, speed, left)

    def evaluating(self, done: int, of: int) -> None:
        """Micro-batches of an evaluation that the model has seen."""
        if self.bar:
            self.bar.update(self.done, *self.words[:1], f"evaluating {done / max(of, 1):.0%}")
            if done >= of:
                self.bar.update(self.done, *self.words)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.enabled:
            return
        if self.bar:
            self.bar.console.print(text, markup=False, soft_wrap=True)
        else:
            log.info("%s", text)
