"""A disk that is full at any write: what was saved stays whole, nothing half written stays, and a sentence says it.

The limit that a process may set itself for the size of files makes real writes of real libraries fail half-way.
"""

import errno
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import bert
from tiny import metrics, same_weights, tiny_run, weights, write_corpus

from hfpretrain.data.sources import open_source
from hfpretrain.data.tokens import prepare
from hfpretrain.errors import CheckpointError, StorageError
from hfpretrain.files import damage, free_bytes, lack_of_room
from hfpretrain.recipe import Source, load
from hfpretrain.run import Run
from hfpretrain.training import checkpoint
from hfpretrain.training.lines import Lines, Written
from hfpretrain.training.loop import train
from hfpretrain.training.metrics import Metrics

SETTINGS = ["checkpoints.every=4", "checkpoints.keep=3"]
NEEDED = re.compile(r"needs about \d+\.\d MB, and [\d,.]+ .B are free there")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process can be written beyond that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbed."""
    return tiny_run(tmp_path_factory.mktemp("whole"), "mlm", *SETTINGS, name="whole")


def as_of(step: int, whole: Run, folder: Path) -> Run:
    """A copy as it was when it was killed after the checkpoint at that step."""
    run = Run(shutil.copytree(whole.path, folder / "run"))
    for path in (run.report_file, run.manifest_file, run.path / "model.safetensors"):
        path.unlink()
    for path in run.checkpoints.iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    run.recipe_file.write_text(run.recipe_file.read_text().replace(str(whole.path), str(run.path)))
    return run


def state(run: Run) -> dict[str, bytes]:
    """The files of a run but for its metrics and the page of them, hidden ones too."""
    found = {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name not in ("metrics.jsonl", "report.html")}


def goes_on(run: Run, whole: Run) -> None:
    """With room again the run ends as if nothing had been."""
    train(load(run.recipe_file), resume=True)
    assert same_weights(weights(run), weights(whole))
    assert metrics(run) == metrics(whole)
    assert damage(run.path) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors", "optimizer.bin"])
def test_a_checkpoint_that_meets_a_full_disk(whole: Run, tmp_path: Path, file: str) -> None:
    """In the Rust of tokenizers, at the start, and of safetensors, and in the C++ of torch."""
    run = as_of(8, whole, tmp_path)
    before = state(run)
    size = (run.checkpoints / "step-00000008" / file).stat().st_size
    with files_up_to(size - 1), pytest.raises(CheckpointError, match=NEEDED) as caught:
        train(load(run.recipe_file), resume=True)
    assert "--resume" in str(caught.value.hint)
    assert ("space" in str(caught.value.hint)) == (file != "optimizer.bin"), "torch does not say what the matter was"
    assert state(run) == before, "the checkpoints are as they were, and nothing else is there"
    goes_on(run, whole)


def test_a_disk_that_is_full_only_when_it_is_flushed(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a network, where a write is only a promise."""
    run = as_of(8, whole, tmp_path)
    before = state(run)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if "step-00000012" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"step-00000012 could not be written \(No space left on device\)"):
        train(load(run.recipe_file), resume=True)
    assert state(run) == before
    monkeypatch.undo()
    goes_on(run, whole)


def test_a_file_system_that_flushes_no_folders(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some that are shared over a network; a disk that fails is still heard of."""
    run = as_of(8, whole, tmp_path)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(refused, os.strerror(refused))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    refused = errno.EIO
    with pytest.raises(CheckpointError, match="Input/output error"):
        train(load(run.recipe_file), resume=True)
    refused = errno.EINVAL
    goes_on(run, whole)


def test_the_order_in_which_a_checkpoint_becomes_one(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics up to it, its files and its folder are on the disk before it has its name, and older ones go last."""
    run = as_of(8, whole, tmp_path)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("keep: 3", "keep: 2"))
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(run.path)}")
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name} {target.name}")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    train(load(run.recipe_file), resume=True)
    place, beside = "step-00000012", "checkpoints/.step-00000012.partial"
    named = events.index(f"rename .{place}.partial {place}")
    files = [path.name for path in (run.checkpoints / place).iterdir()]
    written = {"flush metrics.jsonl", f"flush {beside}", *(f"flush {beside}/{name}" for name in files)}
    assert written <= set(events[:named])
    assert events.index("flush metrics.jsonl") < events.index(f"flush {beside}/optimizer.bin")
    assert events[named + 1 : named + 3] == ["flush checkpoints", "rename step-00000004 .step-00000004.removed"]
    assert list_of(run) == ["step-00000008", "step-00000012"]


