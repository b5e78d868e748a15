"""Showing a model what is held out: each process its share, with sums over all of them at the end."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from hfpretrain.modeling.loss import Loss, Scores
from hfpretrain.modeling.objective import MicroBatch


class GivenUp(Exception):
    """One of the processes was asked to stop."""


@dataclass(kw_only=True)
class Looker:
    """Shows a model micro-batches, until `stopped` says that there is no time for it."""

    model: torch.nn.Module
    loss: Loss
    accelerator: Accelerator
    stopped: Callable[[], bool] = lambda: False
    tell: Callable[[int, int], None] = lambda done, of: None
    """Called after each micro-batch with how many there were, and how many there are, about."""
    given_up: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def scores(self, micro_batches: Iterable[MicroBatch], of: int) -> Iterator[tuple[MicroBatch, Scores]]:
        """Each micro-batch, on the device, with what the model made of it; `stopped` is asked before each.

        `of` is how many there are, about.
        """
        for number, batch in enumerate(micro_batches, start=1):
            if self.stopped():
                self.given_up = True
                return
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            with self.accelerator.autocast():
                scores = self.loss.scores(self.model, batch)
            self.tell(number, max(of, number))
            yield batch, scores

    def added(self, own: Tensor) -> Tensor:
        """The sum of all processes' float64 numbers. Raises GivenUp on all of them if one has given up."""
        numbers = torch.cat([own, own.new_tensor([float(self.given_up)])])
        if self.accelerator.num_processes > 1:
            numbers = self.accelerator.reduce(numbers.to(self.accelerator.device), reduction="sum").cpu()
        if numbers[-1]:
            raise GivenUp
        return numbers[:-1]
