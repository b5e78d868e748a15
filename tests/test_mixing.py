"""Shares of sources are exact, nothing is read twice or left out, and any step is the same from anywhere."""

import itertools
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_blocks import PADDING_ID, make_store
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights, write_corpus

from hfpretrain.amounts import Amount
from hfpretrain.data.batches import Batches, StoredPart, open_batches
from hfpretrain.data.blocks import PADDING, Blocks, Stream, split
from hfpretrain.data.mixing import Cycle, Mix, Order, lay_out
from hfpretrain.errors import DataError, RecipeError, RunError, Stopped
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.run import Run
from hfpretrain.training.loop import train


def mix(parts: tuple[int, ...], weights: tuple[int, ...], **more: Any) -> Mix:
    settings: dict[str, Any] = {
        "repeat": (True,) * len(parts),
        "block_size": 8,
        "words_per_token": (Fraction(1, 2),) * len(parts),
    }
    return Mix(parts=parts, weights=weights, **settings | more)


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=6), times=st.integers(1, 3))
@settings(deadline=None, max_examples=80)
def test_shares_are_within_one_block_of_the_weights(weights: list[int], times: int) -> None:
    cycle, total = Cycle(weights), sum(weights)
    taken = [0] * len(weights)
    for position in range(times * total):
        assert cycle.taken(position) == taken
        source, before = cycle.at(position)
        assert before == taken[source]
        taken[source] += 1
        assert cycle.positions(source, taken[source]) == position + 1
        for each, weight in zip(taken, weights, strict=True):
            assert abs(each - Fraction((position + 1) * weight, total)) < 1
    assert taken == [times * weight for weight in weights]


