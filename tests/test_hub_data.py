"""Data sets of the Hub over HTTP, through the command line: read whole and streamed, resumed, and what goes wrong."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm
from conftest import Command
from loopback_hub import Fault, File, LoopbackHub, Repository, Request
from several import in_processes
from tiny import GPT2, metrics, tiny_recipe, write_corpus

from hfpretrain.recipe import dump, load
from hfpretrain.run import Run

SHARDS, DOCUMENTS = 3, 300
KINDS = ("parquet", "jsonl.gz")
SMALL = """
from hfpretrain.data import row_stream, streaming
streaming.WINDOW_TOKENS, row_stream.ROWS = 1500, 40
from fsspec.spec import AbstractBufferedFile
AbstractBufferedFile.DEFAULT_BLOCK_SIZE = 4096
"""
"""Many windows of a small data set, and several requests for a shard."""
IMPATIENT = """
import time
_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.01))
from hfpretrain.data import row_stream
row_stream.PAUSES = (0, 0, 0)
"""
"""The libraries and we try again at once."""


def texts(seed: int = 0) -> list[list[str]]:
    """The documents of each shard."""
    import tempfile

    found = []
    for shard in range(SHARDS):
        with tempfile.TemporaryDirectory() as folder:
            lines = write_corpus(Path(folder) / "x", documents=DOCUMENTS, seed=seed + shard).read_text().splitlines()
        found.append([json.loads(line)["text"] for line in lines])
    return found


def shards(kind: str, seed: int = 0, folder: str = "data/train") -> dict[str, File]:
    """A data set's files, each a shard."""
    files = {}
    for number, documents in enumerate(texts(seed)):
        if kind == "parquet":
            sink = io.BytesIO()
            pq.write_table(pa.table({"text": documents, "id": range(len(documents))}), sink, row_group_size=100)
            content = sink.getvalue()
        else:
            content = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in documents).encode())
        files[f"{folder}-{number:05}-of-{SHARDS:05}.{kind}"] = File(content, large=True)
    return files


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """With org/parquet and org/jsonl.gz."""
    with LoopbackHub() as server:
        for kind in KINDS:
            repository = server.repositories[f"datasets/org/{kind.replace('.', '-')}"] = Repository(private=False)
            repository.commit("main", shards(kind), "the data")
        yield server


@pytest.fixture
def environment(tmp_path: Path, hub: LoopbackHub) -> dict[str, str]:
    """The loopback Hub, and caches of this test's own."""
    return hub.environment(HF_HOME=str(tmp_path / "hf"), HFPRETRAIN_CACHE=str(tmp_path / "tokens"))


def recipe_of(folder: Path, name: str, source: str, *more: str) -> Path:
    """A recipe without dropout on `source`, with a local file held out."""
    held_out = write_corpus(folder / "held-out.jsonl", documents=40, seed=99)
    model = f"model={{architecture: gpt2, config: {GPT2 | {'resid_pdrop': 0, 'embd_pdrop': 0, 'attn_pdrop': 0}}}}"
    validation = f"data.validation=[{{files: {held_out}}}]"
    recipe = tiny_recipe(folder, "clm", f"data.sources=[{source}]", validation, model, *more, name=name)
    path = folder / f"{name}.yaml"
    path.write_text(dump(recipe))
    return path


def hook(folder: Path, *code: str) -> dict[str, str]:
    """What has each process of a command do something first."""
    path = folder / "hook.py"
    path.write_text("\n".join(code))
    return {"HFPRETRAIN_TEST_HOOK": str(path)}


def is_download(request: Request) -> bool:
    return request.method == "GET" and request.path.startswith("/lfs/")


def downloads(hub: LoopbackHub) -> list[Request]:
    return [request for request in hub.requests if is_download(request)]


def model_hash(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / "runs" / name / "model.safetensors").read_bytes()).hexdigest()


