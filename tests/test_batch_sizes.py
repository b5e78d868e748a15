"""A batch that grows: each block once and in order, sizes as said, the same after a resume."""

import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.data.batch_sizes import BatchSizes
from hfpretrain.data.batches import open_batches
from hfpretrain.errors import RecipeError, RunError
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.run import Run
from hfpretrain.training.loop import train

GROWING = "train.batch_size={from: 2, to: 8, over: 50%}"


@given(first=st.integers(1, 6), levels=st.integers(1, 9), over=st.integers(0, 40))
def test_steps_and_positions_belong_together(first: int, levels: int, over: int) -> None:
    sizes = BatchSizes(first, first * levels, over)
    found = [sizes.of(step) for step in range(over + 20)]
    assert found == sorted(found), "a batch never shrinks"
    assert set(found) <= {first * level for level in range(1, levels + 1)}
    assert found[over:] == [first * levels] * 20
    assert found[0] == first or over == 0 or levels == 1
    position = 0
    for step, size in enumerate(found):
        assert sizes.before(step) == position
        assert sizes.steps(Fraction(position)) == step
        assert all(sizes.step_at(position + place) == step for place in range(size))
        position += size


def test_a_growing_batch_learns_the_blocks_of_a_fixed_one(tmp_path: Path) -> None:
    """The same blocks in the same order: only where a step ends is another."""
    growing = tiny_recipe(tmp_path, "clm", GROWING, "train.duration=12")
    fixed = tiny_recipe(tmp_path, "clm", "train.batch_size=1", "train.duration=100")
    tokenizer = build_tokenizer(growing)
    one, other = (open_batches(recipe, tokenizer) for recipe in (growing, fixed))
    sizes = [len(one.rows(step)) for step in range(12)]
    assert sizes == [2, 2, 4, 4, 6, 6, 8, 8, 8, 8, 8, 8]
    found = [row.block.token_ids.tolist() for step in range(12) for row in one.rows(step)]
    assert found == [other.row(position).block.token_ids.tolist() for position in range(sum(sizes))]
    assert one.rows(3)[1].seed == other.row(9).seed
    assert one.rows(3)[1].step == 3


@pytest.mark.parametrize(("over", "tokens"), [("960 tokens", 960), ("30%", None), ("7 steps", None)])
def test_a_duration_in_tokens_is_reached(tmp_path: Path, over: str, tokens: int | None) -> None:
    settings = [f"train.batch_size={{from: 2, to: 8, over: {over}}}", "train.duration=4000 tokens"]
    run = tiny_run(tmp_path, "clm", *settings)
    report, lines = run.report(), metrics(run)
    assert 4000 <= report["tokens"] < 4000 + 8 * 16
    made = [line["tokens"] for line in lines if "loss" in line]
    sizes = [(after - before) // 16 for before, after in zip([0, *made], made, strict=False)]
    assert sizes[0] == 2
    assert sizes[-1] == 8
    if tokens is not None:
        grown = sizes.index(8)
        assert made[grown - 1] >= tokens > made[grown - 2]


def test_a_run_that_ends_before_its_batch_has_grown_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        tiny_run(tmp_path, "clm", "train.batch_size={from: 2, to: 8, over: 24 steps}", "train.duration=12")
    assert "it grows over 24 steps, and the run has 12, so that it comes to 4 and not to 8" in caplog.text
    assert "plan: 12 steps of 32 to 64 tokens" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        tiny_run(tmp_path, "clm", "train.batch_size={from: 2, to: 8, over: 100%}", name="whole")
    assert "it grows over" not in caplog.text


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_resuming_is_exact(tmp_path: Path, objective: str) -> None:
    whole = tiny_run(tmp_path, objective, GROWING, "checkpoints.keep=20", name="whole")
    recipe = tiny_recipe(tmp_path, objective, GROWING, "checkpoints.keep=20", name="cut")
    shutil.copytree(whole.path, recipe.output_dir)
    cut = Run(Path(recipe.output_dir))
    cut.report_file.unlink()
    for step in (10, 12):
        shutil.rmtree(cut.checkpoints / f"step-{step:08d}")
    train(recipe, resume=True)
    assert same_weights(weights(whole), weights(cut))
    assert metrics(whole) == metrics(cut)
    with pytest.raises(RunError, match=r"train\.duration: 12 steps before, 20 steps now"):
        cut.report_file.unlink()
        tiny_run(tmp_path, objective, GROWING, "train.duration=20", name="cut", resume=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("{from: 4, to: 6}", "train.batch_size.to: 6 is no multiple of 4"),
        ("{from: 4, to: 4}", "write batch_size: 4"),
        ("{from: 4}", "train.batch_size.to: missing"),
        ("{from: 4, to: 8, over: 3 minutes}", "expects steps, tokens or percent of the run, not 3 minutes"),
        ("{from: 0, to: 8}", "train.batch_size.from: must be at least 1"),
        ("{from: 2, to: 8, until: 3}", "train.batch_size.until: unknown key"),
    ],
)
def test_ramps_that_are_none(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tmp_path, "clm", f"train.batch_size={setting}")


def test_percent_of_a_time_is_no_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no number of steps that is known beforehand"):
        tiny_recipe(tmp_path, "clm", GROWING, "train.duration=2 minutes")