@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_parts_are_gone_through_without_gaps(data: st.DataObject) -> None:
    """Over stages with sources that are used up: each part's blocks come as 0, 1, 2, ..., and not after its end."""
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    batch_size = data.draw(st.integers(1, 5))
    stages, until = [], 0
    for last in (False, True):
        parts = tuple(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
        weights = tuple(data.draw(st.integers(1, 9)) for _ in parts)
        repeat = tuple(data.draw(st.booleans()) for _ in parts)
        until += data.draw(st.integers(1, 12))
        stages.append(mix(parts, weights, repeat=repeat, until=None if last else Amount.steps(until)))
    order = lay_out(stages, sizes, batch_size=batch_size, duration=Amount.steps(30))
    assert stages[0].until is not None
    first_ends = stages[0].until.value
    taken = [0] * len(sizes)
    for position in range(30 * batch_size):
        assert list(order.taken(position)) == taken
        place = order.place(position)
        stage = stages[0] if position < first_ends * batch_size else stages[1]
        left = [
            part for part, repeat in zip(stage.parts, stage.repeat, strict=True) if repeat or taken[part] < sizes[part]
        ]
        if place is None:
            assert not left
            continue
        part, index = place
        assert part in left
        assert index == taken[part]
        taken[part] += 1


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_batches_hold_each_token_once_an_epoch_and_are_the_same_from_anywhere(data: st.DataObject) -> None:
    """Random corpora, block sizes, weights, pairs or text: every token of an epoch once, shares within a block, and
    step's rows equal whatever the number of processes, the micro-batches, and the step at which a run begins."""
    corpora = data.draw(st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=15), min_size=1, max_size=3))
    block_size, batch_size = data.draw(st.integers(2, 24)), data.draw(st.sampled_from([1, 2, 4, 6]))
    pairs = data.draw(st.booleans())
    weighted = len(corpora) > 1 and data.draw(st.booleans())
    weights = tuple(data.draw(st.integers(1, 7)) for _ in corpora) if weighted else (1,)
    stores = [make_store(lengths, first=1000 * number, prompts=pairs) for number, lengths in enumerate(corpora)]
    ranges = split(stores, 0.0, 0, whole=True)[0]
    groups = [(number,) for number in range(len(corpora))] if weighted else [tuple(range(len(corpora)))]
    seed = data.draw(st.integers(0, 3))

    def made() -> Batches:
        parts = [
            StoredPart(
                number,
                group,
                Blocks(Stream(stores, ranges[np.isin(ranges[:, 0], group)]), block_size, padding_id=PADDING_ID),
                seed,
            )
            for number, group in enumerate(groups)
        ]
        sizes = [len(part.blocks) for part in parts]
        stage = mix(tuple(range(len(parts))), weights, block_size=block_size)
        order = lay_out([stage], sizes, batch_size=batch_size, duration=Amount.steps(1))
        return Batches(parts, order, None, seed=seed)

    batches = made()
    steps = 2 * -(-sum(weights) * max(len(part.blocks) for part in batches.parts) // batch_size)
    rows = [row for step in range(steps) for row in batches.rows(step)]
    seen: list[list[np.ndarray]] = [[] for _ in groups]
    for position, row in enumerate(rows):
        place = batches.order.place(position)
        assert place is not None
        block = row.block
        here = block.documents[:-1] != PADDING
        assert (block.token_ids[:-1][~here] == PADDING_ID).all()
        seen[place[0]].append(block.token_ids[:-1][here])
        for document in np.unique(block.documents[:-1][here]):  # no document's number holds tokens of another
            tokens = block.token_ids[:-1][block.documents[:-1] == document]
            owner = {(token // 1000, document_of(corpora[token // 1000], token % 1000)) for token in tokens.tolist()}
            assert len(owner) == 1
    for part, blocks in zip(batches.parts, seen, strict=True):
        epochs = len(blocks) // len(part.blocks)
        for epoch in range(epochs):
            tokens = np.concatenate(blocks[epoch * len(part.blocks) : (epoch + 1) * len(part.blocks)])
            expected = np.concatenate([stores[source].tokens for source in part.sources])
            assert sorted(tokens.tolist()) == sorted(expected.tolist())
    for number, weight in enumerate(weights):
        assert abs(len(seen[number]) - Fraction(len(rows) * weight, sum(weights))) < 1

    start = data.draw(st.integers(0, steps - 1))
    processes = data.draw(st.sampled_from([each for each in (1, 2, 3) if batch_size % each == 0]))
    own = batch_size // processes
    again = [made() for _ in range(processes)]
    for step in range(start, min(start + 3, steps)):
        got = [row for rank, each in enumerate(again) for row in each.rows(step, range(rank * own, rank * own + own))]
        expected_rows = rows[step * batch_size : (step + 1) * batch_size]
        for one, other in zip(got, expected_rows, strict=True):
            assert one.seed == other.seed
            assert one.step == other.step == step
            assert np.array_equal(one.block.token_ids, other.block.token_ids)


def document_of(lengths: list[int], token: int) -> int:
    return int(np.searchsorted(np.cumsum(lengths), token, side="right"))


def test_a_billion_blocks_take_no_memory() -> None:
    """Any place of a mix of 10^9 blocks; how long that takes is in benchmarks/data.py."""
    tracemalloc.start()
    stages = [
        mix((0, 1), (2, 1), until=Amount.percent(90)),
        mix((0, 1, 2), (85, 10, 5), repeat=(True, False, True)),
    ]
    order = lay_out(stages, [10**9, 5 * 10**8, 10**7], batch_size=1000, duration=Amount.steps(10**6))
    places = shares(order, range(10**9 - 1000, 10**9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert places == {0: 850, 1: 100, 2: 50}
    assert peak < 10_000_000


def three(tmp_path: Path) -> tuple[str, str, str]:
    """Three corpora, as sources of a recipe."""
    files = [write_corpus(tmp_path / f"{number}.jsonl", documents=40 + 20 * number, seed=number) for number in range(3)]
    first, second, third = (f"{{files: {file}" for file in files)
    return first, second, third


def opened(tmp_path: Path, *settings: str) -> Batches:
    recipe = tiny_recipe(tmp_path, "clm", *settings)
    return open_batches(recipe, build_tokenizer(recipe))


def shares(order: Order, positions: range) -> Counter[int | None]:
    places = [order.place(position) for position in positions]
    return Counter(None if place is None else place[0] for place in places)


def test_a_source_that_is_not_repeated_gives_its_share_to_the_others(tmp_path: Path) -> None:
    first, second, third = three(tmp_path)
    sources = f"data.sources=[{first}, weight: 2, repeat: false}}, {second}, weight: 1}}, {third}, weight: 1}}]"
    batches = opened(tmp_path, sources, "train.duration=60", "data.validation=0%")
    size = len(batches.parts[0].blocks)
    assert shares(batches.order, range(240))[0] == size
    end = next(position for position in range(240) if batches.order.taken(position)[0] == size)
    after = shares(batches.order, range(end, end + 40))
    assert after == {1: 20, 2: 20}
    step = end // 4 + 1
    assert any(
        f"data.sources.0 is used up: from step {step} on its share goes to data.sources.1, data.sources.2" in line
        for line in batches.mixing
    )
    epochs = batches.epochs(60)
    assert isinstance(epochs, list)
    assert epochs[0] == 1.0


def test_what_is_repeated_is_said_with_its_epochs(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)
    sources = f"data.sources=[{first}, weight: 1}}, {second}, weight: 1}}]"
    run = tiny_run(tmp_path, "clm", sources, "train.duration=60", "data.validation=0%")
    size = len(opened(tmp_path, sources, "data.validation=0%").parts[0].blocks)
    line = [line for line in metrics(run) if "loss" in line][-1]
    assert line["epochs"][0] == pytest.approx(120 / size, abs=1e-4)
    assert line["epochs"][0] > 1
    assert f"data.sources.0 is repeated: {120 / size:.2f} epochs of it" in run.card_file.read_text()


def test_nothing_left_to_read_is_an_error_before_training(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)
    sources = f"data.sources=[{first}, repeat: false}}, {second}, repeat: false}}]"
    with pytest.raises(DataError, match=r"train\.duration: the sources, which are not to be repeated, are used up"):
        opened(tmp_path, sources, "train.duration=4000")
    with pytest.raises(RecipeError, match=r"no source repeats, and in 1 minute they may all be used up"):
        opened(tmp_path, sources, "train.duration=1 minute")


def test_the_last_step_of_what_is_not_repeated(tmp_path: Path) -> None:
    """It is filled up with padding, which gives no loss and no gradient."""
    first, _, _ = three(tmp_path)
    sources = f"data.sources=[{first}, repeat: false}}]"
    for objective, more in (("clm", []), ("mlm", []), ("clm", ["fim.rate=0.5"])):
        recipe = tiny_recipe(tmp_path, objective, sources, "data.validation=0%", "train.duration=1", *more)
        blocks = open_batches(recipe, build_tokenizer(recipe)).blocks
        batch_size = next(size for size in range(4, 10) if blocks % size)
        settings = ["data.validation=0%", f"train.batch_size={batch_size}", "train.duration=1 epoch", *more]
        run = tiny_run(tmp_path, objective, sources, *settings, name=f"{objective}{len(more)}")
        report = run.report()
        assert report["steps"] == -(-blocks // batch_size)
        assert np.isfinite([line["loss"] for line in metrics(run)]).all()
        assert report["epochs"] == 1.0


def stages(first: str, second: str, third: str) -> list[str]:
    early = f"{{until: 50%, sources: [{first}, weight: 3}}, {second}, weight: 1}}]}}"
    return [f"data.stages=[{early}, {{sources: [{second}, weight: 1}}, {third}, weight: 1}}], block_size: 32}}]"]


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_stages_resume_bit_for_bit(tmp_path: Path, objective: str) -> None:
    """Across the border of a stage, where sources and block size change."""
    first, second, third = three(tmp_path)
    settings = [*stages(first, second, third), "data.sources=[]", "data.validation=0%"]
    whole = tiny_run(tmp_path, objective, *settings, name="whole")
    lines = [line for line in metrics(whole) if "loss" in line]
    tokens = [line["tokens"] for line in lines]
    assert np.diff([0, *tokens]).tolist() == [64] * 6 + [128] * 6
    for stop in (4, 6, 9):
        recipe = tiny_recipe(tmp_path, objective, *settings, name=f"stopped-{stop}")
        with pytest.raises(Stopped):
            train(recipe, stop_after=stop)
        run = train(recipe, resume=True)
        assert same_weights(weights(run), weights(whole))
        assert metrics(run) == metrics(whole)


def test_a_stage_goes_on_with_a_source_where_it_was(tmp_path: Path) -> None:
    first, second, third = three(tmp_path)
    early = f"{{until: 5, sources: [{first}, weight: 3}}, {second}, weight: 1}}]}}"
    late = f"{{sources: [{second}, weight: 1}}, {third}, weight: 1}}]}}"
    batches = opened(tmp_path, f"data.stages=[{early}, {late}]", "data.sources=[]", "data.validation=0%")
    assert shares(batches.order, range(20)) == {0: 15, 1: 5}
    assert shares(batches.order, range(20, 40)) == {1: 10, 2: 10}
    places = [batches.order.place(position) for position in range(40)]
    assert [index for part, index in filter(None, places) if part == 1] == list(range(15))
    assert batches.mixing[:2] == [
        "data.stages.0, from step 1 on: blocks of 16; data.stages.0.sources.0 75%, data.stages.0.sources.1 25%",
        "data.stages.1, from step 6 on: blocks of 16; data.stages.0.sources.1 50%, data.stages.1.sources.1 50%",
    ]


@pytest.mark.parametrize(
    ("untils", "said"),
    [
        ((5, 5), r"data\.stages\.1\.until: 5 steps is not after the stage before, which lasts until 5 steps"),
        (("50%", "10 minutes"), r"data\.stages\.1\.until: expects steps, tokens, epochs or percent"),
        ((None, 5), r"data\.stages\.0: until is missing"),
        (("1000 tokens", "1 step"), r"data\.stages\.1\.until: 1 steps? is not after the stage before"),
    ],
)
def test_stages_that_do_not_follow_one_another(tmp_path: Path, untils: tuple[Any, Any], said: str) -> None:
    entries = ", ".join(f"{{until: {until}}}" if until else "{}" for until in (*untils,))
    with pytest.raises(RecipeError, match=said):
        opened(tmp_path, f"data.stages=[{entries}, {{}}]")


def test_a_longer_run_may_not_move_where_stages_end(tmp_path: Path) -> None:
    """Half of the run is another step then, which is said and refused; a stage in steps stays where it is."""
    first, second, third = three(tmp_path)
    settings = [*stages(first, second, third), "data.sources=[]", "data.validation=0%"]
    run = tiny_run(tmp_path, "clm", *settings, "train.duration=4", name="longer")
    assert isinstance(run, Run)
    recipe = tiny_recipe(tmp_path, "clm", *settings, "train.duration=8", name="longer")
    (run.path / "report.json").unlink()
    with pytest.raises(RunError, match=r"train\.duration: 4 steps before, 8 steps now"):
        train(recipe, resume=True)


def test_weights_that_never_come_out_even(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)
    with pytest.raises(RecipeError, match="write them with fewer digits"):
        opened(tmp_path, f"data.sources=[{first}, weight: 0.33333333}}, {second}, weight: 0.66666667}}]")


def test_orders_of_equal_recipes_are_equal(tmp_path: Path) -> None:
    """Names of files count for nothing: places follow from seed, weights and sizes alone."""
    first, second, _ = three(tmp_path)
    sources = f"data.sources=[{first}, weight: 0.2}}, {second}, weight: 0.1}}]"
    one, other = (opened(tmp_path, sources), opened(tmp_path, sources.replace("0.2", "2").replace("0.1", "1")))
    for step in itertools.islice(itertools.count(), 0, 40, 7):
        for row, same in zip(one.rows(step), other.rows(step), strict=True):
            assert np.array_equal(row.block.token_ids, same.block.token_ids)