def commit_in(folder: Path, name: str) -> Any:
    """The commit that a run's recipe.yaml holds."""
    return load(folder / "runs" / name / "recipe.yaml").data.sources[0].commit


def stopped_after(folder: Path, step: int, *arguments: str | Path, **environment: str) -> str:
    """Runs the command line until that step or a later one is logged, and ends it by SIGTERM. Returns what it said."""
    said = ""
    with warm.popen(["-m", "hfpretrain", *arguments], cwd=folder, environment=environment) as process:
        assert process.stderr
        for line in process.stderr:
            said += line
            logged = re.match(r"step (\d+)/", line)
            if logged and int(logged[1]) >= step:
                process.send_signal(signal.SIGTERM)
                break
        said += process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the run is saved" in said
    return said


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    status: int
    said: str
    seconds: float


def one_after_another(folder: Path, commands: Sequence[Sequence[str | Path]], **environment: str) -> list[Done]:
    """Runs several command lines in one process, which saves its start; each is begun as the command is."""
    lines = [["hfpretrain", *map(str, arguments)] for arguments in commands]
    code = f"""
import runpy, sys, time
for arguments in {lines!r}:
    sys.argv, began, status = arguments, time.monotonic(), 0
    try:
        runpy.run_module("hfpretrain", run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    print("ended", status, time.monotonic() - began, file=sys.stderr)
"""
    settings: dict[str, Any] = {"cwd": folder, "env": os.environ | environment, "timeout": 240, "text": True}
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True, **settings)
    parts = re.split(r"^ended (\d+) (\S+)\n", done.stderr, flags=re.MULTILINE)
    said, status, seconds = parts[:-1:3], parts[1::3], parts[2::3]
    return [Done(int(each), text, float(time)) for text, each, time in zip(said, status, seconds, strict=True)]


def test_read_whole_and_kept_at_its_commit(
    tmp_path: Path, hub: LoopbackHub, environment: dict[str, str], hfpretrain: Command
) -> None:
    """Cut downloads go on; a new commit does not disturb a run; a tag stays; offline the cache serves."""
    repository = hub.repositories["datasets/org/parquet"]
    first = repository.branches["v1"] = repository.branches["main"]
    cut: list[Request] = []

    def fault(_number: int, request: Request) -> Fault | None:
        if is_download(request) and len(cut) < 2:
            cut.append(request)
            return Fault(after=True, sent=2000)
        return None

    hub.fault = fault
    recipe = recipe_of(tmp_path, "run", "{hub: org/parquet}", "train.duration=80", "evaluation.every=80")
    impatient = hook(tmp_path, IMPATIENT)
    said = stopped_after(tmp_path, 3, "train", recipe, **environment, **impatient)
    assert len(cut) == 2
    assert "documents: 900" in said, "a shard is missing, or a part of it"
    assert commit_in(tmp_path, "run") == first

    second = repository.commit("main", shards("parquet", seed=50), "other data")
    resumed = hfpretrain("train", recipe, "--resume", **environment)
    assert resumed.returncode == 0, resumed.stderr
    moved = (
        f"the Hub has another commit of org/parquet by now, {second[:10]}: the run goes on with its own, {first[:10]}"
    )
    assert resumed.stderr.count(moved) == 1
    assert commit_in(tmp_path, "run") == first
    card = (tmp_path / "runs" / "run" / "README.md").read_text()
    assert "- org/parquet\n" in card
    assert f"org/parquet, train, commit {first[:10]}" in card

    offline, requests = environment | {"HF_HUB_OFFLINE": "1"}, len(hub.requests)
    own, tag = tmp_path / "runs" / "run" / "recipe.yaml", "data.sources=[{hub: org/parquet@v1}]"
    again, unknown = one_after_another(
        tmp_path, [["train", own, f"output_dir={tmp_path}/runs/again"], ["data", recipe, tag]], **offline
    )
    assert again.status == 0, again.said
    assert "the data set org/parquet is taken from the cache" in again.said
    assert model_hash(tmp_path, "again") == model_hash(tmp_path, "run"), "by its own recipe it is the same run"
    assert unknown.status == 2
    assert "the data set org/parquet@v1 is neither a folder here nor in the cache, and HF_HUB_OFFLINE" in unknown.said
    assert hub.requests[requests:] == []

    tagged, newest = one_after_another(tmp_path, [["data", recipe, tag], ["data", recipe]], **environment)
    assert "tokens of 900 documents prepared before" in tagged.said, "it is the same commit"
    assert "data.sources.0: documents: 900" in newest.said, "it is another commit"
    for kept in one_after_another(tmp_path, [["data", recipe, tag], ["data", recipe]], **offline):
        assert kept.status == 0, kept.said
        assert "data.sources.0: using" in kept.said