def test_the_final_model_meets_a_full_disk(whole: Run, tmp_path: Path) -> None:
    run = as_of(12, whole, tmp_path)
    before = state(run)
    with (
        files_up_to((whole.path / "model.safetensors").stat().st_size - 1),
        pytest.raises(CheckpointError, match=r"the model of .*run could not be written .* needs about"),
    ):
        train(load(run.recipe_file), resume=True)
    assert state(run) == before
    goes_on(run, whole)


@pytest.mark.parametrize("moved", [0, 3, 4, 5, 6])
def test_a_kill_while_the_final_model_is_moved(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """After each file: the run is not finished, no manifest vouches for it, and --resume ends it."""
    run = as_of(12, whole, tmp_path)
    shutil.copy(whole.manifest_file, run.manifest_file)  # of an earlier end
    real, done = Path.rename, list[str]()

    def rename(path: Path, target: Path) -> Path:
        if path.parent.name == ".final.partial" and (path.parent / "manifest.json").exists() | bool(done):
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(path.name)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    if moved == 6:  # config, two of the tokenizer, weights, manifest, report
        train(load(run.recipe_file), resume=True)
        assert done[-3:] == ["model.safetensors", "manifest.json", "report.json"]
        assert run.state == "finished"
        return
    with pytest.raises(KeyboardInterrupt):
        train(load(run.recipe_file), resume=True)
    assert run.state == "started"
    assert ("manifest.json" in done) == run.manifest_file.exists()
    monkeypatch.undo()
    goes_on(run, whole)
    assert not run.partial.exists()


def test_what_fails_for_another_reason_is_not_said_to_need_room(whole: Run, tmp_path: Path) -> None:
    run = as_of(12, whole, tmp_path)
    (run.path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"not be written \(model\.safetensors: Is a directory\)") as caught:
        train(load(run.recipe_file), resume=True)
    assert "--resume" in str(caught.value.hint)
    assert "space" not in str(caught.value.hint)


def test_too_little_room_is_seen_before_anything_is_written(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lack_of_room(tmp_path / "not" / "there", free_bytes(tmp_path)) is not None
    assert lack_of_room(tmp_path / "not" / "there", free_bytes(tmp_path) // 3) is None
    run = as_of(8, whole, tmp_path)
    before = state(run)
    monkeypatch.setattr(checkpoint, "SMALL_FILES", 10**17)
    with pytest.raises(CheckpointError, match=r"12 is not written: it needs 200,000,000\.0 GB free,.* are") as caught:
        train(load(run.recipe_file), resume=True)
    assert "--resume" in str(caught.value.hint)
    assert state(run) == before


def test_the_token_store_meets_a_full_disk(tmp_path: Path) -> None:
    source = open_source(Source(files=str(write_corpus(tmp_path / "corpus.jsonl"))))
    cache = tmp_path / "cache"
    with files_up_to(500), pytest.raises(StorageError, match=NEEDED) as caught:
        prepare(source, bert(), end_id=3, cache=cache)
    assert "HFPRETRAIN_CACHE" in str(caught.value.hint)
    assert list((cache / "tokens").iterdir()) == []
    assert source.size == (tmp_path / "corpus.jsonl").stat().st_size
    source.size = 10**17
    with pytest.raises(StorageError, match=r"data\.sources\.0 it needs 100,000,000\.0 GB free"):
        prepare(source, bert(), end_id=3, cache=cache)
    assert list((cache / "tokens").iterdir()) == []
    source.size = 0
    assert len(prepare(source, bert(), end_id=3, cache=cache).keys) == 120


@contextmanager
def each_line(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Iterator[None]:
    """Has something happen in the loop, before each line of metrics."""
    real = Metrics.write

    def write(self: Metrics, line: dict[str, Any]) -> None:
        act(line["step"])
        real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", write)
        yield


@pytest.fixture
def full_for_metrics(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps at which the disk is full in the middle of a line, for metrics.jsonl alone."""
    steps: set[int] = set()
    real = Metrics.write

    def write(self: Metrics, line: dict[str, Any]) -> None:
        assert self.lines
        file = self.lines.file
        with (
            files_up_to((file.stat().st_size if file.exists() else 0) + 50) if line["step"] in steps else nullcontext()
        ):
            real(self, line)
        assert not file.exists() or file.read_text()[-2:] in ("", "}\n"), "no line is there by half"

    monkeypatch.setattr(Metrics, "write", write)
    return steps


def about_metrics(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in found if "metrics.jsonl" in message]


def test_metrics_that_cannot_be_written_stop_nothing(
    whole: Run, tmp_path: Path, full_for_metrics: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    run = as_of(0, whole, tmp_path)
    full_for_metrics |= {2, 3, 5, 6, 7}
    train(load(run.recipe_file), resume=True)
    (said,) = about_metrics(caplog)
    assert "cannot be written (File too large): training goes on" in said
    assert metrics(run) == metrics(whole)
    assert same_weights(weights(run), weights(whole))
    assert damage(run.path) is None


def test_lines_that_were_not_written_are_in_the_checkpoint(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metrics.jsonl became a folder, until after the run was killed."""
    run = as_of(0, whole, tmp_path)
    kept = tmp_path / "kept"

    def act(step: int) -> None:
        if step == 3 and not run.metrics_file.is_dir():
            run.metrics_file.rename(kept)
            run.metrics_file.mkdir()
        if step == 10:
            raise KeyboardInterrupt

    with each_line(monkeypatch, act), pytest.raises(KeyboardInterrupt):
        train(load(run.recipe_file), resume=True)
    progress = json.loads((run.checkpoints / "step-00000008" / "progress.json").read_text())
    steps = [json.loads(line)["step"] for line in progress["metrics"]["unsafe"]]
    assert steps[-5:] == [5, 6, 6, 7, 8], "one of them is of an evaluation"
    run.metrics_file.rmdir()
    kept.rename(run.metrics_file)
    goes_on(run, whole)


def test_metrics_that_cannot_be_read_at_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process has as many files open as it may: what is in the file stays, and what was cut off by a kill goes."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        lines = Lines(file, Written(safe=2), upto_step=2)
        lines.add('{"step": 3, "again": 1}')
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert about_metrics(caplog) == [
        f"{file} cannot be written (Too many open files): training goes on, and the lines are kept for when it can be"
    ]
    lines.add('{"step": 4}')
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n{"step": 4}\n'


def test_metrics_that_can_never_be_written(whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = as_of(0, whole, tmp_path)
    run.metrics_file.unlink()
    run.metrics_file.mkdir()
    train(load(run.recipe_file), resume=True)
    assert same_weights(weights(run), weights(whole))
    first, last = about_metrics(caplog)
    assert "training goes on" in first
    assert "could not be written" in last
    assert run.report()["loss"] == whole.report()["loss"]


def test_checkpoints_that_were_removed_while_it_trains(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = as_of(0, whole, tmp_path)
    with each_line(monkeypatch, lambda step: shutil.rmtree(run.checkpoints) if step == 6 and list_of(run) else None):
        train(load(run.recipe_file), resume=True)
    assert list_of(run) == ["step-00000008", "step-00000012"]
    assert same_weights(weights(run), weights(whole))


def list_of(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir()) if run.checkpoints.exists() else []


def test_a_run_that_was_removed_while_it_trains(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = as_of(0, whole, tmp_path)
    recipe = load(run.recipe_file)
    with (
        each_line(monkeypatch, lambda step: shutil.rmtree(run.path, ignore_errors=True) if step == 6 else None),
        pytest.raises(CheckpointError, match="is gone: it was moved or removed"),
    ):
        train(recipe, resume=True)
    assert not run.path.exists()


def test_the_command_says_it_and_no_process_waits(whole: Run, tmp_path: Path) -> None:
    """Of two processes only the first one writes the model; the other one hears of it."""
    run = as_of(8, whole, tmp_path)
    limit = (run.checkpoints / "step-00000008" / "optimizer.bin").stat().st_size - 1
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "hfpretrain", "train", str(run.recipe_file), "--resume"],
        cwd=tmp_path,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "step-00000012 could not be written" in said[0]
    assert NEEDED.search(said[0])
    assert list_of(run) == ["step-00000004", "step-00000008"]
    assert not [line for line in done.stderr.splitlines() if "hfpretrain/training" in line], "no traceback of ours"
