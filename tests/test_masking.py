"""What is masked: how much of it and which tokens, the same however a run is cut, stopped or spread."""

from pathlib import Path

import pytest
import torch
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.batches import Batches, Row, open_batches
from hfpretrain.errors import Stopped
from hfpretrain.modeling.objective import IGNORED, Collator, MicroBatch
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import Recipe
from hfpretrain.training.loop import train

MOVING = "masking.rate={from: 0.6, to: 0.1}"
OPTIONS = [[MOVING]]

Opened = tuple[Recipe, PreTrainedTokenizerBase, Batches]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masking")


def opened(folder: Path, *overrides: str) -> Opened:
    recipe = tiny_recipe(folder, "mlm", "train.batch_size=64", *overrides)
    tokenizer = build_tokenizer(recipe)
    return recipe, tokenizer, open_batches(recipe, tokenizer)


def collated(opened: Opened, rows: list[Row], *, steps: int = 12, static: bool = False) -> MicroBatch:
    recipe, tokenizer, _ = opened
    return Collator(recipe, tokenizer, isolated=True, steps=steps, static=static)(rows)


def share_masked(opened: Opened, rows: list[Row], steps: int) -> float:
    """Of the tokens that may be masked."""
    tokenizer = opened[1]
    special = torch.tensor(tokenizer.all_special_ids)
    ordinary = sum(int((~torch.isin(torch.from_numpy(row.block.token_ids[:-1]), special)).sum()) for row in rows)
    return int((collated(opened, rows, steps=steps)["labels"] != IGNORED).sum()) / ordinary


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_is_the_same_however_it_is_cut(folder: Path, options: list[str]) -> None:
    """In micro-batches, over processes, and by objects that were made anew in the middle of the run."""
    first, again = opened(folder, *options), opened(folder, *options)
    whole = collated(first, first[2].rows(5))
    for size in (1, 16, 32):
        parts = [collated(again, again[2].rows(5, range(at, at + size))) for at in range(0, 64, size)]
        for name in ("input_ids", "labels", "document_ids"):
            assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, options: list[str]) -> None:
    settings = [*options, "train.micro_batch_size=2", "train.duration=20"]
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    recipe = tiny_recipe(tmp_path, "mlm", *settings, name="stopped")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    resumed = train(recipe, resume=True)
    assert same_weights(weights(whole), weights(resumed))
    assert metrics(whole) == metrics(resumed)
    plain = tiny_run(tmp_path, "mlm", *settings[1:], name="plain")
    assert not same_weights(weights(whole), weights(plain)), "the options change what is learnt"


def test_the_rate_moves_in_a_straight_line(folder: Path) -> None:
    corpus = opened(folder, MOVING)
    for step, expected in ((0, 0.6), (50, 0.35), (100, 0.1), (130, 0.1)):
        rows = [row for more in range(3) for row in corpus[2].rows(step, range(64 * more, 64 * more + 64))]
        rows = [Row(row.block, row.seed, step) for row in rows]
        assert share_masked(corpus, rows, steps=101) == pytest.approx(expected, abs=0.03)


def test_evaluation_does_not_move_with_the_rate(folder: Path) -> None:
    moving, fixed = opened(folder, MOVING), opened(folder, "masking.rate=0.1")
    rows = [each[2].validation_rows(range(8)) for each in (moving, fixed)]
    for steps in (12, 500):
        one, other = collated(moving, rows[0], steps=steps), collated(fixed, rows[1])
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"], other["labels"])
