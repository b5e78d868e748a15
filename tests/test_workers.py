"""Encoding on all cores: the store is that of one process, whoever helps, ends, or is ended."""

import itertools
import logging
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import TEXTS, bert, gpt
from transformers import PreTrainedTokenizerFast

from hfpretrain.data import workers
from hfpretrain.data.encoding import Encoder
from hfpretrain.data.sources import OpenSource
from hfpretrain.data.tokens import prepare
from hfpretrain.modeling.tokenizer_training import train_tokenizer
from hfpretrain.recipe import Tokenizer

ATOMS = [
    *" \n\t\r\u00a0\u3000\u2028\x1c\x85.,'!?-_",
    "  ",
    " \n",
    "'s",
    "fox",
    "é",
    "e\u0301",
    "日本",
    "123",
    "😀",
    "▁",
    "</s>",
]


def odd_texts() -> list[str]:
    """Short texts of everything that stands at the borders of words, one without tokens, and long ones."""
    draw = random.Random(0)
    texts = ["".join(draw.choice([*ATOMS, " ", "fox"]) for _ in range(draw.randrange(1, 80))) for _ in range(3000)]
    long = " ".join(TEXTS * 900)
    longer = [long, long.replace(" ", "\u00a0"), "日本語。" * 35_000, "fox.Fox" * 20_000]
    for number, text in enumerate([*longer, "\x01", "\u200b"]):
        texts.insert(500 * number, text)
    return [text for text in texts if text.strip()]


def unigram() -> PreTrainedTokenizerFast:
    return train_tokenizer(Tokenizer(algorithm="unigram", vocab_size=400), "clm", TEXTS * 50)


def source_of(read: Callable[[], Iterator[str]], name: str, size: int) -> OpenSource:
    return OpenSource(name, {"name": name}, lambda _: ((text,) for text in read()), size=size)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("tokens/*/*.bin")}


class Watched:
    """What the workers of this process do."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.own = self.all = 0
        """Batches that were encoded here, and all."""

    @property
    def processes(self) -> list[int]:
        """Those that are ready to help."""
        said = [record.getMessage().split() for record in self.caplog.records if "as well" in record.msg]
        return [int(words[1]) for words in said]

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records if record.levelno >= logging.WARNING]

    @property
    def helped(self) -> bool:
        """Whether all processes are ready, and some batch was encoded by one."""
        return len(self.processes) == 2 and self.all > self.own


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Watched:
    """With three cores, however many there are."""
    watched = Watched(caplog)
    caplog.set_level(logging.DEBUG, "hfpretrain.data.workers")
    monkeypatch.setattr(workers, "cores", lambda: 3)
    encode, surrounded = Encoder.encode, Encoder.surrounded

    def counting_own(*given: Any) -> Any:
        watched.own += 1
        return encode(*given)

    def counting_all(*given: Any) -> Any:
        watched.all += 1
        return surrounded(*given)

    monkeypatch.setattr(Encoder, "encode", counting_own)
    monkeypatch.setattr(Encoder, "surrounded", counting_all)
    return watched


def check_equal(folder: Path, tokenizer: Any, watched: Watched, then: Callable[[], None] = lambda: None) -> None:
    """Compares a store that is made with help with one of the same texts that is made without.

    Texts come until the others have helped, then `then` is called, and more come.
    """
    texts, read = odd_texts(), list[str]()

    def reading() -> Iterator[str]:
        for text in itertools.cycle([text for text in texts if len(text) < 1000]):
            if watched.helped:
                break
            read.append(text)
            yield text
        then()
        read.extend(texts)
        yield from texts

    prepare(source_of(reading, "helped", workers.WORTH_BYTES), tokenizer, end_id=0, cache=folder / "helped")
    assert watched.helped
    assert all(not Path(f"/proc/{process}").exists() for process in watched.processes)
    prepare(source_of(lambda: iter(read), "alone", 0), tokenizer, end_id=0, cache=folder / "alone")
    found = files(folder / "helped")
    assert len(found) == 4
    assert found == files(folder / "alone")


@pytest.mark.parametrize("build", [bert, gpt, unigram])
def test_a_store_is_the_same_with_help(tmp_path: Path, build: Any, watched: Watched) -> None:
    check_equal(tmp_path, build(), watched)
    assert watched.warnings == []


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, watched: Watched) -> None:
    check_equal(tmp_path, gpt(), watched, lambda: os.kill(watched.processes[0], signal.SIGKILL))
    assert watched.warnings == ["one of the processes that tokenise ended (signal 9): going on without it"]


def test_workers_that_stand_still_are_not_waited_for(tmp_path: Path, watched: Watched) -> None:
    def stop() -> None:
        for process in watched.processes:
            os.kill(process, signal.SIGSTOP)

    check_equal(tmp_path, gpt(), watched, stop)


def test_without_room_for_a_process_it_goes_on_alone(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    source = source_of(lambda: iter(odd_texts()), "alone", workers.WORTH_BYTES)
    assert len(prepare(source, gpt(), end_id=0, cache=tmp_path).tokens)
    assert watched.own == watched.all > 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_no_process(tmp_path: Path, watched: Watched, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(error):
        check_equal(tmp_path, gpt(), watched, fail)
    assert all(not Path(f"/proc/{process}").exists() for process in watched.processes)


def test_cores_can_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert workers.cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    assert workers.cores() == 1
    monkeypatch.delenv("RAYON_NUM_THREADS")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert workers.cores() == 1


def test_a_worker_imports_nothing_heavy() -> None:
    code = "import sys, hfpretrain.data.worker; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "datasets", "pydantic", "pyarrow", "huggingface_hub"} & set(out.split())


# Prepares texts without an end, with a worker, whose process it prints as soon as that is ready. No main guard.
ENDLESS = """
import itertools, logging, sys
from pathlib import Path
from small_tokenizers import TEXTS, gpt
from hfpretrain.data import workers
from hfpretrain.data.sources import OpenSource
from hfpretrain.data.tokens import prepare
from hfpretrain.training.signals import StopNow, stop_on_signals

class Ready(logging.Handler):
    def emit(self, record):
        print(record.args[0], flush=True)

workers.cores = lambda: 2
logging.getLogger("hfpretrain.data.workers").addHandler(Ready())
logging.getLogger("hfpretrain.data.workers").setLevel(logging.DEBUG)
source = OpenSource("texts", {}, lambda _: ((text,) for text in itertools.cycle(TEXTS)), size=workers.WORTH_BYTES)
try:
    with stop_on_signals():
        prepare(source, gpt(), end_id=0, cache=Path(sys.argv[1]))
except StopNow as stopped:
    sys.exit(128 + stopped.signal)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_ended_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    """The signal goes to all processes of its group, as a Ctrl-C does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    with subprocess.Popen(
        command, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        worker = os.pidfd_open(int(process.stdout.readline()))
        os.killpg(process.pid, number)
        _, error = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert error == ""
    ended, _, _ = select.select([worker], [], [], 60)
    assert ended, "the worker goes on without the process that started it"
    os.close(worker)
