"""Blocks hold every token once, know their documents, and the held-out part never overlaps the rest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpretrain.data.blocks import PADDING, Block, Blocks, Stream, split
from hfpretrain.data.tokens import TokenStore

PADDING_ID = 999


def make_store(
    lengths: list[int], *, first: int = 0, keys: list[int] | None = None, prompts: bool = False
) -> TokenStore:
    """A store whose token ids are `first`, `first` + 1, ... so that each token is known by its id."""
    total = sum(lengths)
    return TokenStore(
        tokens=np.arange(first, first + total, dtype=np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        keys=np.array(keys if keys else range(len(lengths)), dtype=np.uint64),
        prompt_lengths=np.array([length // 2 for length in lengths], dtype=np.uint32) if prompts else None,
        text_bytes=total,
        fingerprint="0" * 64,
        manifest={},
    )


def all_blocks(stores: list[TokenStore], share: float, block_size: int, seed: int = 0) -> tuple[Blocks, Blocks]:
    train, held_out = split(stores, share, seed)
    return (
        Blocks(Stream(stores, train), block_size, padding_id=PADDING_ID),
        Blocks(Stream(stores, held_out), block_size, padding_id=PADDING_ID),
    )


def real_tokens(blocks: Blocks) -> list[int]:
    return [int(token) for block in blocks for token in block.token_ids[:-1][block.documents[:-1] != PADDING]]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    more=st.lists(st.integers(1, 40), min_size=0, max_size=20),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    block_size=st.integers(2, 33),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=150)
def test_every_token_stands_in_exactly_one_block_position(
    lengths: list[int], more: list[int], share: float, block_size: int, seed: int
) -> None:
    stores = [make_store(lengths), make_store(more, first=10_000)] if more else [make_store(lengths)]
    train, held_out = all_blocks(stores, share, block_size, seed)
    everything = sorted(real_tokens(train) + real_tokens(held_out))
    assert everything == sorted(int(token) for store in stores for token in store.tokens)


def test_a_thousand_documents_of_odd_lengths() -> None:
    lengths = [1 + (7 * number * number) % 97 for number in range(1000)]
    store = make_store(lengths)
    train, held_out = all_blocks([store], 0.1, 64)
    assert sorted(real_tokens(train) + real_tokens(held_out)) == list(range(sum(lengths)))
    assert 0.05 < held_out.tokens / sum(lengths) <= 0.1
    # Documents are whole: none is on both sides.
    document = np.repeat(np.arange(1000), lengths)
    assert not set(document[real_tokens(train)]) & set(document[real_tokens(held_out)])
    assert set(document[real_tokens(train)]) | set(document[real_tokens(held_out)]) == set(range(1000))


def test_each_block_is_followed_by_the_next_ones_first_token() -> None:
    train, _ = all_blocks([make_store([5, 9, 3, 20])], 0.0, 8)
    for block, following in zip(list(train)[:-1], list(train)[1:], strict=True):
        assert block.token_ids[-1] == following.token_ids[0]
    last = train[len(train) - 1]
    assert last.documents[-1] == PADDING
    assert not last.targets[-1]


def test_documents_are_numbered_by_block() -> None:
    block: Block = all_blocks([make_store([3, 4, 5])], 0.0, 10)[0][0]
    assert block.documents.tolist() == [0] * 3 + [1] * 4 + [2] * 4
    block = all_blocks([make_store([3, 4, 5])], 0.0, 10)[0][1]
    assert block.documents.tolist() == [0] * 2 + [PADDING] * 9
    assert block.token_ids[2:].tolist() == [PADDING_ID] * 9


def test_prompts_are_no_targets() -> None:
    block = all_blocks([make_store([4, 6], prompts=True)], 0.0, 10)[0][0]
    assert block.targets.tolist() == [False, False, True, True, False, False, False, True, True, True, False]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), block_size=st.integers(2, 33))
@settings(deadline=None, max_examples=100)
def test_pairs_stay_whole_where_they_fit(lengths: list[int], block_size: int) -> None:
    blocks, _ = all_blocks([make_store(lengths, prompts=True)], 0.0, block_size)
    assert real_tokens(blocks) == list(range(sum(lengths)))
    document = np.repeat(np.arange(len(lengths)), lengths)
    places = [set(document[block.token_ids[:-1][block.documents[:-1] != PADDING]].tolist()) for block in blocks]
    for number, length in enumerate(lengths):
        if length <= block_size:
            assert sum(number in place for place in places) == 1


def test_equal_documents_are_on_one_side() -> None:
    """A text that stands in the corpus many times would otherwise be learnt and then met again in validation."""
    store = make_store([10] * 400, keys=[number % 100 for number in range(400)])
    train, held_out = all_blocks([store], 0.2, 16)
    keys = np.repeat(np.asarray(store.keys), 10)
    assert held_out.tokens > 0
    assert not set(keys[real_tokens(train)]) & set(keys[real_tokens(held_out)])


def test_another_seed_holds_out_other_documents() -> None:
    store = make_store([10] * 300)
    assert real_tokens(all_blocks([store], 0.1, 16, seed=1)[1]) != real_tokens(all_blocks([store], 0.1, 16, seed=2)[1])
    assert real_tokens(all_blocks([store], 0.1, 16, seed=1)[1]) == real_tokens(all_blocks([store], 0.1, 16, seed=1)[1])


def test_a_single_document_gives_its_tail() -> None:
    train, held_out = all_blocks([make_store([1000])], 0.1, 64)
    assert real_tokens(train) == list(range(900))
    assert real_tokens(held_out) == list(range(900, 1000))


def test_pairs_are_never_cut() -> None:
    train, held_out = all_blocks([make_store([20, 20], prompts=True)], 0.1, 8)
    assert train.tokens == 40
    assert held_out.tokens == 0


def test_a_block_that_is_not_there() -> None:
    train, _ = all_blocks([make_store([20])], 0.0, 8)
    with pytest.raises(IndexError):
        train[3]
