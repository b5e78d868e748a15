"""What check says of the data: rows as the model sees them, lengths, shares, and what usually goes wrong."""

import dataclasses
import gc
import json
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_tokenizers import bert, gpt
from tiny import GPT2, LLAMA, tiny_recipe, write_corpus
from transformers import PreTrainedTokenizerFast

from hfpretrain import check_data
from hfpretrain.check_data import DataFacts, data_facts, sample_row
from hfpretrain.cli import main
from hfpretrain.data.blocks import PADDING
from hfpretrain.modeling.fim import sentinels
from hfpretrain.recipe import Recipe, to_mapping
from hfpretrain.run import Run
from hfpretrain.training import estimate
from hfpretrain.training.session import Session, open_accelerator, prepare_session


def session_of(folder: Path, recipe: Recipe) -> Session:
    return prepare_session(recipe, Run(folder / "none"), open_accelerator(recipe))


def facts_of(folder: Path, objective: str = "clm", *overrides: str) -> tuple[Session, DataFacts]:
    session = session_of(folder, tiny_recipe(folder, objective, *overrides))
    return session, data_facts(session)


def warnings_of(folder: Path, objective: str = "clm", *overrides: str) -> list[str]:
    session, facts = facts_of(folder, objective, *overrides)
    return list(facts.warnings(session))


def printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recipe: Recipe, **environment: str
) -> str:
    """What the command line prints."""
    monkeypatch.setattr(estimate, "TRIED_SECONDS", 0.1)
    monkeypatch.chdir(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(to_mapping(recipe)))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["hfpretrain", "check", "recipe.yaml"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capfd.readouterr()
    assert stopped.value.code == 0, err
    return out


def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path, "mlm", "masking={rate: {from: 0.5, to: 0.1}, unit: word}")
    plain = printed(tmp_path, monkeypatch, capfd, recipe)
    assert "\x1b" not in plain
    for line in ("plan       12 steps", "packing    documents, proven", "text       4.2", "rows       "):
        assert f"\n{line}" in plain
    assert re.search(r"\[\[MASK\]: \w+\]", plain)
    assert " | [CLS] " in plain
    assert "Tokens per document (120 documents; median" in plain
    assert re.search(r"\n +8-15  █+ +\d+\.\d%\n", plain)
    coloured = printed(tmp_path, monkeypatch, capfd, recipe, FORCE_COLOR="1")
    assert "\x1b[1;32m[[MASK]: " in coloured
    assert "\x1b[35m|\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split("The first rows")[1] == plain.split("The first rows")[1]
    without = printed(tmp_path, monkeypatch, capfd, recipe, FORCE_COLOR="1", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", without)


def test_counting_what_a_pass_keeps_keeps_nothing(tmp_path: Path) -> None:
    """Otherwise the peak of memory that check shows has the activations twice."""
    settings = f"model={{architecture: llama, config: {LLAMA}}}"
    session = session_of(tmp_path, tiny_recipe(tmp_path, "clm", settings))
    seen: list[Any] = []
    model: Any = session.model
    model.get_input_embeddings().register_forward_hook(lambda *each: seen.append(weakref.ref(each[-1])))
    assert estimate._saved_bytes(session) > 0
    gc.collect()
    assert [each() for each in seen] == [None]


def test_rows_of_pairs_and_of_turned_documents(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"p": f"the fox {n} ", "c": "runs far"}) + "\n" for n in range(60)))
    source = f"data.sources=[{{files: {pairs}, prompt_column: p, completion_column: c}}]"
    row = sample_row(session_of(tmp_path, tiny_recipe(tmp_path, "clm", source)), 0)
    assert re.search(r"\{.*the.*\} +r", row.plain)
    assert {str(span.style) for span in row.spans} >= {"dim", "green"}
    turned = session_of(tmp_path, tiny_recipe(tmp_path, "clm", "fim.rate=1", "data.block_size=32"))
    row = sample_row(turned, 0)
    for name in turned.tokenizer.convert_ids_to_tokens(list(sentinels(turned.tokenizer))):
        assert name in row.plain