STREAMED = ("data.sources.0.streaming=true", "train.duration=90", "evaluation.every=90", "checkpoints.every=90")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, `whole`, on the stream of org/parquet."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with LoopbackHub() as server:
        server.repositories["datasets/org/parquet"] = Repository(private=False)
        server.repositories["datasets/org/parquet"].commit("main", shards("parquet"), "the data")
        recipe = recipe_of(folder, "whole", "{hub: org/parquet}", *STREAMED)
        caches = {"HF_HOME": str(folder / "hf"), "HFPRETRAIN_CACHE": str(folder / "tokens")}
        environment = server.environment(**caches) | hook(folder, SMALL)
        warm.run(["-m", "hfpretrain", "train", recipe], cwd=folder, environment=environment).check_returncode()
    return folder


@pytest.mark.parametrize("name", ["org/parquet", "org/jsonl-gz@v1"])
def test_a_disturbed_stream_is_the_same_run(
    tmp_path: Path, hub: LoopbackHub, environment: dict[str, str], hfpretrain: Command, undisturbed: Path, name: str
) -> None:
    """Refused and cut reads, a signal, and other data on the Hub: the model is the same, bit for bit."""
    repository = hub.repositories[f"datasets/{name.partition('@')[0]}"]
    repository.branches["v1"] = repository.branches["main"]
    failed: list[Request] = []

    def fault(_number: int, request: Request) -> Fault | None:
        if is_download(request) and len(downloads(hub)) >= 5 and len(failed) < 16:
            failed.append(request)
            return Fault(503) if len(failed) <= 8 else Fault(after=True, sent=1000)
        return None

    hub.fault = fault
    environment |= hook(tmp_path, SMALL, IMPATIENT)
    recipe = recipe_of(tmp_path, "run", f"{{hub: {name}}}", *STREAMED)
    said = stopped_after(tmp_path, 40, "train", recipe, **environment)
    assert len(failed) == 16
    assert said.count("cannot be read just now") >= 2
    for branch in ("main", "v1"):
        repository.commit(branch, shards("parquet", seed=50), "other data")
    resumed = hfpretrain("train", recipe, "--resume", **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count(f"the Hub has another commit of {name} by now") == 1
    assert model_hash(tmp_path, "run") == model_hash(undisturbed, "whole")


def test_two_processes_read_the_stream_that_one_reads(
    tmp_path: Path, hub: LoopbackHub, environment: dict[str, str], undisturbed: Path
) -> None:
    recipe = recipe_of(tmp_path, "two", "{hub: org/jsonl-gz}", *STREAMED)
    done = in_processes(
        2, ["-m", "hfpretrain", "train", recipe], cwd=tmp_path, environment=environment | hook(tmp_path, SMALL)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = Run(undisturbed / "runs" / "whole"), Run(tmp_path / "runs" / "two")
    for single, double in zip(*map(metrics, runs), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-4 if "gradient_norm" in single else 1e-6)
        for key in {"loss", "validation_loss"} & single.keys():
            assert single[key] == pytest.approx(double[key], abs=1e-5)


def test_subsets_and_splits(tmp_path: Path, hub: LoopbackHub, environment: dict[str, str], hfpretrain: Command) -> None:
    """Of a data set whose card names them; streamed and whole the same text."""
    card = (
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: small/train-*}\n"
        "  - {split: test, path: small/test-*}\n- config_name: large\n  data_files: large/*\n---\n# Texts\n"
    )
    files = {"README.md": File(card.encode(), large=False)}
    files |= shards("parquet", 1, "small/train") | shards("parquet", 2, "small/test") | shards("parquet", 3, "large/x")
    hub.repositories["datasets/org/subsets"] = Repository(private=False)
    hub.repositories["datasets/org/subsets"].commit("main", files, "the data")
    expected = sum(len(text.encode()) for shard in texts(2) for text in shard)
    recipe = recipe_of(tmp_path, "run", "{hub: org/subsets, subset: small, split: test}", "train.duration=1")
    whole = hfpretrain("data", recipe, "--json", **environment)
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)[0]["text_bytes"] == expected
    streamed = hfpretrain("data", recipe, "data.sources.0.streaming=true", "data.sources.0.min_chars=1", **environment)
    assert streamed.returncode == 0, streamed.stderr
    assert f"trained on {expected:,} bytes of text" in streamed.stderr


