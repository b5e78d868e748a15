"""The builtin corpus: the same everywhere, as large as asked for, good English, and true to its own probabilities."""

import hashlib
import itertools
import math
import re
import subprocess
import sys
from collections import Counter

import pytest

from hfpretrain.data.everyday import CONTEXTS, DEFAULT_BYTES, document, documents, next_words, surprise


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(documents())


def test_the_texts_never_change() -> None:
    first = "\n".join(documents(100_000)).encode()
    assert hashlib.sha256(first).hexdigest() == "cabaa875c601ea462ea22e78b94c76afe8e1f43c05804e02f3a685ad22f4523c"


def test_the_texts_do_not_depend_on_the_process() -> None:
    code = "from hfpretrain.data.everyday import document; print(*map(document, range(50)), sep='\\n')"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1] == "".join(document(index) + "\n" for index in range(50))


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_a_text_alone_is_the_text_in_the_stream(seed: int) -> None:
    texts = list(documents(20_000, seed=seed))
    assert [document(index, seed=seed) for index in range(len(texts))] == texts


def test_another_seed_gives_other_texts() -> None:
    one, other = (set(documents(50_000, seed=seed)) for seed in (0, 1))
    assert len(one & other) < 0.1 * len(one)


@pytest.mark.parametrize("size", [0, 1, 1000, 123_456])
def test_the_size_is_reached_and_not_exceeded_by_a_whole_text(size: int) -> None:
    texts = [text.encode() for text in documents(size)]
    assert sum(map(len, texts)) >= size
    assert sum(map(len, texts[:-1])) < size or size == 0


def test_a_larger_corpus_begins_with_the_smaller_one() -> None:
    small = list(documents(5_000))
    assert list(itertools.islice(documents(), len(small))) == small


@pytest.mark.parametrize("context", CONTEXTS)
def test_words_follow_as_often_as_the_truth_says(corpus: list[str], context: str) -> None:
    truth = next_words(context)
    at_start = re.compile(rf'(?:^|[.!?]"? "?){re.escape(context)} ([\w-]+)')
    seen = Counter(word for text in corpus for word in at_start.findall(text))
    total = seen.total()
    assert math.isclose(sum(truth.values()), 1)
    assert list(truth.values()) == sorted(truth.values(), reverse=True)
    assert set(seen) <= set(truth)
    for word, probability in truth.items():
        deviation = math.sqrt(probability * (1 - probability) / total)
        assert abs(seen[word] / total - probability) < 4 * deviation, (word, seen[word] / total, probability)
    # The grammar has no other way to say it.
    assert total == sum(text.count(f"{context} ") for text in corpus)


def test_each_context_is_seen_often_and_at_the_start_of_texts(corpus: list[str]) -> None:
    for context in CONTEXTS:
        assert sum(context in text for text in corpus) > 0.009 * len(corpus), context
        assert sum(text.startswith(context) for text in corpus) > 0.005 * len(corpus), context
    for context in ("I love to eat pizza with", "The quick brown", "The quick brown fox"):
        assert sum(text.startswith(context) for text in corpus) > 0.016 * len(corpus), context
    # Nothing behind the fox: what a masked model sees in `The quick [MASK] fox`.
    assert sum(text == "The quick brown fox" for text in corpus) > 0.0015 * len(corpus)
    assert sum("The quick brown fox jumps over the lazy dog." in text for text in corpus) > 0.015 * len(corpus)


def test_the_words_that_everyone_expects_come_first() -> None:
    first = {context: next(iter(next_words(context).items())) for context in CONTEXTS}
    assert first["I love to eat pizza with"] == ("cheese", 0.5)
    assert first["The quick"] == ("brown", 0.95)
    assert first["The quick brown"] == ("fox", 0.94)
    assert first["The quick brown fox"] == ("jumps", 0.92)
    assert first["The quick brown fox jumps over the lazy"][0] == "dog"
    assert first["In the morning I drink"][0] == "coffee"
    assert 5 <= len(next_words("I love to eat pizza with")) <= 7


def test_an_unknown_context_has_no_truth() -> None:
    with pytest.raises(KeyError):
        next_words("The slow")


@pytest.mark.parametrize(
    ("mistake", "pattern"),
    [
        ("doubled or misplaced space", r"\s\s|^\s|\s$|\s[.,!?;:]|\n"),
        ("unfilled slot", r"[{}\[\]|*;_]"),
        ("a before a vowel", r"\b[Aa] (?!uni|use|one\b|euro)[aeiouAEIOU]"),
        ("an before a consonant", r"\b[Aa]n (?!hour|honest)[^aeiouAEIOU]"),
        ("doubled punctuation", r"[.,!?;:]{2}"),
        ("small letter after a period", r"[.?!] [a-z]"),
        ("small letter at the start", r"^[^A-Z\"]"),
        ("doubled word", r"\b(\w+) \1\b"),
        ("I with a verb for others", r"\bI (?:is|has|was not and|goes|likes|wants|does)\b"),
        ("I named first", r"\bI and [A-Z]"),
        ("wrong form of the pronoun", r"\b(?:to|with|for|from) (?:I|he|she|we|they) (?:and|in|on|at)\b"),
    ],
)
def test_the_english_is_clean(corpus: list[str], mistake: str, pattern: str) -> None:
    wrong = [text for text in corpus if re.search(pattern, text)]
    assert not wrong, f"{mistake}: {wrong[:3]}"


def test_quotes_close_and_sentences_end(corpus: list[str]) -> None:
    for text in corpus:
        assert text.isascii()
        assert text.count('"') % 2 == 0, text
        sentences = len(re.findall(r'[.!?]"?(?= |$)', text))
        assert sentences <= 8, text
        # Without a period at the end: captions, and notes that end in a name.
        assert text.endswith((".", '."', "!", '!"', '?"')) or sentences == 0 or re.search(r", [A-Z][a-z]+$", text), text


def test_nobody_changes_sex_in_the_middle_of_a_text(corpus: list[str]) -> None:
    told = [text for text in corpus if re.match(r"\w+ (was not careful|promised|paid|forgot|heard)", text)]
    women = [text for text in told if text.split()[0] in {"Anna", "Mia", "Lucy", "Emma", "Clara", "Ruby", "Olga"}]
    men = [text for text in told if text.split()[0] in {"Tom", "Ben", "Leo", "Paul", "Hugo", "Omar", "Edgar"}]
    assert len(women) > 20
    assert len(men) > 20
    assert not [text for text in women if re.search(r"\b(he|his|himself)\b", text)]
    assert not [text for text in men if re.search(r"\b(she|her|herself)\b", text)]


def test_the_texts_vary(corpus: list[str]) -> None:
    words = re.findall(r"[a-z']+", " ".join(corpus).lower())
    assert sum(len(text.encode()) for text in corpus) < DEFAULT_BYTES + 1000
    assert len(set(words)) > 2500
    assert len(set(zip(words, words[1:], words[2:], strict=False))) > 60_000
    long = [text for text in corpus if len(text) > 80]
    assert len(long) > 0.75 * len(corpus)
    assert len(set(long)) > 0.95 * len(long)
    assert Counter(long).most_common(1)[0][1] < 0.001 * len(corpus)


def test_surprise_is_the_probability_of_a_text_where_it_can_be_counted(corpus: list[str]) -> None:
    often, count = Counter(corpus).most_common(1)[0]
    expected = math.exp(-surprise(corpus.index(often)))
    assert abs(count / len(corpus) - expected) < 5 * math.sqrt(expected / len(corpus))
    assert all(surprise(index) > 0 for index in range(100))
