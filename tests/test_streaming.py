"""Streamed sources: each token once, any step from anywhere, exact resume, failed reads tried again."""

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from several import launched
from tiny import GPT2, metrics, same_weights, tiny_recipe, tiny_run, weights, write_corpus

from hfpretrain.data import row_stream, streaming
from hfpretrain.data.batches import Batches, open_batches
from hfpretrain.data.row_stream import RowStream
from hfpretrain.data.sources import OpenSource, open_source
from hfpretrain.data.streaming import StreamedPart
from hfpretrain.errors import DataError, RecipeError
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import Recipe, Source, dump
from hfpretrain.run import Run
from hfpretrain.training.loop import train

SHARDS, DOCUMENTS = 3, 300

# `datasets` leaves closing a file that is not read to its end to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", 1500)
    monkeypatch.setattr(row_stream, "ROWS", 40)
    yield
    gc.collect()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same documents as shards of .jsonl and of .parquet, each also the folder of a data set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("data")
    for kind in ("jsonl", "parquet"):
        (folder / kind).mkdir()
    for shard in range(SHARDS):
        file = write_corpus(folder / "jsonl" / f"train-{shard}.jsonl", documents=DOCUMENTS, seed=shard)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), folder / "parquet" / f"train-{shard}.parquet", row_group_size=100)
    write_corpus(folder / "held-out.jsonl", documents=40, seed=99)
    return folder


def settings_of(data: Path, source: str) -> list[str]:
    held_out = f"data.validation=[{{files: {data / 'held-out.jsonl'}}}]"
    return [f"data.sources=[{source}]", held_out]


def streamed(data: Path, kind: str) -> str:
    return {
        "files of jsonl": f"{{files: '{data}/jsonl/*.jsonl', streaming: true}}",
        "data set of jsonl": f"{{hub: {data}/jsonl, streaming: true}}",
        "files of parquet": f"{{files: '{data}/parquet/*.parquet', streaming: true}}",
        "data set of parquet": f"{{hub: {data}/parquet, streaming: true}}",
    }[kind]


KINDS = ["files of jsonl", "data set of jsonl", "files of parquet", "data set of parquet"]


def opened(recipe: Recipe) -> Batches:
    return open_batches(recipe, build_tokenizer(recipe))


def part_of(batches: Batches) -> StreamedPart:
    (part,) = batches.parts
    assert isinstance(part, StreamedPart)
    return part


def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were read at once, each time so far; the list grows."""
    found: list[int] = []
    plain = OpenSource.batches

    def noted(self: OpenSource, state: Any, before: int) -> Iterator[Any]:
        for batch in plain(self, state, before):
            found.append(batch[1])
            yield batch

    monkeypatch.setattr(OpenSource, "batches", noted)
    return found


def blocks_of(batches: Batches, steps: range) -> list[list[bytes]]:
    return [[row.block.token_ids.tobytes() + bytes([row.seed % 251]) for row in batches.rows(step)] for step in steps]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_an_epoch_once(tmp_path: Path, data: Path, kind: str) -> None:
    """Twice through the stream: the documents are those of the prepared files, in windows, each shuffled anew."""
    whole = opened(tiny_recipe(tmp_path, "clm", *settings_of(data, f"{{files: '{data}/jsonl/*.jsonl'}}")))
    part = part_of(opened(tiny_recipe(tmp_path, "clm", *settings_of(data, streamed(data, kind)))))
    expected = np.bincount(whole.stores[0].tokens, minlength=320)
    ends, counts = [], np.zeros(320, dtype=np.int64)
    orders: list[list[bytes]] = [[], []]
    index = 0
    for epoch in range(2):
        while part._window(index).mark.epoch == epoch:
            block = part.block(index)
            counts += np.bincount(block.token_ids[:-1][block.documents[:-1] >= 0], minlength=320)
            orders[epoch].append(block.token_ids.tobytes())
            index += 1
        ends.append(index)
        assert counts.tolist() == ((epoch + 1) * expected).tolist()
    assert ends[1] == 2 * ends[0]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    windows = [part._window(place).mark.window for place in range(ends[0])]
    assert windows[0] == 0
    assert windows[-1] >= 8
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(windows))
    assert part.epoch(0) == 0
    assert part.epoch(ends[0]) == 1


@pytest.mark.parametrize("kind", ["files of jsonl", "data set of parquet"])
def test_any_step_from_anywhere(tmp_path: Path, data: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step holds the same rows whoever asks for it, and in which order; marks save reading what lies before."""
    recipe = tiny_recipe(tmp_path, "clm", *settings_of(data, streamed(data, kind)))
    batches = opened(recipe)
    expected = blocks_of(batches, range(700))
    last = max(part_of(batches)._window(place * 4).mark.epoch for place in range(700))
    assert last >= 1
    for step in (650, 3, 420, 419, 699, 0):
        assert blocks_of(opened(recipe), range(step, step + 1)) == expected[step : step + 1]
        assert blocks_of(batches, range(step, step + 1)) == expected[step : step + 1]
    halves = [opened(recipe), opened(recipe)]
    for step in range(100, 110):
        rows = [row for number, half in enumerate(halves) for row in half.rows(step, range(2 * number, 2 * number + 2))]
        got = [row.block.token_ids.tobytes() + bytes([row.seed % 251]) for row in rows]
        assert got == expected[step]
    marks = json.loads(json.dumps(batches.marks(690)))
    again = opened(recipe)
    again.remember(marks)
    read = rows_read(monkeypatch)
    assert blocks_of(again, range(690, 700)) == expected[690:]
    assert 0 < sum(read) < 300, "it was read from the beginning"


