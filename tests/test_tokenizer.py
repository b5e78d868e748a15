"""Tokenizers: what they make of texts, their special tokens, and that they come back as they were."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest

from hfpretrain import recipe
from hfpretrain.errors import DataError, ModelError, RecipeError
from hfpretrain.modeling import tokenizer_training as room
from hfpretrain.modeling.tokenizer import build_tokenizer, load_tokenizer, tokenizer_of_data
from hfpretrain.modeling.tokenizer_training import check_reload, train_tokenizer

Objective = Literal["clm", "mlm"]
ALGORITHMS: tuple[Any, ...] = ("bpe", "wordpiece", "unigram", "char", "byte")
BOTH: tuple[Objective, ...] = ("clm", "mlm")
PANGRAM = "The quick brown fox jumps over the lazy dog."
ODD = "Zoë's naïve café — 狐狸 🦊👩‍👩‍👧 e\u0301!\n\n\tTwo  spaces, \u00a0and a tab. "
TEXTS = [
    *[PANGRAM] * 20,
    *["The lazy dog didn't jump (it slept), and the brown fox won; who's surprised?"] * 5,
    *[
        f"On day {day} we saw {day % 7} foxes, {day % 5} dogs\nand {'no' if day % 2 else 'one'} bear."
        for day in range(99)
    ],
    ODD,
]
LARGE = " ".join(TEXTS) + " ".join(chr(0x4E00 + number % 900) + "x" * (number % 3) for number in range(2000))


def trained(algorithm: Any, objective: Objective, **settings: Any) -> Any:
    return train_tokenizer(recipe.Tokenizer(algorithm=algorithm, **({"vocab_size": 700} | settings)), objective, TEXTS)


def inner(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("objective", BOTH)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_text_comes_back(algorithm: str, objective: Objective) -> None:
    tokenizer = trained(algorithm, objective)
    ids = tokenizer(PANGRAM)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == PANGRAM
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    if algorithm != "wordpiece":
        assert tokenizer.decode(tokenizer(ODD)["input_ids"], skip_special_tokens=True) == ODD


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "byte"])
def test_no_character_is_unknown(algorithm: str) -> None:
    unseen = "Ж\u0000 ﷺ <0x41> 龘\U0001f9ff \r\n"
    tokenizer = trained(algorithm, "mlm")
    ids = inner(tokenizer, unseen)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == unseen


def test_char_knows_what_it_has_seen() -> None:
    tokenizer = trained("char", "clm")
    assert len(tokenizer) == 4 + len(set("".join(TEXTS)))
    assert tokenizer.decode(inner(tokenizer, "fЖx")) == "f<unk>x"


def test_byte_needs_no_text() -> None:
    tokenizer = train_tokenizer(recipe.Tokenizer(algorithm="byte"), "clm", [])
    assert len(tokenizer) == 256 + 3
    assert len(inner(tokenizer, "狐a")) == 4


def test_wordpiece_decodes_to_natural_spacing() -> None:
    text = "The lazy dog didn't jump (it slept), and the brown fox won; who's surprised?"
    tokenizer = trained("wordpiece", "mlm")
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lowercase(algorithm: str) -> None:
    tokenizer = trained(algorithm, "mlm", lowercase=True)
    assert tokenizer.decode(inner(tokenizer, PANGRAM)) == PANGRAM.lower()
    assert inner(tokenizer, "FOX É [MASK]") == inner(tokenizer, "fox é [MASK]")
    folds_accents = inner(tokenizer, "naïve") == inner(tokenizer, "naive")
    assert folds_accents == (algorithm == "wordpiece")


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize(
    ("before", "word", "after"), [("", "The", " fox"), ("The quick", " brown", " fox"), ("The lazy", " dog", ".")]
)
def test_mask_stands_where_the_word_stood(algorithm: str, before: str, word: str, after: str) -> None:
    tokenizer = trained(algorithm, "mlm")
    space = " " if word.startswith(" ") else ""
    whole = inner(tokenizer, before + word + after)
    start, stop = len(inner(tokenizer, before)), len(inner(tokenizer, before + word))
    masked = inner(tokenizer, f"{before}{space}[MASK]{after}")
    assert masked == [*whole[:start], tokenizer.mask_token_id, *whole[stop:]]


@pytest.mark.parametrize("algorithm", ["char", "byte"])
def test_mask_among_characters_keeps_the_spaces(algorithm: str) -> None:
    tokenizer = trained(algorithm, "mlm")
    assert inner(tokenizer, "a [MASK] b") == [*inner(tokenizer, "a "), tokenizer.mask_token_id, *inner(tokenizer, " b")]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens(algorithm: str) -> None:
    mlm, clm = trained(algorithm, "mlm"), trained(algorithm, "clm")
    assert mlm.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (mlm.bos_token_id, mlm.eos_token_id) == (mlm.cls_token_id, mlm.sep_token_id)
    assert mlm.decode(mlm("fox", "dog")["input_ids"]).replace(" ", "") == "[CLS]fox[SEP]dog[SEP]"
    assert clm.convert_ids_to_tokens(range(3)) == ["<pad>", "<s>", "</s>"]
    assert clm("fox")["input_ids"] == [clm.bos_token_id, *inner(clm, "fox")]
    assert (clm.unk_token is None) == (algorithm in ("bpe", "byte"))
    assert clm.mask_token is None and clm.pad_token_id != clm.eos_token_id
    assert list(mlm("fox")) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_vocab_size_is_never_exceeded(algorithm: Any) -> None:
    for size in (450, 500, 900):
        tokenizer = train_tokenizer(recipe.Tokenizer(algorithm=algorithm, vocab_size=size), "mlm", [LARGE])
        assert len(tokenizer) <= size
        assert len(inner(tokenizer, " fox jumps")) == 2, "a thousand rare characters must leave room for words"


@pytest.mark.parametrize(("algorithm", "size"), [("bpe", 258), ("wordpiece", 40), ("unigram", 280)])
def test_vocab_size_too_small(algorithm: Any, size: int) -> None:
    with pytest.raises(RecipeError, match=rf"tokenizer\.vocab_size: {size} is too small"):
        trained(algorithm, "clm", vocab_size=size)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram", "char"])
@pytest.mark.parametrize("texts", [[], [""], [" \n", "\t"]])
def test_no_text(algorithm: Any, texts: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(recipe.Tokenizer(algorithm=algorithm), "mlm", texts)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_words_that_come_often_are_tokens(algorithm: Any) -> None:
    tokenizer = train_tokenizer(recipe.Tokenizer(algorithm=algorithm, vocab_size=500), "mlm", TEXTS)
    for word in ("quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"):
        assert len(inner(tokenizer, f" {word}")) == 1


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram", "char"])
def test_two_sentences_are_enough(algorithm: Any) -> None:
    texts = ["The quick brown fox", "The quick brown fox jumps"]
    tokenizer = train_tokenizer(recipe.Tokenizer(algorithm=algorithm), "clm", texts)
    assert tokenizer.decode(inner(tokenizer, texts[1])) == texts[1]


def test_says_what_was_trained_and_where_it_was_cut(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="hfpretrain")
    trained("char", "mlm")
    monkeypatch.setattr(room, "MAX_TRAINING_BYTES", 1000)
    # A single endless line: it is cut at once, not read whole.
    tokenizer = train_tokenizer(recipe.Tokenizer(algorithm="char"), "clm", ["ab " * 100_000 + "Z"])
    size = f"{len(''.join(TEXTS).encode()):,}"
    assert (
        caplog.messages[0] == f"tokenizer: char, {5 + len(set(''.join(TEXTS)))} words, trained on {size} bytes of text"
    )
    assert "the first 65,5" in caplog.messages[1]
    assert "Z" not in tokenizer.get_vocab()


DIGEST = """
import sys, hashlib
from hfpretrain import recipe
from hfpretrain.modeling.tokenizer_training import train_tokenizer
text = sys.stdin.buffer.read().decode()
for algorithm in sys.argv[1:]:
    tokenizer = train_tokenizer(recipe.Tokenizer(algorithm=algorithm, vocab_size=700), "mlm", [text])
    print(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
"""


def test_the_same_in_every_process() -> None:
    processes = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        command = [sys.executable, "-c", DIGEST, *ALGORITHMS]
        processes.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
    first, second = (process.communicate(LARGE)[0].split() for process in processes)
    here = []
    for algorithm in ALGORITHMS:
        tokenizer = train_tokenizer(recipe.Tokenizer(algorithm=algorithm, vocab_size=700), "mlm", [LARGE])
        here.append(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
    assert first == second == here


RELOAD = """
import json, sys
from pathlib import Path
sys.modules["hfpretrain"] = None  # importing it raises ImportError
from transformers import AutoTokenizer
for folder in sorted(Path(sys.argv[1]).iterdir()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(sys.argv[2])["input_ids"]
    skipped = tokenizer.decode(ids, skip_special_tokens=True)
    print(json.dumps([folder.name, ids, tokenizer.special_tokens_map, tokenizer.decode(ids), skipped]))
"""


def test_reloaded_where_hfpretrain_is_not(tmp_path: Path) -> None:
    text = f"{PANGRAM} A [MASK] fox, [MASK]."
    expected = []
    for algorithm in ALGORITHMS:
        for objective in BOTH:
            tokenizer, folder = trained(algorithm, objective), tmp_path / f"{algorithm}-{objective}"
            tokenizer.save_pretrained(folder)
            (folder / "config.json").write_text(json.dumps({"model_type": "bert" if objective == "mlm" else "llama"}))
            ids = tokenizer(text)["input_ids"]
            decoded = tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)
            expected.append([folder.name, ids, tokenizer.special_tokens_map, *decoded])
    command = [sys.executable, "-P", "-c", RELOAD, str(tmp_path), text]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == sorted(expected)


def test_library_pipelines_take_them(tmp_path: Path) -> None:
    import transformers

    mlm, clm = trained("bpe", "mlm"), trained("wordpiece", "clm")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(mlm), pad_token_id=0, **small))
    fill = transformers.pipeline("fill-mask", model=bert, tokenizer=mlm)
    assert {answer["sequence"] for answer in fill("The quick [MASK] fox", top_k=len(mlm))} >= {"The quick brown fox"}
    config = transformers.LlamaConfig(
        vocab_size=len(clm), bos_token_id=clm.bos_token_id, eos_token_id=None, pad_token_id=clm.pad_token_id, **small
    )
    llama = transformers.LlamaForCausalLM(config)
    out = llama.generate(**clm("The quick", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert clm.decode(out[0], skip_special_tokens=True).startswith("The quick")


def test_architecture_that_brings_its_own_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="qwen2 model cannot have this tokenizer"):
        check_reload(trained("bpe", "clm"), "qwen2")
    check_reload(trained("bpe", "clm"), "qwen3")
    (tmp_path / "text.txt").write_text(PANGRAM)
    mapping = {"objective": "clm", "data": {"sources": [{"files": str(tmp_path / "text.txt")}]}}
    chosen = recipe.from_mapping(mapping | {"model": {"architecture": "qwen2"}})
    # Data may be prepared with it, for whatever model, and then it is kept; which must not make it good for this one.
    tokenizer_of_data(chosen)
    with pytest.raises(ModelError, match="qwen2 model cannot have this tokenizer"):
        build_tokenizer(chosen)


def test_an_existing_model_that_brings_its_own_tokenizer(tmp_path: Path) -> None:
    """What is saved beside its configuration would be loaded as another one, by a resume and by everyone else."""
    trained("bpe", "clm").save_pretrained(tmp_path)
    for architecture in ("qwen3", "qwen2"):
        (tmp_path / architecture).mkdir()
        trained("bpe", "clm").save_pretrained(tmp_path / architecture)
        (tmp_path / architecture / "config.json").write_text(json.dumps({"model_type": architecture}))
        mapping = {"objective": "clm", "data": {"sources": [{"builtin": "everyday"}]}}
        chosen = {"model": {"from": str(tmp_path / architecture)}, "tokenizer": {"from": str(tmp_path)}}
        with pytest.raises(ModelError, match="qwen2 model") if architecture == "qwen2" else nullcontext():
            build_tokenizer(recipe.from_mapping(mapping | chosen))


def test_existing(tmp_path: Path) -> None:
    mlm, clm = trained("bpe", "mlm"), trained("bpe", "clm")
    mlm.save_pretrained(tmp_path / "mlm")
    clm.save_pretrained(tmp_path / "clm")
    assert load_tokenizer(str(tmp_path / "mlm"), "mlm")(ODD) == mlm(ODD)
    assert load_tokenizer(str(tmp_path / "mlm"), "clm")(ODD) == mlm(ODD)
    with pytest.raises(ModelError, match="no mask token"):
        load_tokenizer(str(tmp_path / "clm"), "mlm")


@pytest.mark.parametrize("objective", BOTH)
@pytest.mark.parametrize("model", [None, "qwen2", "qwen3", "gpt2"])
def test_existing_ones_are_what_transformers_takes_them_for(
    tmp_path: Path, objective: Objective, model: str | None
) -> None:
    from transformers import AutoTokenizer

    trained("bpe", objective).save_pretrained(tmp_path)
    if model:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    ours, theirs = load_tokenizer(str(tmp_path), objective), AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours(ODD) == theirs(ODD)
    for each, place in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        each.init_kwargs.pop("is_local", None)
        each.init_kwargs.pop("local_files_only", None)
        each.save_pretrained(place)
    for file in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes()


def test_slow_tokenizer(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), "clm").is_fast is False


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(str(tmp_path / "missing"), "mlm")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path), "mlm")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ModelError, match="has no words"):
        load_tokenizer(str(tmp_path), "mlm")
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_tokenizer(str(tmp_path), "mlm")


def test_build_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PANGRAM)
    (tmp_path / "b.jsonl").write_text('{"text": "brown bears"}\n{"text": "Zoë"}\n')
    files = tuple(recipe.Source(files=str(tmp_path / name)) for name in ("a.txt", "b.jsonl"))
    data = recipe.Data(sources=files)
    characters = build_tokenizer(
        recipe.Recipe(objective="clm", data=data, tokenizer=recipe.Tokenizer(algorithm="char"))
    )
    assert set(characters.get_vocab()) == {"<pad>", "<s>", "</s>", "<unk>", *PANGRAM, *"brown bearsZoë"}
    # Without an algorithm: words for mlm, any text for clm.
    words = build_tokenizer(recipe.Recipe(objective="mlm", data=data))
    assert words.convert_tokens_to_ids("##w") != words.unk_token_id
    assert build_tokenizer(recipe.Recipe(objective="clm", data=data)).unk_token is None

    words.save_pretrained(tmp_path / "words")
    characters.save_pretrained(tmp_path / "characters")
    model = recipe.Model(from_=str(tmp_path / "words"))
    assert build_tokenizer(recipe.Recipe(objective="mlm", data=data, model=model)).get_vocab() == words.get_vocab()
    chosen = recipe.Tokenizer(from_=str(tmp_path / "characters"))
    other = build_tokenizer(recipe.Recipe(objective="clm", data=data, model=model, tokenizer=chosen))
    assert other.get_vocab() == characters.get_vocab()