BAD = {
    "{hub: org/nothing}": "the data set org/nothing is neither a folder here nor on the Hub",
    "{hub: org/secret}": "the data set org/secret is neither a folder here nor on the Hub",
    "{hub: org/gated}": "the data set org/gated is gated",
    "{hub: org/parquet@nowhere}": "the data set org/parquet has no revision nowhere",
    "{hub: org/parquet, subset: smal}": "data.sources.0: org/parquet: BuilderConfig 'smal' not found",
    "{hub: org/parquet, split: tset}": "split",
    "{hub: org/parquet, text_column: txet}": "no column 'txet'; the columns are: text, id",
    "{hub: org/jsonl-gz, text_column: txet}": "no column 'txet'; the columns are: text",
    "{hub: org/empty}": "org/empty",
    "{hub: org/broken}": "org/broken",
}


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_hub_does_not_have(
    tmp_path: Path, hub: LoopbackHub, environment: dict[str, str], streaming: bool
) -> None:
    """A sentence for each, within seconds; all in one process, which is started as the command line is."""
    for name, private, gated in (("secret", True, False), ("gated", False, True), ("empty", False, False)):
        repository = hub.repositories[f"datasets/org/{name}"] = Repository(private, gated)
        repository.commit("main", {} if name == "empty" else shards("parquet"), "the data")
    hub.repositories["datasets/org/broken"] = Repository(private=False)
    cut = {path: File(file.content[:-100], large=True) for path, file in shards("jsonl.gz").items()}
    hub.repositories["datasets/org/broken"].commit("main", cut, "cut")
    del environment["HF_TOKEN"]
    commands: list[list[str | Path]] = []
    for number, source in enumerate(BAD):
        more = ["data.sources.0.streaming=true"] if streaming else []
        commands.append(["data", recipe_of(tmp_path, f"bad-{number}", source, "train.duration=1", *more)])
    for (source, said), done in zip(BAD.items(), one_after_another(tmp_path, commands, **environment), strict=True):
        assert said in done.said, (source, done)
        assert done.status == 2, (source, done)
        assert "Traceback" not in done.said, (source, done)
        assert [line.startswith("error: ") for line in done.said.splitlines()].count(True) == 1, (source, done)
        assert done.seconds < 20, (source, done)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_without_the_hub(tmp_path: Path, hub: LoopbackHub, environment: dict[str, str], streaming: str) -> None:
    """Nothing cached and nobody there; a Hub that fails at once; one that fails a little later, with an older commit in
    the cache, which is not taken for the newer one."""
    recipe = recipe_of(tmp_path, "run", f"{{hub: org/parquet, streaming: {streaming}}}", "train.duration=1")
    for settings in (environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, environment | {"HF_HUB_OFFLINE": "1"}):
        (nobody,) = one_after_another(tmp_path, [["data", recipe]], **settings)
        assert nobody.status == 2, nobody.said
        assert "the data set org/parquet is neither a folder here nor in the cache" in nobody.said
        assert "Traceback" not in nobody.said
        assert nobody.seconds < 20, nobody.said
    hub.fault = lambda number, request: Fault(503)
    (failing,) = one_after_another(tmp_path, [["data", recipe]], **environment)
    assert failing.status == 1, failing.said
    assert "the data set org/parquet: the Hub did not answer (status 503)" in failing.said
    assert failing.seconds < 20, failing.said

    hub.fault = lambda number, request: None
    (whole,) = one_after_another(tmp_path, [["data", recipe, "data.sources.0.streaming=false"]], **environment)
    assert whole.status == 0, whole.said
    hub.repositories["datasets/org/parquet"].commit("main", shards("parquet", seed=50), "other data")
    hub.fault = lambda number, request: Fault(503) if "/resolve/" in request.path else None
    (failing,) = one_after_another(tmp_path, [["data", recipe]], **environment, **hook(tmp_path, IMPATIENT))
    status, said = (2, "the Hub cannot be reached") if streaming == "true" else (1, "the Hub failed while org/parquet")
    assert failing.status == status, failing.said
    assert said in failing.said
    assert "Traceback" not in failing.said


