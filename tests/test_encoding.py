"""Encoding: the tokens that the tokenizer gives, whatever the text holds; of a pair the completion is the target."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import TEXTS, bert, documents, gpt, sentencepiece, source_of, with_end
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

from hfpretrain.data import encoding
from hfpretrain.data.encoded import Encoded
from hfpretrain.data.seen import _OTHER_SPACE, SeenWords, cuts_at_spaces
from hfpretrain.data.sources import Document, OpenSource, open_source
from hfpretrain.data.tokens import end_of_document, prepare
from hfpretrain.errors import DataError
from hfpretrain.modeling.tokenizer_training import train_tokenizer
from hfpretrain.recipe import Source
from hfpretrain.recipe import Tokenizer as TokenizerSettings

TOKENIZERS: list[Callable[[], PreTrainedTokenizerFast]] = [bert, gpt, sentencepiece]


@pytest.mark.parametrize("build", TOKENIZERS)
def test_the_tokens_are_those_of_the_tokenizer_text_by_text(tmp_path: Path, build: Any) -> None:
    tokenizer = build()
    draw = random.Random(0)
    texts = TEXTS + [" ".join(draw.choices(" ".join(TEXTS).split(" "), k=draw.randrange(1, 30))) for _ in range(2500)]
    texts = [text for text in texts if text.strip()]
    end = end_of_document(tokenizer, "clm")
    store = prepare(source_of(tmp_path, texts), tokenizer, end_id=end, cache=tmp_path)
    assert documents(store) == [with_end(tokenizer(text)["input_ids"], end) for text in texts]
    assert store.tokens.dtype == np.uint16
    assert store.offsets[0] == 0
    assert store.offsets[-1] == len(store.tokens) == store.manifest["tokens"]
    assert store.text_bytes == sum(len(text.encode()) for text in texts)
    assert store.prompt_lengths is None
    assert store.manifest["documents"] == len(texts)


@pytest.mark.parametrize("build", [*TOKENIZERS, lambda: gpt(prefix_space=True)])
def test_a_long_text_is_cut_without_changing_its_tokens(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 300)
    tokenizer = build()
    long = "\n\n".join(TEXTS * 40)
    unbroken = "日本語" * 400
    encoder = encoding.Encoder(tokenizer, None)
    document = next(source_of(tmp_path, [long]).documents())
    pieces = list(encoder.pieces([document]))
    assert len(pieces) > 10
    assert "".join(piece.text for piece in pieces) == long
    end = end_of_document(tokenizer, "mlm")
    texts = [long, "between", unbroken]
    store = prepare(source_of(tmp_path, texts), tokenizer, end_id=end, cache=tmp_path)
    assert documents(store) == [with_end(tokenizer(text)["input_ids"], end) for text in texts]


@pytest.mark.parametrize("build", [*TOKENIZERS, lambda: bert(spaces_only=True)])
def test_text_that_spells_a_special_token_is_ordinary_text(tmp_path: Path, build: Any) -> None:
    tokenizer = build()
    before = tokenizer.backend_tokenizer.to_str()
    marked = tokenizer("The [MASK] </s> <|endoftext|>")["input_ids"]
    text = "The [MASK] quick </s> brown<|endoftext|> fox [SEP] [CLS] <s> dog."
    store = prepare(source_of(tmp_path, [text, "fox"]), tokenizer, end_id=None, cache=tmp_path)
    ids, fox = documents(store)
    expected = tokenizer("fox")["input_ids"]
    assert fox == expected
    # Around the text stand the special tokens that stand around any other; within it there are none.
    before_text = int(expected[0] in tokenizer.all_special_ids)
    after_text = int(expected[-1] in tokenizer.all_special_ids)
    inside = ids[before_text : len(ids) - after_text]
    assert len(inside) >= 10
    assert not set(inside) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    # The tokenizer that was given is as it was.
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.backend_tokenizer.encode_special_tokens is False
    assert tokenizer("The [MASK] </s> <|endoftext|>")["input_ids"] == marked


def test_truncation_and_padding_of_the_tokenizer_do_not_matter(tmp_path: Path) -> None:
    tokenizer = bert()
    first = prepare(source_of(tmp_path, TEXTS), tokenizer, end_id=3, cache=tmp_path)
    tokenizer(TEXTS, truncation=True, max_length=4, padding="max_length")
    tokenizer.backend_tokenizer.enable_truncation(4)
    second = prepare(source_of(tmp_path, TEXTS, "other.jsonl"), tokenizer, end_id=3, cache=tmp_path)
    assert documents(first) == documents(second)


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    words = {"[UNK]": 0} | {f"w{number}": number for number in range(1, 70_000)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    store = prepare(source_of(tmp_path, ["w69999 w3 x"]), tokenizer, end_id=None, cache=tmp_path)
    assert store.tokens.dtype == np.uint32
    assert store.tokens.tolist() == [69999, 3, 0]


class Letters(PreTrainedTokenizer):  # type: ignore[misc]  # transformers has no complete types
    """A tokenizer written in Python, without a Rust backend."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(unk_token="?", eos_token="$", **keys)

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(128)}

    def _tokenize(self, text: str, **keys: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token) if ord(token) < 128 else ord("?")

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_a_tokenizer_written_in_python_works_too(tmp_path: Path) -> None:
    store = prepare(source_of(tmp_path, ["abc", "a$b"]), Letters(), end_id=ord("$"), cache=tmp_path)
    assert documents(store) == [[97, 98, 99, 36], [97, 36, 98, 36]]
    assert len(prepare(source_of(tmp_path, ["abc", "a$b"]), Letters(), end_id=None, cache=tmp_path).tokens) == 6


