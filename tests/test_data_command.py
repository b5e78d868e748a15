"""`hfpretrain data`: prepares ahead what training then finds, alone or in shares; and what the cache is keyed by."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_recipe, write_corpus

from hfpretrain.data import parts
from hfpretrain.data.batches import open_batches
from hfpretrain.errors import UserError
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.preparation import prepare_data
from hfpretrain.recipe import dump


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFPRETRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_the_command_prints_each_source_and_the_second_time_uses_the_cache(
    tmp_path: Path, cache: Path, hfpretrain: Any
) -> None:
    more = write_corpus(tmp_path / "more.jsonl", documents=30, seed=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path)))
    sources = f"data.sources=[{{files: {tmp_path / 'corpus.jsonl'}}}, {{files: {more}}}]"
    first = hfpretrain("data", recipe, sources)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["data.sources.0", "120", "documents,"],
        ["data.sources.1", "30", "documents,"],
    ]
    assert "tokens, " in lines[0]
    assert "bytes each" in lines[0]
    assert "MB/s" in first.stderr
    before = contents(cache)
    second = hfpretrain("data", recipe, sources, "--json")
    assert contents(cache) == before
    assert "tokenizer: using the one of" in second.stderr
    assert second.stderr.count("prepared before") == 2
    assert [line["documents"] for line in json.loads(second.stdout)] == [120, 30]


@pytest.mark.parametrize("existing", [False, True])
def test_text_becomes_tokens_without_the_libraries_that_only_training_needs(
    tmp_path: Path, cache: Path, existing: bool
) -> None:
    """They would take several times the memory that preparing takes, and most of the time before it begins."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path)))
    (tmp_path / "text.txt").write_text("The quick brown fox\njumps over the lazy dog.\n" * 20)
    overrides = [f"data.sources=[{{files: {tmp_path / 'text.txt'}, documents: line}}]"]
    if existing:
        build_tokenizer(tiny_recipe(tmp_path)).save_pretrained(tmp_path / "tokenizer")
        overrides.append(f"tokenizer={{from: {tmp_path / 'tokenizer'}}}")
    # Python itself says on stderr, in a last column, what it imports.
    command = [sys.executable, "-X", "importtime", "-m", "hfpretrain", "data", str(recipe), *overrides]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[1:3] == ["40", "documents,"]
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert {"tokenizers", "numpy"} <= imported
    assert not {"torch", "datasets", "pandas", "accelerate"} & imported


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_shards_give_what_one_call_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, objective: str
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(parts, "PART_CHARACTERS", 1000)
    recipe = tiny_recipe(tmp_path, objective)
    monkeypatch.setenv("HFPRETRAIN_CACHE", str(tmp_path / "whole"))
    (whole,) = prepare_data(recipe)
    monkeypatch.setenv("HFPRETRAIN_CACHE", str(tmp_path / "shards"))
    for shard in ("2/3", "3/3"):
        (line,) = prepare_data(recipe, shard)
        assert line["tokens"] is None
    # Training joins them, and prepares the share that nobody did.
    batches = open_batches(recipe, build_tokenizer(recipe))
    assert "going on: parts prepared before" in caplog.text
    assert batches.sources[0]["tokens"] == whole["tokens"]
    assert contents(tmp_path / "shards/tokens") == contents(tmp_path / "whole/tokens")
    (line,) = prepare_data(recipe, "1/3")
    assert line == whole


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0", "1/2/3"])
def test_a_share_that_is_none_is_said_before_anything_is_done(tmp_path: Path, cache: Path, shard: str) -> None:
    with pytest.raises(UserError, match="that is no share") as caught:
        prepare_data(tiny_recipe(tmp_path), shard)
    assert "3/16" in str(caught.value.hint)
    assert not cache.exists()


SAME = [
    "data.block_size=32",
    "data.packing=concat",
    "data.validation=0%",
    "train.batch_size=8",
    "seed=3",
    "train.duration=7",
    "model.config={n_embd: 64, n_layer: 1, n_head: 2}",
    "optimizer.lr=1",
]


def test_what_changes_no_token_uses_the_cache(tmp_path: Path, cache: Path, caplog: Any) -> None:
    prepare_data(tiny_recipe(tmp_path))
    before = contents(cache)
    caplog.set_level(logging.INFO)
    for setting in SAME:
        caplog.clear()
        recipe = tiny_recipe(tmp_path, "clm", setting)
        open_batches(recipe, build_tokenizer(recipe))
        assert "tokenizer: using" in caplog.text, setting
        assert "prepared before" in caplog.text, setting
    assert contents(cache) == before


def test_the_objective_is_none_of_the_key_where_the_tokenizer_ends_documents_alike(
    tmp_path: Path, cache: Path, caplog: Any
) -> None:
    tokenizer = build_tokenizer(tiny_recipe(tmp_path, "mlm"))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    keys = ["tokenizer={from: " + str(tmp_path / "tokenizer") + "}"]
    prepare_data(tiny_recipe(tmp_path, "mlm", *keys))
    caplog.set_level(logging.INFO)
    prepare_data(tiny_recipe(tmp_path, "clm", *keys))
    assert "prepared before" in caplog.text


def test_what_changes_tokens_is_prepared_anew(tmp_path: Path, cache: Path) -> None:
    def stores() -> int:
        return len(list((cache / "tokens").iterdir()))

    prepare_data(tiny_recipe(tmp_path))
    for number, setting in enumerate(["tokenizer.vocab_size=300", "tokenizer.algorithm=byte"], 2):
        prepare_data(tiny_recipe(tmp_path, "clm", setting))
        assert stores() == number
    before = (tmp_path / "corpus.jsonl").stat()
    os.utime(tmp_path / "corpus.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    prepare_data(tiny_recipe(tmp_path))
    assert stores() == 4


def test_a_kept_tokenizer_is_the_trained_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for objective in ("clm", "mlm"):
        recipe = tiny_recipe(tmp_path, objective)
        saved = []
        for number in range(2):
            tokenizer = build_tokenizer(recipe)
            tokenizer.save_pretrained(tmp_path / f"{objective}-{number}")
            saved.append(contents(tmp_path / f"{objective}-{number}"))
        assert saved[0] == saved[1]
    # A damaged one is trained again.
    for path in (cache / "tokenizers").rglob("tokenizer.json"):
        path.write_bytes(path.read_bytes()[:-1])
    assert build_tokenizer(recipe).get_vocab() == tokenizer.get_vocab()


def test_a_signal_ends_the_preparation_with_its_status(tmp_path: Path, cache: Path, hfpretrain: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "clm", "data.sources=[{builtin: everyday, size: 3MB}]")))
    # The process sends itself the signal when the first bytes are done: no clock is waited on.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from hfpretrain.data.progress import Progress\n"
        "Progress.add = lambda *arguments, **keywords: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = hfpretrain("data", recipe, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