def test_it_starts_without_reading_everything(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, "clm", *settings_of(data, streamed(data, "files of jsonl")))
    tokenizer = build_tokenizer(recipe)
    read = rows_read(monkeypatch)
    batches = open_batches(recipe, tokenizer)
    first = sum(read)
    assert 0 < first <= 120
    batches.rows(0)
    assert sum(read) == first


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    block_size=st.integers(2, 40),
    window=st.integers(1, 600),
    rows=st.integers(1, 9),
    start=st.integers(0, 60),
)
def test_streams_of_all_kinds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    block_size: int,
    window: int,
    rows: int,
    start: int,
) -> None:
    """Documents of any lengths in windows of any size: each token of an epoch once; marks change nothing."""
    monkeypatch.setattr(streaming, "WINDOW_TOKENS", window)
    monkeypatch.setattr(row_stream, "ROWS", rows)
    texts = [" ".join(f"w{number}" for _ in range(length)) for number, length in enumerate(lengths)]
    part = made_part(texts, block_size)
    counts: dict[int, int] = {}
    index = 0
    while part._window(index).mark.epoch == 0:
        block = part.block(index)
        for token in block.token_ids[:-1][block.documents[:-1] >= 0].tolist():
            counts[token] = counts.get(token, 0) + 1
        index += 1
    assert counts.pop(0) == len(lengths)
    assert sorted(counts.values()) == sorted(lengths)
    later = made_part(texts, block_size)
    later.remember(json.loads(json.dumps(part.mark(start))) if start < index else part.mark(0))
    assert later.block(start).token_ids.tolist() == made_part(texts, block_size).block(start).token_ids.tolist()


def made_part(texts: list[str], block_size: int) -> StreamedPart:
    """A part of texts in memory, of words that are a token each."""
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from hfpretrain.data.encoding import Encoder

    vocabulary = {"</s>": 0, "<unk>": 1} | {f"w{number}": 2 + number for number in range(len(texts))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")

    def load() -> Any:
        return datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=1).with_format("arrow")

    def explain(error: Exception) -> DataError:
        return DataError(str(error))

    stream = RowStream("data.sources.0", "texts", ("text",), load, explain)
    source = OpenSource("data.sources.0", {"texts": texts}, lambda report: iter(()), stream=stream, columns=("text",))
    return StreamedPart(0, source, Encoder(tokenizer, 0), block_size, padding_id=0, room=0, seed=7)


