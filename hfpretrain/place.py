"""What of a run is a process's own: its part of each batch, which with tensor parallelism neighbours see together, and
how much of the model."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Parallel


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that share out a batch.

    Everything that is learnt follows from `number` and `of`: rows, dropout, gradients, sums. How many processes there
    are counts for machines and waiting only.
    """

    number: int = 0
    """Of the group of processes that see the same rows, from 0; without tensor parallelism each is a group."""
    of: int = 1
    """How many groups there are."""
    member: int = 0
    """The number of this process in its group."""

    @staticmethod
    def in_run(accelerator: Accelerator, settings: Parallel) -> "Place":
        """The place of this process. Raises RecipeError where the processes do not make whole groups.

        One process alone has nothing to share out, whatever the settings say.
        """
        processes = int(accelerator.num_processes)
        size = settings.tensor if processes > 1 else 1
        if processes % size:
            raise RecipeError(
                f"parallel.tensor: {processes} processes are no groups of {size}",
                hint="set a divisor of the number of processes",
            )
        return Place(accelerator.process_index // size, processes // size, accelerator.process_index % size)

    def once(self, tensor: Tensor) -> Tensor:
        """What this process adds to a sum over all processes: all members of a group have found the same."""
        return torch.zeros_like(tensor) if self.member else tensor


def shares(settings: Parallel, processes: int) -> int:
    """Among how many processes the optimizer's state is shared out, if not the weights too; 1 where each holds all."""
    if processes == 1:
        return 1
    within = {"fsdp": settings.shard_within or processes, "deepspeed": processes}
    return within.get(settings.strategy, settings.tensor)


def bytes_each(settings: Parallel, processes: int) -> float:
    """Of each parameter a process keeps so many bytes of weight, gradient, AdamW's moments, and ZeRO's masters."""
    if settings.strategy != "deepspeed" or processes == 1:
        return 16 / shares(settings, processes)
    return {1: 8 + 12 / processes, 2: 4 + 16 / processes, 3: 18 / processes}[settings.zero_stage]


def in_words(settings: Parallel) -> str:
    """How several processes train a model, for the report: the strategy, and the size of tensor groups."""
    strategy = "ddp" if settings.strategy == "auto" else settings.strategy
    return f"{strategy}, tensor {settings.tensor}" if settings.tensor > 1 else strategy
