"""Small tokenizers of the three families, and token stores as lists."""

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hfpretrain.data.sources import OpenSource, open_source
from hfpretrain.data.tokens import TokenStore
from hfpretrain.recipe import Source

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "I love to eat pizza with cheese, mushrooms and olives.\nDo you?\n\n  Not me!",
    " It rained all day; the children stayed inside.  Ünïcödé 日本語。",
    "fox",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache  # the library's trainer breaks ties by chance: each vocabulary is trained once
def wordpiece(texts: tuple[str, ...], spaces_only: bool) -> str:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not spaces_only)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if spaces_only else pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(backend.to_str())


def bert(texts: list[str] = TEXTS, *, spaces_only: bool = False) -> PreTrainedTokenizerFast:
    """WordPiece with [CLS] and [SEP] around each text."""
    return bert_of(wordpiece(tuple(texts), spaces_only))


def bert_of(specification: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(specification)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names)


def gpt(texts: list[str] = TEXTS, *, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds nothing to a text; every word of the texts is a token of its own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def sentencepiece(texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    """Unigram over words that begin with a space, and </s> after each text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def source_of(folder: Path, texts: list[str], name: str = "corpus.jsonl", **keys: Any) -> OpenSource:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return open_source(Source(files=str(path)), **keys)


def documents(store: TokenStore) -> list[list[int]]:
    return [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def with_end(ids: list[int], end: int | None) -> list[int]:
    return ids if end is None or ids[-1:] == [end] else [*ids, end]
