"""Training a tokenizer, with the `tokenizers` library.

What is added here: special tokens that suit the objective, alphabets chosen by count, and an order for everything that
the library leaves to chance, so that the same data and settings give the same tokenizer, byte for byte.
"""

import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfpretrain import recipe
from hfpretrain.errors import DataError, ModelError, RecipeError

log = logging.getLogger(__name__)

Objective = Literal["clm", "mlm"]

MAX_TRAINING_BYTES = 200_000_000
"""A vocabulary hardly changes with more text than this, and the trainers keep every word's count in memory."""

TRAINING = 1
"""Counts the ways in which training gave other tokenizers of the same text; one of another way is not used."""

_PIECE_CHARACTERS = 65_536
# One set of names for each objective, whatever the algorithm: [MASK] is learnt once.
_MLM_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_CLM_NAMES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
# GPT-2's words (Radford et al. 2019): a space belongs to the word after it, so that nothing is lost.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_END = "\uffff"  # no character, by Unicode's own rule
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def train_tokenizer(
    settings: recipe.Tokenizer,
    objective: Objective,
    texts: Iterable[str],
    *,
    more_special: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer on `texts`, read once, up to MAX_TRAINING_BYTES.

    The same texts and settings give the same tokenizer.json, whatever the process and its threads. Decoding gives
    the exact text back for bpe, byte, unigram (which takes the sign U+2581 for a space) and char (of characters it
    has seen); wordpiece gives it in usual spacing.

    mlm: [PAD] [UNK] [CLS] [SEP] [MASK], and a text becomes `[CLS] text [SEP]`; bos and eos are [CLS] and [SEP].
    clm: <pad> <s> </s>, with <unk> where the vocabulary can lack something; a text becomes `<s> text`, so that a
    prompt is open at its end: who prepares documents appends </s>. `more_special` tokens follow these; they stand in
    no text by themselves.

    Raises RecipeError if tokenizer.vocab_size cannot hold the alphabet, DataError if there is no text.
    """
    algorithm = settings.algorithm or ("wordpiece" if objective == "mlm" else "bpe")
    names = dict(_MLM_NAMES if objective == "mlm" else _CLM_NAMES)
    if objective == "clm" and algorithm in ("bpe", "byte"):
        del names["unk"]
    text = _Text(texts)
    tokenizer = _untrained(algorithm, lowercase=settings.lowercase)
    every_special = [*names.values(), *more_special]
    tokenizer.model = _train(algorithm, tokenizer, text, settings.vocab_size, every_special, names.get("unk", ""))

    # Where a space is part of the word after it, the mask stands for both.
    takes_space = algorithm in ("bpe", "unigram")
    special = {
        f"{role}_token": AddedToken(name, special=True, normalized=False, lstrip=takes_space and role == "mask")
        for role, name in names.items()
    }
    more = [AddedToken(name, special=True, normalized=False) for name in more_special]
    tokenizer.add_special_tokens([*special.values(), *more])
    tokenizer.post_processor = _post_processor(objective, list(names.values()))
    if objective == "mlm":
        special |= {"bos_token": special["cls_token"], "eos_token": special["sep_token"]}
    trained_on = "nothing: its words are the 256 bytes" if algorithm == "byte" else str(text)
    log.info("tokenizer: %s, %s words, trained on %s", algorithm, f"{tokenizer.get_vocab_size():,}", trained_on)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # the decoder knows which
        **special,
        **({"extra_special_tokens": more} if more else {}),
    )


class _Text:
    """The training text: in pieces, counted, cut at MAX_TRAINING_BYTES. Raises DataError if nothing is in it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self._bytes = 0
        self._cut = False

    def __iter__(self) -> Iterator[str]:
        blank = True
        for text in self._texts:
            for piece in _pieces(text):
                if self._bytes >= MAX_TRAINING_BYTES:
                    self._cut = True
                    return
                self._bytes += len(piece.encode())
                blank = blank and piece.isspace()
                yield piece
        if blank:
            raise DataError("there is no text to train a tokenizer on", hint="check data.sources")

    def __str__(self) -> str:
        size = f"{self._bytes / 1e6:,.1f} MB" if self._bytes >= 1e5 else f"{self._bytes:,} bytes"
        return f"the first {size} of the text" if self._cut else f"{size} of text"


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text before spaces: the trainers need some 20 bytes per character of what they get at once."""
    start = 0
    while start < len(text):
        end = start + _PIECE_CHARACTERS
        space = text.find(" ", end, end + _PIECE_CHARACTERS)
        end = space if space >= 0 else end
        yield text[start:end]
        start = end


def _untrained(algorithm: str, *, lowercase: bool) -> Tokenizer:
    """How text is split and put together again; the model inside is still empty."""
    tokenizer = Tokenizer(models.BPE())
    if algorithm == "wordpiece":
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # strips accents if it lowercases
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # Tokens are joined by spaces: those before , . ! ? go in the first step, in don ' t and ( so ) in the last.
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.WordPiece(),
                decoders.Fuse(),
                decoders.Replace(Regex(r" ' (?=(?:s|t|re|ve|m|ll|d)\b)"), "'"),
                decoders.Replace(Regex(r"(?<=[(\[]) | (?=[)\];:])"), ""),
            ]
        )
        return tokenizer
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    if algorithm == "unigram":
        # The prefix that sentencepiece puts before a text would also come after a mask, and would not decode.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
            ]
        )
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    elif algorithm == "char":
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=algorithm == "bpe")
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train(algorithm: str, tokenizer: Tokenizer, text: _Text, vocab_size: int, special: list[str], unknown: str) -> Any:
    """The trained model. The special tokens come first in it, then the alphabet, then what was learnt."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    if algorithm == "byte":
        return models.BPE(vocab=_numbered(special + bytes_), merges=[])
    if algorithm == "bpe":
        _check_vocab_size(vocab_size, len(special) + len(bytes_), "the special tokens and the 256 bytes")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=bytes_, show_progress=False
        )
        learner = _copy(tokenizer, models.BPE())
        learner.train_from_iterator(text, trainer)
        return learner.model
    if algorithm == "char":
        characters = sorted(_count_characters(text, tokenizer))
        return models.BPE(vocab=_numbered(special + characters), merges=[], unk_token=unknown)
    train = _train_wordpiece if algorithm == "wordpiece" else _train_unigram
    return train(tokenizer, list(text), vocab_size, special, unknown)


