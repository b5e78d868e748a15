"""Showing a model what is held out: each process its share, with sums over all of them at the end."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

import torch
from accelerate import Accelerator
from torch import Tensor

from hfpretrain.modeling.loss import Loss, Scores
from hfpretrain.modeling.objective import MicroBatch, target_places
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.place import Place


def few_tokens() -> MicroBatch:
    """A micro-batch of one short block."""
    ids = torch.arange(8)[None]
    documents = torch.zeros_like(ids)
    return {"input_ids": ids, "labels": ids, "document_ids": documents, "targets": target_places(ids)}


class GivenUp(Exception):
    """One of the processes was asked to stop."""


@dataclass(kw_only=True)
class Looker:
    """Shows a model micro-batches, until `stopped` says that there is no time for it."""

    model: torch.nn.Module
    loss: Loss
    accelerator: Accelerator
    place: Place = Place()
    """Who has seen the same as a neighbour does not count."""
    stopped: Callable[[], bool] = lambda: False
    tell: Callable[[int, int], None] = lambda done, of: None
    """Called after each micro-batch with how many there were, and how many there are, about."""
    given_up: bool = False

    def scores(self, micro_batches: Iterable[MicroBatch], of: int) -> Iterator[tuple[MicroBatch, Scores]]:
        """Each micro-batch, on the device, with what the model made of it; `stopped` is asked before each.

        `of` is how many there are, about. A sharded model is run by all processes together: who has no more runs it on
        a few tokens that do not count, as long as another one has some.
        """
        together = is_sharded(self.model)
        number = 0
        for batch in chain(micro_batches, repeat(None) if together else ()):
            self.given_up, more = self.stopped(), batch is not None
            if together:
                self.given_up, more = self._any(self.given_up, more)
            if self.given_up or not more:
                return
            shown = {name: each.to(self.accelerator.device) for name, each in (batch or few_tokens()).items()}
            with self.accelerator.autocast():
                scores = self.loss.scores(self.model, shown)
            if batch is not None:
                number += 1
                self.tell(number, max(of, number))
                yield shown, scores

    def _any(self, *here: bool) -> list[bool]:
        """Whether each is so on one of the processes at least."""
        told = torch.tensor(here, dtype=torch.float32, device=self.accelerator.device)
        return [bool(each) for each in self.accelerator.reduce(told, reduction="sum").tolist()]

    def added(self, own: Tensor) -> Tensor:
        """The sum of all processes' float64 numbers. Raises GivenUp on all of them if one has given up."""
        numbers = torch.cat([self.place.once(own), own.new_tensor([float(self.given_up)])])
        if self.accelerator.num_processes > 1:
            numbers = self.accelerator.reduce(numbers.to(self.accelerator.device), reduction="sum").cpu()
        if numbers[-1]:
            raise GivenUp
        return numbers[:-1]