# ------------------------------------------------------------------------------------------------------------ pairs


def pairs(folder: Path) -> OpenSource:
    columns = {"input_texts": ["The quick brown", "The quick brown fox"], "output_texts": ["fox", "jumps"]}
    (folder / "pairs.json").write_text(json.dumps(columns))
    return open_source(
        Source(files=str(folder / "pairs.json"), prompt_column="input_texts", completion_column="output_texts")
    )


@pytest.mark.parametrize("build", TOKENIZERS)
def test_of_a_pair_the_completion_and_the_end_are_the_targets(tmp_path: Path, build: Any) -> None:
    tokenizer = build([*TEXTS * 50, "The quick brown fox jumps " * 200])
    end = end_of_document(tokenizer, "clm")
    store = prepare(pairs(tmp_path), tokenizer, end_id=end, cache=tmp_path)
    assert store.prompt_lengths is not None
    targets = [ids[length:] for ids, length in zip(documents(store), store.prompt_lengths, strict=True)]
    assert [tokenizer.decode(ids[:-1]).strip() for ids in targets] == ["fox", "jumps"]
    assert [ids[-1] for ids in targets] == [end, end]
    prompts = [ids[:length] for ids, length in zip(documents(store), store.prompt_lengths, strict=True)]
    assert tokenizer.decode(prompts[1], skip_special_tokens=True).lower() == "the quick brown fox"


def test_byte_level_targets_are_the_one_token_with_its_space_and_the_end(tmp_path: Path) -> None:
    tokenizer = gpt(TEXTS * 50)
    store = prepare(pairs(tmp_path), tokenizer, end_id=0, cache=tmp_path)
    assert store.prompt_lengths is not None
    targets = documents(store)[0][store.prompt_lengths[0] :]
    assert tokenizer.convert_ids_to_tokens(targets) == ["Ġfox", "<|endoftext|>"]


def test_pairs_need_a_tokenizer_with_offsets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the tokenizer Letters cannot tell prompts from completions"):
        prepare(pairs(tmp_path), Letters(), end_id=None, cache=tmp_path)