def test_pairs_and_fill_in_the_middle(tmp_path: Path, data: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"the fox {number % 7}", "completion": f"sleeps {number % 5} times"} for number in range(900)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "prompt_column: prompt, completion_column: completion"
    for source, more in (
        (f"{{files: {pairs}, {columns}", []),
        (f"{{files: '{data}/jsonl/*.jsonl'", ["fim.rate=0.5", "data.block_size=32"]),
    ):
        plain = opened(tiny_recipe(tmp_path, "clm", *settings_of(data, source + "}"), *more))
        part = part_of(opened(tiny_recipe(tmp_path, "clm", *settings_of(data, source + ", streaming: true}"), *more)))
        targets = index = 0
        while part._window(index).mark.epoch == 0:
            targets += int(part.block(index).targets[:-1].sum())
            index += 1
        blocks = plain.parts[0].blocks
        assert targets == sum(int(blocks[number].targets[:-1].sum()) for number in range(len(blocks)))
        assert index >= len(blocks)  # each window fills its own last block


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_resuming_reads_on(tmp_path: Path, data: Path, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without what the checkpoint knows of the stream the same is learnt, bit for bit."""
    common = [*settings_of(data, streamed(data, "data set of parquet")), "train.duration=420", "train.log_every=20"]
    common += ["evaluation.every=400", "checkpoints={every: 400, keep: 9}"]
    whole = tiny_run(tmp_path, objective, *common, name="whole")
    assert [line["epochs"] for line in metrics(whole) if "loss" in line][-1] >= 1
    for name in ("known", "unknown"):
        recipe = tiny_recipe(tmp_path, objective, *common, name=name)
        with pytest.raises(Exception, match="after step 380"):
            train(recipe, stop_after=380)
        if name == "unknown":
            monkeypatch.setattr(Batches, "remember", lambda self, marks: None)
        read = rows_read(monkeypatch)
        run = train(recipe, resume=True)
        assert (sum(read) < 500) == (name == "known")
        assert same_weights(weights(run), weights(whole))
        assert [line for line in metrics(run) if "loss" in line] == [line for line in metrics(whole) if "loss" in line]
    report = whole.report()
    assert report["training_tokens"] is None
    assert "streamed" in whole.card_file.read_text()


def test_two_processes_read_what_one_reads(tmp_path: Path, data: Path) -> None:
    """Losses of both agree, so that no row was read twice and none was left out."""
    model = f"model={{architecture: gpt2, config: {GPT2 | {'resid_pdrop': 0, 'embd_pdrop': 0, 'attn_pdrop': 0}}}}"
    common = [*settings_of(data, streamed(data, "files of parquet")), model, "train.micro_batch_size=1"]
    one = tiny_run(tmp_path, "clm", *common, "train.duration=30", name="one")
    file = tmp_path / "two.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "clm", *common, "train.duration=30", name="two")))
    script = tmp_path / "small_windows.py"
    script.write_text(
        "from hfpretrain.data import row_stream, streaming\n"
        "streaming.WINDOW_TOKENS, row_stream.ROWS = 1500, 40\n"
        "from hfpretrain.cli import app\n"
        "app()\n"
    )
    done = launched(script, 2, "train", str(file), script=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for single, double in zip(metrics(one), metrics(Run(tmp_path / "runs" / "two")), strict=True):
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)


class Failing:
    """A data set whose reading fails after so many tables each time it is opened, until it has failed often enough."""

    def __init__(self, plain: Any, after: int, times: int, error: Exception) -> None:
        self.plain, self.after, self.times, self.error = plain, after, times, error
        self.failed = 0

    def __call__(self) -> Any:
        dataset = self.plain()
        failing, iterate = self, dataset.iter

        def iter(size: int) -> Iterator[Any]:
            for number, table in enumerate(iterate(size)):
                if number == failing.after and failing.failed < failing.times:
                    failing.failed += 1
                    raise failing.error
                yield table

        dataset.iter = iter
        return dataset


def test_what_fails_is_read_again(data: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(row_stream, "PAUSES", (0, 0, 0))
    stream = open_source(Source(hub=f"{data}/parquet", streaming=True)).stream
    assert isinstance(stream, RowStream)
    expected = [table["text"].to_pylist() for table, _ in stream.tables()]
    plain = stream.load
    stream.load = Failing(plain, after=2, times=4, error=ConnectionResetError(104, "Connection reset by peer"))
    assert [table["text"].to_pylist() for table, _ in stream.tables()] == expected
    assert caplog.text.count("cannot be read just now") == 4
    stream.load = Failing(plain, after=0, times=99, error=ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(DataError, match="cannot be reached"):
        list(stream.tables())
    assert stream.load.failed == 4  # at first, and after each pause
    stream.load = Failing(plain, after=1, times=99, error=FileNotFoundError(2, "No such file", "x.parquet"))
    with pytest.raises(DataError):
        list(stream.tables())
    assert stream.load.failed == 1


def test_a_stop_does_not_wait_for_what_cannot_be_read(tmp_path: Path, data: Path) -> None:
    """The stream breaks for good after some steps; a signal ends the run, with its last step saved."""
    recipe = tiny_recipe(
        tmp_path,
        "clm",
        *settings_of(data, streamed(data, "data set of jsonl")),
        "train.duration=900",
        "evaluation.every=900",
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe))
    code = f"""
import sys
from hfpretrain.data import row_stream, streaming
streaming.WINDOW_TOKENS = 2000
row_stream.ROWS = 40
row_stream.PAUSES = (600,)
tables = row_stream.RowStream.tables
read = 0
def lost():
    raise ConnectionResetError(104, "Connection reset by peer")
def failing(self, state=None):
    global read
    for table, state in tables(self, state):
        yield table, state
        read += 1
        if read == 30:  # most of it for the tokenizer
            self.load = lost
            yield from tables(self, state)
row_stream.RowStream.tables = failing
import runpy
sys.argv = ["hfpretrain", "train", {str(file)!r}]
runpy.run_module("hfpretrain", run_name="__main__")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr
    for line in process.stderr:
        if "cannot be read just now" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 128 + signal.SIGTERM, rest
    assert "the run is saved" in rest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.validation=1%", r"data\.validation: 1% of a stream cannot be held out"),
        ("train.duration=2 epochs", r"train\.duration: the length of an epoch of a stream is not known"),
        ("data.sources.0.deduplicate=true", r"data\.sources\.0\.deduplicate: texts of a stream are not remembered"),
        ("data.sources.0.repeat=false", r"data\.sources\.0\.repeat: a stream begins anew"),
    ],
)
def test_what_a_stream_cannot_do(tmp_path: Path, data: Path, change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tmp_path, "clm", *settings_of(data, streamed(data, "files of jsonl")), change)