def _train_wordpiece(tokenizer: Tokenizer, text: list[str], vocab_size: int, special: list[str], unknown: str) -> Any:
    counts = _count_characters(text, tokenizer)
    letters = _alphabet({char: n for char, n in counts.items() if not char.isspace()}, vocab_size)
    # The trainer numbers the continuations in the order of a hash table that is seeded anew in each process, and
    # breaks ties by these numbers. Given as special tokens they come in ours.
    continues = tokenizer.pre_tokenizer.pre_tokenize_str
    alphabet = letters + [f"##{char}" for char in letters if len(continues(f"a{char}")) == 1]
    _check_vocab_size(vocab_size, len(special) + len(alphabet), "the special tokens and the characters of the data")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + alphabet,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner = _copy(tokenizer, models.WordPiece(unk_token=unknown))
    learner.train_from_iterator(text, trainer)
    return models.WordPiece(vocab=learner.get_vocab(), unk_token=unknown)


def _train_unigram(tokenizer: Tokenizer, text: list[str], vocab_size: int, special: list[str], unknown: str) -> Any:
    """Kudo 2018's unigram model, with the 256 bytes beside it for characters outside its alphabet."""
    if tokenizer.normalizer:
        text = [tokenizer.normalizer.normalize_str(piece) for piece in text]
    # The characters of the byte tokens' names are always there, so that a text that spells one is not read as one.
    counts = Counter("".join(_BYTE_TOKENS))
    for piece in text:
        counts.update(piece)
    counts["▁"] += counts.pop(" ", 0)
    del counts[_END]
    room = vocab_size - len(special) - len(_BYTE_TOKENS)
    letters = _alphabet(counts, room)
    what = "the special tokens, the 256 bytes and the characters of the data"
    _check_vocab_size(vocab_size, len(special) + len(_BYTE_TOKENS) + len(letters), what)
    rare = str.maketrans(dict.fromkeys(counts.keys() - set(letters), " "))
    trainer = trainers.UnigramTrainer(
        vocab_size=room + 2,  # with the unknown token and the end sign
        special_tokens=[unknown],
        unk_token=unknown,
        initial_alphabet=letters,
        show_progress=False,
    )
    common = (piece.translate(rare) if rare else piece for piece in text)
    # The trainer's candidates are what stands before two different characters in different words, so that most whole
    # words are none. A copy of the text whose words carry an end sign makes them candidates; the sign, always last,
    # is in none.
    twice = (copy for piece in common for copy in (piece, re.sub(r"(?<=\S)(?= |$)", _END, piece)))
    learner = _copy(tokenizer, models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(f"(?:{_WORDS}){_END}?"), "isolated"), tokenizer.pre_tokenizer[1]]
    )
    learner.train_from_iterator(twice, trainer)
    scores = dict(json.loads(learner.to_str())["model"]["vocab"])
    del scores[unknown], scores[_END]
    # Two things depend on hash tables seeded anew in each process: the last digits of the sums, and the order in
    # which characters kept for coverage alone are set apart, 0.0001 each, from the lowest score.
    lowest = min(scores.values())
    band = lowest + 1e-4 * (len(letters) + 1)
    pieces = [
        (piece, round(lowest if len(piece) == 1 and score < band else score, 4)) for piece, score in scores.items()
    ]
    # So low that spelling such a name out is always the better reading.
    byte_score = round(10 * lowest - 100, 4)
    vocab = [(token, 0.0) for token in special] + [(token, byte_score) for token in _BYTE_TOKENS]
    vocab += sorted(pieces, key=lambda piece: (-piece[1], piece[0]))
    return models.Unigram(vocab=vocab, unk_id=special.index(unknown), byte_fallback=True)