def test_a_history_that_was_rewritten(tmp_path: Path, hub: LoopbackHub, environment: dict[str, str]) -> None:
    """The Hub has a run's commit no more: what is in the cache serves, a stream is refused and says why."""
    repository = hub.repositories["datasets/org/parquet"]
    whole = recipe_of(tmp_path, "whole", "{hub: org/parquet}", "train.duration=20", "evaluation.every=20")
    streamed = recipe_of(tmp_path, "streamed", "{hub: org/parquet, streaming: true}", "train.duration=1")
    kept = f"data.sources.0.commit={repository.branches['main']}"
    (began,) = one_after_another(tmp_path, [["data", whole]], **environment)
    assert began.status == 0, began.said
    repository.commits.clear()
    repository.commit("main", shards("parquet", seed=50), "all in one")
    cached, gone = one_after_another(tmp_path, [["data", whole, kept], ["data", streamed, kept]], **environment)
    assert cached.status == 0, cached.said
    assert "the Hub has this commit no more: the data set org/parquet is taken from the cache" in cached.said
    assert "data.sources.0: using" in cached.said
    elsewhere = environment | {"HF_HOME": str(tmp_path / "other")}
    (nowhere,) = one_after_another(tmp_path, [["data", whole, kept]], **elsewhere)
    for refused in (gone, nowhere):
        assert refused.status == 2, refused.said
        assert f"the data set org/parquet has no commit {kept[-40:]} on the Hub" in refused.said
        assert "the history has been rewritten" in refused.said
        assert "Traceback" not in refused.said


def test_a_card_that_promises_other_rows(tmp_path: Path, hub: LoopbackHub, environment: dict[str, str]) -> None:
    card = (
        "---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n  - {name: id, dtype: int64}\n"
        "  splits:\n  - {name: train, num_bytes: 10, num_examples: 901}\n---\n"
    )
    hub.repositories["datasets/org/parquet"].commit(
        "main", {"README.md": File(card.encode(), large=False)} | shards("parquet"), "one row is missing"
    )
    recipe = recipe_of(tmp_path, "run", "{hub: org/parquet}", "train.duration=1")
    (refused,) = one_after_another(tmp_path, [["data", recipe]], **environment)
    assert refused.status == 2, refused.said
    assert "the card of org/parquet promises other splits or numbers of rows than its files hold" in refused.said