def test_words_seen_before_change_no_token() -> None:
    """Texts of everything that stands at the borders of words, for each family of tokenizers that is trained here."""
    atoms = [*" \n\t\r\u00a0\u3000\u2028\x1c\x85.,'!?-_(", "  ", " \n", "'s", "don't", "fox", "Fox", "é", "e\u0301"]
    atoms += ["\u0301", "日本", "ΟΔΟΣ", "İ", "123", "4", "😀", "▁", "[MASK]", "</s>", "<0x0A>", "\u200b", "\ufeff", "ß"]
    draw = random.Random(0)
    texts = ["".join(draw.choice([*atoms, " ", " ", "fox"]) for _ in range(draw.randrange(1, 40))) for _ in range(4000)]
    seen = 0
    for algorithm in ("bpe", "wordpiece", "unigram", "char", "byte"):
        for objective in ("clm", "mlm"):
            for lowercase in (False, True):
                settings = TokenizerSettings(algorithm=algorithm, vocab_size=700, lowercase=lowercase)
                encoder = encoding.Encoder(train_tokenizer(settings, objective, texts[:300]), None)
                pieces = [encoding.Piece(text, Document(text), True) for text in texts]
                batches = pieces[:2000], pieces[2000:]
                encoded = [encoder.encode(batch) for batch in batches]
                found = [ids for each in encoded for ids in token_lists(each)]
                words = [count for each in encoded for count in each.words.tolist()]
                assert encoder.texts is not None
                if encoder.texts.seen is not None:
                    seen += 1
                    cut = encoder.texts.seen.encode([text.encode() for text in texts[:2000]])
                    assert cut is not None
                    assert cut.cut.sum() > 150
                encoder.texts.seen = None
                assert found == token_lists(encoder.encode(pieces)), (algorithm, objective, lowercase)
                assert words == [len(text.split()) for text in texts]
    assert seen == 12


def token_lists(encoded: Encoded) -> list[list[int]]:
    """The token ids of each piece."""
    ends = np.cumsum(encoded.lengths)[:-1]
    return [ids.tolist() for ids in np.split(encoded.tokens, ends)]


def test_all_white_space_is_known() -> None:
    known = {*" \t\n\r", *_OTHER_SPACE}
    assert {chr(code) for code in range(0x110000) if chr(code).isspace()} == known


def test_words_with_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a multiplier of 1 a hash is the sum of a word's bytes: all anagrams have the same."""
    monkeypatch.setattr("hfpretrain.data.seen._MULTIPLIER", 1)
    words = ["".join(word) for word in itertools.permutations("abcd")]
    tokenizer = bert()
    seen = SeenWords(tokenizer.backend_tokenizer)
    for _ in range(3):
        for text in (" ".join(words), " ".join(words[::-1]), "dcba abcd", "abcd"):
            found = seen.encode([text.encode()])
            assert found is not None
            assert found.tokens.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_few_words_are_remembered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfpretrain.data.seen.MOST_WORDS", 5)
    encoder = encoding.Encoder(bert(), None)
    assert encoder.texts is not None
    assert encoder.texts.seen is not None
    for text in TEXTS[:3] * 2:
        piece = encoding.Piece(text, Document(text), True)
        assert token_lists(encoder.encode([piece])) == [bert()(text, add_special_tokens=False)["input_ids"]]
        assert len(encoder.texts.seen._spelled) <= 5 + len(text.split()) + 1


@pytest.mark.parametrize("change", ["prefix", "regex", "normalizer", "added", "dropout"])
def test_a_tokenizer_that_may_cross_spaces_is_not_cut(change: str) -> None:
    content = json.loads(gpt().backend_tokenizer.to_str())
    assert cuts_at_spaces(json.dumps(content))
    if change == "prefix":
        content["pre_tokenizer"]["add_prefix_space"] = True
    elif change == "regex":
        content["pre_tokenizer"]["use_regex"] = False
    elif change == "normalizer":
        content["normalizer"] = {"type": "Replace", "pattern": {"String": "a b"}, "content": "c"}
    elif change == "added":
        content["added_tokens"].append(content["added_tokens"][0] | {"special": False, "content": "New York"})
    else:
        content["model"]["dropout"] = 0.1
    assert not cuts_at_spaces(json.dumps(content))