def _copy(tokenizer: Tokenizer, model: Any) -> Tokenizer:
    """One that splits text like `tokenizer`, for a trainer to work on: it adds its special tokens to what it trains."""
    copy = Tokenizer(model)
    copy.normalizer, copy.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return copy


def _count_characters(text: Iterable[str], tokenizer: Tokenizer) -> Counter[str]:
    """How often each character occurs after normalisation."""
    counts: Counter[str] = Counter()
    for piece in text:
        counts.update(tokenizer.normalizer.normalize_str(piece) if tokenizer.normalizer else piece)
    return counts


def _alphabet(counts: Mapping[str, int], vocab_size: int) -> list[str]:
    """The characters that get tokens of their own, sorted: the most frequent, so that there is room for words."""
    at_most = max(100, vocab_size // 4)
    return sorted(sorted(counts, key=lambda char: (-counts[char], char))[:at_most])


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _check_vocab_size(vocab_size: int, needed: int, what: str) -> None:
    if vocab_size < needed:
        raise RecipeError(
            f"tokenizer.vocab_size: {vocab_size} is too small: {what} are {needed:,} words already",
            hint=f"set it to more than {needed}, or set tokenizer.algorithm to char or byte, which need no size",
        )


def _post_processor(objective: Objective, special: list[str]) -> Any:
    """What stands around a text. `special` are the special tokens by id."""
    single, pair = (
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1") if objective == "mlm" else ("<s> $A", "<s> $A $B:1")
    )
    used = [(name, number) for number, name in enumerate(special) if name in single]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)


def check_reload(tokenizer: PreTrainedTokenizerBase, architecture: str) -> None:
    """Raises ModelError unless AutoTokenizer, beside a model of this architecture, gives this very tokenizer.

    For a few architectures (qwen2 is one) transformers ignores the class that was saved and takes the registered
    one, which brings its own way to split text: the finished model would then read other tokens than it learnt.
    """
    if not tokenizer.is_fast:
        return
    from transformers import AutoTokenizer, PreTrainedConfig  # which import torch

    config = PreTrainedConfig()
    config.model_type = architecture
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder, config=config)
    if not loaded.is_fast or loaded.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
        raise ModelError(
            f"a {architecture} model cannot have this tokenizer: transformers would load it as "
            f"{type(loaded).__name__}, which splits text in another way",
            hint="choose another model.architecture (qwen3 or llama have no such rule), or set tokenizer.from to a "
            f"tokenizer made for {architecture}",
        )
