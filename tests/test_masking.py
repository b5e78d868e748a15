"""What is masked: how much of it and which tokens, the same however a run is cut, stopped or spread."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tokenizers import bert, gpt, sentencepiece
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfpretrain.data.batches import Batches, Row, open_batches
from hfpretrain.errors import ModelError, Stopped
from hfpretrain.modeling.masking import choose_spans, word_borders
from hfpretrain.modeling.objective import IGNORED, Collator, MicroBatch
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.modeling.tokenizer_training import train_tokenizer
from hfpretrain.recipe import Recipe
from hfpretrain.recipe import Tokenizer as Settings
from hfpretrain.training.loop import train

MOVING = "masking.rate={from: 0.6, to: 0.1}"
WORDS, SPANS = "masking.unit=word", "masking={unit: span, mean_span: 4}"
OPTIONS = [[MOVING], [WORDS], [SPANS], [SPANS, "masking.rate={from: 0.5, to: 0.1}"]]

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


@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, unit: str) -> None:
    settings = [MOVING, f"masking.unit={unit}", "train.micro_batch_size=2", "train.duration=14"]
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    recipe = tiny_recipe(tmp_path, "mlm", *settings, name="stopped")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    resumed = train(recipe, resume=True)
    assert same_weights(weights(whole), weights(resumed))
    assert metrics(whole) == metrics(resumed)


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


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_as_many_tokens_are_masked_as_the_rate_says(folder: Path, unit: str) -> None:
    corpus = opened(folder, f"masking={{rate: 0.2, unit: {unit}}}", "data.block_size=64")
    rows = [corpus[2].row(position) for position in range(1500)]
    assert share_masked(corpus, rows, steps=12) == pytest.approx(0.2, abs=0.01)
    block = rows[0].block.token_ids
    epoch = corpus[2].blocks
    later = (corpus[2].row(position) for position in range(epoch, 2 * epoch))
    again = next(row for row in later if np.array_equal(row.block.token_ids, block))
    masks = [collated(corpus, [row])["labels"] for row in (rows[0], again)]
    assert not torch.equal(*masks), "another epoch masks other tokens"


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_compiled_models_see_one_shape(folder: Path, unit: str) -> None:
    corpus = opened(folder, f"masking={{rate: {{from: 0.3, to: 0.1}}, unit: {unit}}}")
    batches = [collated(corpus, corpus[2].rows(step), static=True) for step in range(60)]
    assert len({batch["targets"].shape for batch in batches}) == 1
    for batch in batches:
        assert (batch["labels"].flatten()[batch["targets"]] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()


def test_words_are_masked_whole(folder: Path) -> None:
    """Of a vocabulary so small that words are cut up, every piece of a word is guessed or none is."""
    corpus = opened(folder, WORDS, "tokenizer.vocab_size=60")
    tokenizer = corpus[1]
    rows = [corpus[2].row(position) for position in range(400)]
    masked = (collated(corpus, rows)["labels"] != IGNORED).numpy()
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    goes_on = np.array([piece.startswith("##") for piece in pieces])
    several = 0
    for row, chosen in zip(rows, masked, strict=True):
        documents = row.block.documents[:-1]
        within = goes_on[row.block.token_ids[1:-1]] & (documents[1:] == documents[:-1])
        assert (chosen[1:] == chosen[:-1])[within].all()
        several += int((chosen[1:] & within).sum())
    assert several > 200


def test_spans_have_geometric_lengths() -> None:
    maskable, begins = np.ones(400_000, dtype=np.bool_), np.zeros(400_000, dtype=np.bool_)
    for rate, mean in ((0.15, 3.0), (0.5, 3.8), (0.15, 10.0)):
        chosen = choose_spans(maskable, begins, rate, mean, np.random.default_rng(0))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(int))).reshape(-1, 2)
        lengths = edges[:, 1] - edges[:, 0]
        assert chosen.mean() == pytest.approx(rate, rel=0.03)
        assert lengths.mean() == pytest.approx(mean, rel=0.03)
        for length in (1, 2, 5):
            assert (lengths > length).mean() == pytest.approx((1 - 1 / mean) ** length, abs=0.01)


def test_spans_end_with_documents() -> None:
    """In documents of two tokens a span has at most two, and masks of neighbours say nothing about each other."""
    maskable, begins = np.ones(200_000, dtype=np.bool_), np.arange(200_000) % 2 == 0
    chosen = choose_spans(maskable, begins, 0.2, 20.0, np.random.default_rng(0)).reshape(-1, 2)
    assert chosen.mean() == pytest.approx(0.2, abs=0.01)
    assert chosen[chosen[:, 0], 1].mean() == pytest.approx(0.95, abs=0.02), "within a document it goes on"
    assert chosen[1:, 0][chosen[:-1, 1]].mean() == pytest.approx(0.2, abs=0.02), "but not beyond"
    maskable[::3] = False
    assert not choose_spans(maskable, begins, 0.2, 20.0, np.random.default_rng(0))[::3].any()


TEXT = "Unbelievable dog_names (foxes), 12th: don't re-read  naïve-Übermut!\n\tFoxes2 jumped over 3.14 lazydogs."


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "char", "byte", "bert", "gpt", "sentencepiece"])
def test_every_tokenizer_shows_its_words(kind: Any) -> None:
    """Where words begin, by the tokens alone, is where they begin in the text."""
    others = {"bert": bert, "gpt": gpt, "sentencepiece": sentencepiece}
    texts = [TEXT, "The fox jumps over the lazy dog. " * 3]
    if kind in others:
        tokenizer = others[kind]()
    else:
        size = 90 if kind == "wordpiece" else 360
        tokenizer = train_tokenizer(Settings(algorithm=kind, vocab_size=size), "mlm", iter(texts))
    encoding = tokenizer(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = np.array(encoding["input_ids"]), encoding["offset_mapping"]
    words = [match.span() for match in re.finditer(r"[^\W_]+", TEXT)]
    known = ~np.isin(ids, tokenizer.all_special_ids)

    def same_word(place: int) -> bool:
        end, start = offsets[place - 1][1], offsets[place][0]
        inside = any(first < start < last and end > first for first, last in words)
        return inside or offsets[place] == offsets[place - 1]  # of one character

    begins = word_borders(tokenizer).begins(ids)
    expected = [not same_word(place) for place in range(1, len(ids))]
    both = known[1:] & known[:-1]
    assert begins[1:][both].tolist() == np.array(expected)[both].tolist()
    assert both.sum() > 10 and not begins.all()


def test_chinese_characters_are_words_and_halves_of_them_none() -> None:
    tokenizer = train_tokenizer(Settings(algorithm="byte"), "mlm", iter(["x"]))
    ids = np.array(tokenizer("日本é", add_special_tokens=False)["input_ids"])
    assert word_borders(tokenizer).begins(ids).tolist() == [True, False, False] * 2 + [False, False]


def test_a_tokenizer_that_does_not_show_its_words_is_refused(folder: Path, tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE(vocab={"[UNK]": 0, "[MASK]": 1, "a": 2, "b": 3}, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match="do not show where words begin"):
        train(tiny_recipe(tmp_path, "mlm", WORDS, f"tokenizer={{from: {tmp_path / 'tokenizer'}}}"))
