"""What a run reads when: the sources of its stages, each known by one number, and what may not be said of them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

from hfpretrain.amounts import Amount
from hfpretrain.recipe_blocks import BatchRamp, Data, Recipe, Source, Stage, Train
from hfpretrain.recipe_contents import Keys, dotted

LONGEST_CYCLE = 1_000_000
"""Blocks after which the order of the sources repeats at the latest; it is kept in memory."""


def stages_of(data: Data) -> list[Stage]:
    """The stages with their sources and block sizes filled in; without any, the whole run is one."""
    return [
        dataclasses.replace(
            stage, sources=stage.sources or data.sources, block_size=stage.block_size or data.block_size
        )
        for stage in data.stages or (Stage(),)
    ]


def places_of_sources(data: Data) -> Iterator[tuple[Keys, Source, int]]:
    """Every place where a source of training stands: the way to it, the source, and its number.

    Two are the same source if they differ in weight and repeat only, which are a stage's own; what stands twice in one
    list is two.
    """
    known: dict[tuple[Source, int], int] = {}
    for keys, sources in _lists(data):
        before: Counter[Source] = Counter()
        for index, source in enumerate(sources):
            bare = dataclasses.replace(source, weight=None, repeat=True)
            number = known.setdefault((bare, before[bare]), len(known))
            before[bare] += 1
            yield (*keys, index), source, number


def training_sources(data: Data) -> list[tuple[str, Source]]:
    """Every source that training reads, once and by its number, under the key where it stands first."""
    found: dict[int, tuple[str, Source]] = {}
    for keys, source, number in places_of_sources(data):
        found.setdefault(number, (dotted(keys), source))
    return list(found.values())


def validation_sources(data: Data) -> list[tuple[str, Source]]:
    """The sources that are read for validation alone, each with its key: none where it is a share or the same list."""
    same = [source for _, source in training_sources(data)]
    if isinstance(data.validation, Amount) or list(data.validation) == same:
        return []
    return [(f"data.validation.{number}", source) for number, source in enumerate(data.validation)]


def source_numbers(data: Data) -> list[list[int]]:
    """The numbers of each stage's sources."""
    lists: dict[Keys, list[int]] = {}
    for keys, _, number in places_of_sources(data):
        lists.setdefault(keys[:-1], []).append(number)
    own: list[Keys] = [("data", "stages", number, "sources") for number in range(len(data.stages))]
    return [lists[keys if keys in lists else ("data", "sources")] for keys in own or [("data", "sources")]]


def longest_block(data: Data) -> tuple[str, int]:
    """The largest number of tokens that the model has to take at once, and the key that says it."""
    return max(((dotted(keys), size) for keys, size in block_sizes(data)), key=lambda item: item[1])


def block_sizes(data: Data) -> Iterator[tuple[Keys, int]]:
    """Every size of blocks that is said, with the way to it."""
    yield ("data", "block_size"), data.block_size
    for number, stage in enumerate(data.stages):
        if stage.block_size is not None:
            yield ("data", "stages", number, "block_size"), stage.block_size