def test_what_is_counted_is_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, facts = facts_of(tmp_path, "mlm")
    store = session.batches.stores[0]
    assert facts.documents == 120
    assert facts.lengths.tolist() == np.diff(store.offsets).tolist()
    assert facts.counts.tolist() == np.bincount(store.tokens, minlength=len(facts.counts)).tolist()
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert facts.text_bytes / facts.tokens == sum(len(text) for text in texts) / len(store.tokens)
    rows = [session.batches.row(position) for position in range(session.batches.blocks)]
    assert facts.padding == pytest.approx(
        np.mean([(row.block.documents[:-1] == PADDING).mean() for row in rows]), abs=1e-6
    )
    assert facts.targets == pytest.approx(0.13, abs=0.03)
    assert not facts.sampled
    lines = facts.histogram(16).splitlines()[1:]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    # The same from a sample, which is said.
    monkeypatch.setattr(check_data, "LENGTHS", 50)
    monkeypatch.setattr(check_data, "CHUNK", 64)
    monkeypatch.setattr(check_data, "TOKENS", 640)
    sample = data_facts(session)
    assert len(sample.lengths) == 50
    assert sample.counts.sum() <= 640
    assert f"(in {sample.counts.sum()} of 2.03k tokens)" in dict(sample.lines())["text"]
    assert "50 of them looked at" in sample.histogram(16)
    assert np.median(sample.lengths) == pytest.approx(np.median(facts.lengths), abs=3)


def test_documents_of_one_length(tmp_path: Path) -> None:
    _, facts = facts_of(tmp_path)
    one = dataclasses.replace(facts, lengths=np.full(7, 1), documents=7)
    assert one.histogram(16).splitlines()[1:] == ["1-1  " + "█" * 30 + " 100.0%"]
    far = dataclasses.replace(facts, lengths=np.array([1, 2**30]), documents=2)
    assert len(far.histogram(16).splitlines()) <= 13


def test_nothing_is_said_of_good_data(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=1000)
    for objective in ("clm", "mlm"):
        assert warnings_of(tmp_path, objective) == []


def test_a_vocabulary_that_is_large_for_the_data(tmp_path: Path) -> None:
    (sentence,) = warnings_of(tmp_path)
    assert re.match(r"the vocabulary of 3\d\d is large for the data, .* tokens for each entry", sentence)
    assert "tokenizer.vocab_size" in sentence


def test_a_vocabulary_that_is_hardly_used(tmp_path: Path) -> None:
    """Of an existing tokenizer, with enough tokens for its size but of other words than its own."""
    write_corpus(tmp_path / "corpus.jsonl", documents=3000)
    tokenizer = gpt()
    tokenizer.add_tokens([f"word{number}" for number in range(1500)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (sentence,) = warnings_of(tmp_path, "clm", f"tokenizer={{from: {tmp_path / 'tokenizer'}}}")
    assert re.match(r"9\d% of the vocabulary of \d+ never occur in the data", sentence)


def test_text_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    with (tmp_path / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": "the quick fox 漢字 " * 5}) + "\n" for _ in range(200))
    bert().save_pretrained(tmp_path / "tokenizer")
    sentences = warnings_of(tmp_path, "mlm", f"tokenizer={{from: {tmp_path / 'tokenizer'}}}")
    assert any(re.match(r"\d\d\.\d% of the tokens are unknown", sentence) for sentence in sentences)


def test_documents_without_an_end(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=1000)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=gpt().backend_tokenizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = f"model={{architecture: gpt2, config: {GPT2}}}"
    sentences = warnings_of(tmp_path, "clm", model, f"tokenizer={{from: {tmp_path / 'tokenizer'}}}")
    assert any(sentence.startswith("no token ends a document") for sentence in sentences)


def test_gpt2_has_no_unknown_tokens(tmp_path: Path) -> None:
    """It names its end of text as the unknown token."""
    write_corpus(tmp_path / "corpus.jsonl", documents=1000)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=gpt().backend_tokenizer, eos_token=end, bos_token=end, unk_token=end
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    _, facts = facts_of(
        tmp_path,
        "clm",
        f"tokenizer={{from: {tmp_path / 'tokenizer'}}}",
        f"model={{architecture: llama, config: {LLAMA}}}",
    )
    assert facts.unknown is None
