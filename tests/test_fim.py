"""Fill-in-the-middle: no token is lost, every gap can be put back, and nothing depends on how a run is cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import gpt
from test_blocks import make_store, real_tokens
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfpretrain.data.batches import Batches, Row, open_batches
from hfpretrain.data.blocks import PADDING, Block, Blocks, Stream, split
from hfpretrain.errors import ModelError, Stopped
from hfpretrain.modeling.fim import SPELLINGS, FillIn, sentinels
from hfpretrain.modeling.objective import IGNORED, Collator
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import FillInTheMiddle, Recipe
from hfpretrain.training.loop import train

ON = ["fim={rate: 0.5, spm: 0.5}", "data.block_size=32"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, PreTrainedTokenizerBase, Batches]:
    recipe = tiny_recipe(tmp_path_factory.mktemp("fim"), "clm", *ON)
    tokenizer = build_tokenizer(recipe)
    return recipe, tokenizer, open_batches(recipe, tokenizer)


def with_sentinels(names: tuple[str, ...] = SPELLINGS[0]) -> PreTrainedTokenizerFast:
    tokenizer = gpt()
    tokenizer.add_special_tokens({"extra_special_tokens": list(names)})
    return tokenizer


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    more=st.lists(st.integers(1, 60), min_size=0, max_size=20),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    block_size=st.integers(16, 40),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=150)
def test_no_token_is_lost_and_no_block_overflows(
    lengths: list[int], more: list[int], share: float, block_size: int, rate: float
) -> None:
    stores = [make_store(lengths), make_store(more, first=10_000)] if more else [make_store(lengths)]
    train_ranges, held_out = split(stores, share, 0)
    blocks = Blocks(Stream(stores, train_ranges), block_size, padding_id=9, room=3)
    fill_in = FillIn(FillInTheMiddle(rate=rate), with_sentinels())
    marks = list(fill_in.sentinels + 1_000_000)
    fill_in.sentinels = np.array(marks)
    turned = [fill_in(block, number) for number, block in enumerate(blocks)]
    found = [int(t) for b in turned for t in b.token_ids[b.documents != PADDING] if t not in marks]
    rest = real_tokens(Blocks(Stream(stores, held_out), block_size, padding_id=9))
    assert sorted(found + rest) == sorted(int(token) for store in stores for token in store.tokens)
    for before, after in zip(blocks, turned, strict=True):
        assert after.token_ids.shape == (block_size + 1,)
        assert after.documents[-1] == PADDING
        for document in range(before.documents.max() + 1):
            one, other = (each.token_ids[each.documents == document].tolist() for each in (before, after))
            assert sorted(one) == sorted(set(other) - set(marks))
            assert len(other) == len(one) + (3 if marks[0] in other else 0)
    assert len(blocks) <= sum(lengths + more) * 4 // (block_size - 3) + 1


def test_the_orders_are_those_of_the_paper() -> None:
    """<s> prefix middle suffix </s>: the ends stay, and the middle is the last thing to be written."""
    tokenizer = with_sentinels()
    end, (prefix, middle, suffix) = tokenizer.eos_token_id, sentinels(tokenizer)
    text = np.array([*range(100, 110), end, *range(200, 205), *[9] * 8])
    documents = np.array([0] * 11 + [1] * 5 + [PADDING] * 8)
    seen = set()
    for spm in (0.0, 1.0):
        fill_in = FillIn(FillInTheMiddle(rate=1.0, spm=spm), tokenizer)
        for seed in range(300):
            block = fill_in(Block(text, documents != PADDING, documents), seed)
            one, other = (block.token_ids[block.documents == document].tolist() for document in (0, 1))
            assert one[-1] == end, "the end of the text ends the middle"
            for ids, whole in ((one[:-1], list(range(100, 110))), (other, list(range(200, 205)))):
                assert ids[0] == prefix
                cut, gap = ids.index(suffix), ids.index(middle)
                if spm:
                    assert cut == 1
                    rest, tail = ids[gap + 1 :], ids[2:gap]
                    assert rest + tail == whole
                else:
                    assert ids[1:cut] + ids[gap + 1 :] + ids[cut + 1 : gap] == whole
                    seen.add((cut - 1, len(ids) - gap - 1))
    assert {(0, 10), (10, 0), (0, 0), (3, 4)} <= seen, "cuts fall anywhere, at the ends too"


def test_as_many_documents_are_turned_as_the_rate_says(
    opened: tuple[Recipe, PreTrainedTokenizerBase, Batches],
) -> None:
    recipe, tokenizer, batches = opened
    prefix, middle, suffix = sentinels(tokenizer)
    batch = Collator(recipe, tokenizer, isolated=True)([batches.row(position) for position in range(2000)])
    ids, labels, documents = (batch[name] for name in ("input_ids", "labels", "document_ids"))
    starts = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] != PADDING)
    turned = int((ids == prefix).sum())
    assert turned / (int(starts.sum()) + 2000) == pytest.approx(0.5, abs=0.03)
    suffix_first = int(((ids[:, :-1] == prefix) & (ids[:, 1:] == suffix)).sum())
    assert 0.5 < suffix_first / turned < 0.7, "half of them, and of the others those with an empty prefix"
    for mark in (middle, suffix):
        assert int((ids == mark).sum()) == turned
    assert int((labels == middle).sum()) == turned, "the sentinels are learnt too"
    after = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] != PADDING)
    assert torch.equal(labels[:, :-1][after], ids[:, 1:][after])
    assert (labels[documents == PADDING] == IGNORED).all()


def test_a_batch_is_the_same_however_it_is_cut(opened: tuple[Recipe, PreTrainedTokenizerBase, Batches]) -> None:
    recipe, tokenizer, batches = opened
    again = open_batches(recipe, tokenizer)
    collator, other = (Collator(recipe, tokenizer, isolated=True) for _ in range(2))
    whole = collator(batches.rows(7))
    for size in (1, 2):
        parts = [other(again.rows(7, range(at, at + size))) for at in range(0, 4, size)]
        for name in whole:
            assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    row = batches.row(0)
    assert not torch.equal(collator([row])["input_ids"], collator([Row(row.block, 1, 99)])["input_ids"])


def test_held_out_text_stays_as_it_is(opened: tuple[Recipe, PreTrainedTokenizerBase, Batches]) -> None:
    recipe, tokenizer, batches = opened
    assert batches.validation is not None
    rows = batches.validation_rows(range(len(batches.validation)))
    batch = Collator(recipe, tokenizer, isolated=False)(rows)
    assert not torch.isin(batch["input_ids"], torch.tensor(sentinels(tokenizer))).any()
    assert int((batch["labels"] != IGNORED).sum()) == batches.validation.tokens - 1


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings_ = [*ON, "train.micro_batch_size=2", "train.duration=14"]
    whole = tiny_run(tmp_path, "clm", *settings_, name="whole")
    recipe = tiny_recipe(tmp_path, "clm", *settings_, name="stopped")
    with pytest.raises(Stopped):
        train(recipe, stop_after=5)
    resumed = train(recipe, resume=True)
    assert same_weights(weights(whole), weights(resumed))
    assert metrics(whole) == metrics(resumed)
    tokenizer = AutoTokenizer.from_pretrained(resumed.path)
    assert tokenizer.convert_ids_to_tokens(list(sentinels(tokenizer))) == list(SPELLINGS[0])
    assert len(tokenizer) <= 320, "the sentinels are within tokenizer.vocab_size"
    text = "the <|fim_prefix|> dog"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text


@pytest.mark.parametrize("algorithm", ["byte", "char", "unigram", "wordpiece"])
def test_every_trained_tokenizer_has_sentinels(tmp_path: Path, algorithm: str) -> None:
    recipe = tiny_recipe(tmp_path, "clm", *ON, f"tokenizer={{algorithm: {algorithm}, vocab_size: 400}}")
    tokenizer = build_tokenizer(recipe)
    assert set(sentinels(tokenizer)) <= set(tokenizer.all_special_ids)
    ids = tokenizer("the fox")["input_ids"]
    assert not set(ids) & set(sentinels(tokenizer))
    assert tokenizer.unk_token_id not in ids


def test_an_existing_tokenizer_has_its_own_or_is_refused(tmp_path: Path) -> None:
    tokenizer = with_sentinels(SPELLINGS[1])
    assert tokenizer.convert_ids_to_tokens(list(sentinels(tokenizer))) == list(SPELLINGS[1])
    gpt().save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"no sentinel tokens \(<\|fim_prefix\|>"):
        train(tiny_recipe(tmp_path, "clm", *ON, f"tokenizer={{from: {tmp_path / 'plain'}}}"))
