"""The order of blocks is a seeded permutation without memory."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpretrain.data.order import derived, permuted


@given(size=st.integers(1, 700), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=50)
def test_every_index_lands_in_its_own_place(size: int, seed: int) -> None:
    assert sorted(permuted(index, size, seed) for index in range(size)) == list(range(size))


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(permuted(index, 100, derived(0, "order", 0, epoch)) for index in range(100)) for epoch in range(50)}
    assert len(orders) == 50


def test_neighbours_do_not_stay_neighbours() -> None:
    """A chi-square test of first-place frequencies, and of how often neighbours stay together."""
    size, seeds = 64, 1500
    counts = [0] * size
    together = 0
    for seed in range(seeds):
        places = [permuted(index, size, derived(seed)) for index in range(size)]
        counts[places[0]] += 1
        together += sum(abs(a - b) == 1 for a, b in itertools.pairwise(places))
    expected = seeds / size
    assert sum((count - expected) ** 2 / expected for count in counts) < 118  # 63 degrees of freedom: p < 1e-4
    assert together / seeds == pytest.approx(2 * (size - 1) / size, rel=0.06)


def test_a_billion_blocks_need_no_memory() -> None:
    places = {permuted(index, 10**9, seed=7) for index in range(1000)}
    assert len(places) == 1000
    assert max(places) < 10**9
    assert max(places) > 9 * 10**8  # spread over the whole range


def test_derived_seeds_never_change() -> None:
    """A change here would change every run."""
    assert derived(0, "order", 0, 0) == derived(0, "order", 0, 0) != derived(0, "order", 0, 1)
    assert (derived(0, "row", 1), derived(1)) == (5940284428200614171, 1695107200560264221)
