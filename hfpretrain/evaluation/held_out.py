"""The held-out blocks: every target once, with masks that never change; or every token masked by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hfpretrain.data.batches import Batches, Row
from hfpretrain.data.blocks import PADDING
from hfpretrain.evaluation.looking import Looker
from hfpretrain.modeling.loss import Scores
from hfpretrain.modeling.objective import IGNORED, Collator, MicroBatch, target_places


@dataclass(frozen=True)
class Sums:
    """Over all that was looked at."""

    nats: float
    targets: int
    right: int
    right_in_5: int
    tokens: int
    """Of the blocks, padding not counted."""


def look_at_blocks(
    looker: Looker,
    batches: Batches,
    collator: Collator,
    count: int,
    *,
    micro_batch_size: int,
    each: Callable[[int, Scores], None],
) -> Sums:
    """The first `count` held-out blocks in their fixed seeded order; processes take turns by micro-batch.

    `each` gets the place of a micro-batch's first block and what the model made of it.
    """
    group, groups = looker.place.number, looker.place.of
    starts = range(group * micro_batch_size, count, groups * micro_batch_size)
    micro_batches = (
        collator(batches.validation_rows(range(start, min(start + micro_batch_size, count)))) for start in starts
    )
    found = []
    # It may be stopped before the last; asked first, as of a sharded model it goes on while another process looks.
    for (batch, scores), start in zip(looker.scores(micro_batches, len(starts)), starts, strict=False):
        found.append(_sums(batch, scores))
        each(start, scores)
    return _added(looker, found)


def look_at_each_token(
    looker: Looker, batches: Batches, collator: Collator, count: int, mask_id: int, *, micro_batch_size: int
) -> Sums:
    """Each token of those blocks masked by itself, a forward pass per token (Salazar et al. 2020)."""
    group, groups = looker.place.number, looker.place.of
    rows = (row for place in range(group, count, groups) for row in batches.validation_rows(range(place, place + 1)))
    micro_batches = (batch for row in rows for batch in masked_one_by_one(row, collator, mask_id, micro_batch_size))
    assert batches.validation is not None
    of = len(range(group, count, groups)) * -(-batches.validation.block_size // micro_batch_size)
    return _added(looker, [_sums(batch, scores) for batch, scores in looker.scores(micro_batches, of)])


def masked_one_by_one(row: Row, collator: Collator, mask_id: int, size: int) -> Iterator[MicroBatch]:
    """Copies of a block, `size` at once, each with another token masked, which is its only target."""
    ids, documents = (torch.from_numpy(each[:-1]) for each in (row.block.token_ids, row.block.documents))
    maskable = torch.from_numpy(collator.maskable(row)).nonzero()[:, 0]
    for start in range(0, len(maskable), size):
        places = maskable[start : start + size]
        copies = torch.arange(len(places))
        labels = torch.full((len(places), len(ids)), IGNORED)
        labels[copies, places] = ids[places]
        input_ids = ids.repeat(len(places), 1)
        input_ids[copies, places] = mask_id
        batch = {"input_ids": input_ids, "labels": labels, "document_ids": documents.repeat(len(places), 1)}
        yield batch | {"targets": target_places(labels)}


def _sums(batch: MicroBatch, scores: Scores) -> Tensor:
    """As `Sums` has them, float32 [5] on the device, which is not waited for."""
    targets = scores.labels != IGNORED
    hits = (scores.best == scores.labels[:, None]) & targets[:, None]
    right = hits[:, 0].sum(), hits.sum()
    tokens = (batch["document_ids"] != PADDING).sum()
    return torch.stack([each.float() for each in (scores.nats.sum(), targets.sum(), *right, tokens)])


def _added(looker: Looker, found: list[Tensor]) -> Sums:
    own = torch.stack(found).cpu().double().sum(0) if found else torch.zeros(5, dtype=torch.float64)
    nats, *counts = looker.added(own).tolist()
    return Sums(nats, *map(int, counts))