def test_sources_that_cannot_be_streamed(tmp_path: Path, data: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    recipe = tiny_recipe(tmp_path, "clm", *settings_of(data, f"{{files: {tmp_path}/empty.jsonl, streaming: true}}"))
    with pytest.raises(DataError, match=r"data\.sources\.0 has no text"):
        opened(recipe)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    source = f"{{files: {tmp_path}/bad.jsonl, streaming: true}}"
    with pytest.raises(DataError, match=r"bad\.jsonl:2: the file ends in the middle of a row|bad\.jsonl:2: not JSON"):
        opened(tiny_recipe(tmp_path, "clm", *settings_of(data, source)))
    with pytest.raises(DataError, match="no column 'txet'; the columns are: text"):
        list(open_source(Source(hub=f"{data}/jsonl", text_column="txet", streaming=True)).documents())


def test_files_are_read_as_they_are_prepared(tmp_path: Path, data: Path) -> None:
    """Texts that other readers take for numbers or nothing, a byte order mark, bad rows, other documents, .zst."""
    import pyarrow as pa

    (tmp_path / "a.csv").write_text("text\nNA\nnull\n1\nthe fox\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\n \ntwo\n\nthree\n")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": 3}\nnot json\n{"text": "b"}\n')
    with pa.CompressedOutputStream(tmp_path / "d.txt.zst", "zstd") as file:
        file.write(b"the dog\n\nthe cat\n")
    for name in ("a.csv", "b.txt", "c.jsonl", "d.txt.zst"):
        documents: Literal["paragraph", "file"] = "paragraph" if "txt" in name else "file"
        source = Source(files=str(tmp_path / name), documents=documents)
        both = [open_source(replace(source, streaming=streaming), on_bad_rows="skip") for streaming in (True, False)]
        texts = [[document.text for document in source.documents()] for source in both]
        assert texts[0] == texts[1]
        assert len(texts[0]) > 1
        assert both[0].skipped == both[1].skipped


def test_a_stream_beside_prepared_data(tmp_path: Path, data: Path) -> None:
    """Weights are kept exactly, block for block."""
    sources = (
        f"{{files: '{data}/jsonl/*.jsonl', streaming: true, weight: 3}}, {{files: {data}/held-out.jsonl, weight: 1}}"
    )
    recipe = tiny_recipe(tmp_path, "clm", *settings_of(data, sources), "data.validation=0%")
    batches = opened(recipe)
    taken = [batches.order.place(position) for position in range(400)]
    assert sum(place is not None and place[0] == 0 for place in taken) == 300
    assert {store for step in range(10) for place in range(4) for store, _ in batches.documents(step, place)} == {0, 1}
    with pytest.raises(RecipeError, match=r"weight: missing; beside a streamed source each needs its share"):
        tiny_recipe(tmp_path, "clm", *settings_of(data, sources.replace(", weight: 1", "")), "data.validation=0%")