def whole_weights(sources: Sequence[Source]) -> tuple[int, ...] | None:
    """The weights as the smallest whole numbers of the same ratio; None where there are none."""
    if all(source.weight is None for source in sources):
        return None
    exact = [Fraction(1) if source.weight is None else Fraction(str(source.weight)) for source in sources]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return tuple(weight // math.gcd(*whole) for weight in whole)


def batch_sizes(train: Train) -> tuple[int, int]:
    """The number of blocks of the first step, and of the largest."""
    size = train.batch_size
    return (size.from_, size.to) if isinstance(size, BatchRamp) else (size, size)


def batch_contradictions(train: Train) -> Iterator[tuple[Keys, str]]:
    """What is wrong with a batch that grows, or the micro-batches that it is cut into, each with a sentence."""
    first, last = batch_sizes(train)
    if isinstance(train.batch_size, BatchRamp):
        over, here = train.batch_size.over, ("train", "batch_size")
        if last % first:
            yield (*here, "to"), f"{last} is no multiple of {first}, by which the batch grows at a time"
        elif last == first:
            yield (*here, "to"), f"{last} is what the batch begins with; write batch_size: {last}"
        if over.unit == "seconds":
            yield (
                (*here, "over"),
                f"expects steps, tokens or percent of the run, not {over}: data follows from the step",
            )
        elif over.unit == "percent" and train.duration.unit == "seconds":
            said = f"{over} of {train.duration} is no number of steps that is known beforehand"
            yield (*here, "over"), f"{said}; give steps or tokens"
    micro = train.micro_batch_size
    if micro != "auto" and last % micro:
        relation = "is larger than" if micro > last else "does not divide"
        yield ("train", "micro_batch_size"), f"{micro} {relation} train.batch_size, {last}"


def stage_contradictions(data: Data, train: Train) -> Iterator[tuple[Keys, str]]:
    """What of weights, repeats and stages is right in itself but not together, each with a sentence."""
    for keys, sources in _lists(data):
        weights = whole_weights(sources)
        if weights is not None and sum(weights) > LONGEST_CYCLE:
            said = f"weights of that ratio come out even only after more than {LONGEST_CYCLE} blocks"
            yield keys, f"{said}; write them with fewer digits"
        repeats = {source.repeat for source in sources}
        if weights is None and len(repeats) > 1:
            wrong = next(index for index, source in enumerate(sources) if not source.repeat)
            said = "without weights the sources are gone through as one"
            yield (*keys, wrong, "repeat"), f"{said}; set repeat: false for all of them, or give each a weight"
        if repeats == {False} and train.duration.unit == "seconds":
            said = f"no source repeats, and in {train.duration} they may all be used up"
            yield (*keys, 0, "repeat"), f"{said}; give train.duration in steps, tokens or epochs, or let one repeat"
    before = None
    for number, stage in enumerate(data.stages):
        here: Keys = ("data", "stages", number, "until")
        last, until = number == len(data.stages) - 1, stage.until
        if until is None:
            if not last:
                yield here[:-1], "until is missing; only the last stage, which lasts to the end, may leave it out"
            continue
        if until.unit == "seconds":
            yield here, f"expects steps, tokens, epochs or percent of the run, not {until}: data follows from the step"
        elif until.unit == "percent" and train.duration.unit == "seconds":
            said = f"{until} of {train.duration} is no number of steps that is known beforehand"
            yield here, f"{said}; give steps, tokens or epochs"
        elif last and train.duration.unit == "seconds":
            yield here, "the last stage lasts to the end of the run; leave it out"
        elif until.value == 0:
            yield here, "must be more than nothing"
        elif before is not None and before.unit == until.unit and until.value <= before.value:
            yield here, f"{until} is not after the stage before, which lasts until {before}"
        before = until


def streaming_contradictions(recipe: Recipe, sources: Iterable[tuple[Keys, Source]]) -> Iterator[tuple[Keys, str]]:
    """What cannot be said of streams, whose end and size nobody knows."""
    data = recipe.data
    streamed = [(keys, source) for keys, source in sources if source.streaming]
    for keys, source in streamed:
        if keys[1] == "validation":
            yield (*keys, "streaming"), "what is held out is read whole; leave it out"
        if source.deduplicate:
            yield (*keys, "deduplicate"), "texts of a stream are not remembered; set streaming: false"
        if not source.repeat:
            yield (*keys, "repeat"), "a stream begins anew at its end; set train.duration so that it is not reached"
    for keys, together in _lists(data):
        if len(together) > 1 and any(source.streaming for source in together):
            for number, source in enumerate(together):
                if source.weight is None:
                    yield (*keys, number, "weight"), "missing; beside a streamed source each needs its share"
    if not any(keys[1] != "validation" for keys, _ in streamed):
        return
    if isinstance(data.validation, Amount) and data.validation.value:
        said = f"{data.validation} of a stream cannot be held out before it is read"
        yield ("data", "validation"), f"{said}; give a list of sources, or 0%"
    for key, amount in amounts_of(recipe):
        if amount.unit == "epochs":
            yield key, f"the length of an epoch of a stream is not known, so that {amount} says nothing; give tokens"


def amounts_of(recipe: Recipe) -> Iterator[tuple[Keys, Amount]]:
    """Every amount that is measured on the run, with the way to it."""
    yield ("train", "duration"), recipe.train.duration
    yield ("evaluation", "every"), recipe.evaluation.every
    yield ("checkpoints", "every"), recipe.checkpoints.every
    yield ("schedule", "warmup"), recipe.schedule.warmup
    yield ("schedule", "decay"), recipe.schedule.decay
    if isinstance(recipe.train.batch_size, BatchRamp):
        yield ("train", "batch_size", "over"), recipe.train.batch_size.over
    for number, stage in enumerate(recipe.data.stages):
        if stage.until is not None:
            yield ("data", "stages", number, "until"), stage.until


def with_sources(data: Data, change: Callable[[Source], Source]) -> Data:
    """The same data with every source changed, wherever it stands."""

    def changed(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(change(source) for source in sources)

    return dataclasses.replace(
        data,
        sources=changed(data.sources),
        stages=tuple(dataclasses.replace(stage, sources=changed(stage.sources)) for stage in data.stages),
        validation=data.validation if isinstance(data.validation, Amount) else changed(data.validation),
    )


def _lists(data: Data) -> Iterator[tuple[Keys, tuple[Source, ...]]]:
    """The lists of sources that training reads, with the way to each."""
    if data.sources:
        yield ("data", "sources"), data.sources
    for number, stage in enumerate(data.stages):
        if stage.sources:
            yield ("data", "stages", number, "sources"), stage.sources
