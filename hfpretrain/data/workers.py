"""All cores encode: processes beside this one, which goes on encoding itself and never waits for any of them.

Batches are handed out as long as a process has room for one, and otherwise encoded here. They come back in their
order, so that what is made of them is the same with and without help. A process that ends, or falls far behind, costs
time and nothing else: its batches are encoded here.
"""

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TypeAlias

from hfpretrain.data.encoded import LONG, Encoded, TextEncoder, pack_texts, take_encoded
from hfpretrain.data.encoding import Encoder, Piece

log = logging.getLogger(__name__)

WORTH_BYTES = 4_000_000
"""Of a source: a process takes a third of a second to start, in which as much as this is half done without it."""
MOST_WORKERS = 7
"""Reading and handing out feeds no more. Each takes some 50 MB."""
BATCHES_EACH = 3
"""Of a worker at once: as many as lie in its pipe while this process is busy with a batch of its own."""
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031
"""Of fcntl(2) on Linux."""

Batch: TypeAlias = tuple[int, list[Piece]]
"""The pieces of a batch, and the number of the part that they belong to."""


def cores() -> int:
    """Those that this process may use; RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM limit them, as in tokenizers."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("off", "false", "f", "no", "n", "0", ""):
        return 1
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    limit = os.environ.get("RAYON_NUM_THREADS", "")
    return min(allowed, int(limit)) if limit.isdecimal() and int(limit) else allowed


def encoded_on_all_cores(
    encoder: Encoder, batches: Iterable[Batch], size: int
) -> Generator[tuple[Batch, Encoded], None, None]:
    """Each batch with its tokens, in order. `size` is about how many bytes of text there are."""
    texts = encoder.texts
    helpers = min(cores() - 1, MOST_WORKERS) if texts and size >= WORTH_BYTES else 0
    with contextlib.ExitStack() as stack:
        workers: list[_Worker] | None = None
        waiting: deque[_Task] = deque()
        for batch in batches:
            if workers is None:  # not before there is something to do
                workers = [stack.enter_context(_Worker(texts)) for _ in range(helpers) if texts]
            waiting.append(_hand_out(batch, workers) or _Task(batch, encoder.encode(batch[1])))
            while waiting and (waiting[0].encoded or len(waiting) > 2 * BATCHES_EACH * (helpers + 1)):
                yield waiting.popleft().finished(encoder)
        while waiting:
            # The last one is what a worker comes to last.
            undone = next((task for task in reversed(waiting) if not task.encoded), waiting[0])
            undone.finished(encoder)
            for worker in workers or ():
                worker.exchange()
            while waiting and waiting[0].encoded:
                yield waiting.popleft().finished(encoder)


class _Task:
    """A batch that is to be encoded."""

    def __init__(self, batch: Batch, encoded: Encoded | None = None) -> None:
        self.batch, self.encoded = batch, encoded

    def finished(self, encoder: Encoder) -> tuple[Batch, Encoded]:
        """The batch with its tokens; if nobody has encoded it yet, it is encoded here."""
        if self.encoded is None:
            self.encoded = encoder.encode(self.batch[1])
        return self.batch, self.encoded


def _hand_out(batch: Batch, workers: list["_Worker"]) -> _Task | None:
    """Gives the batch to the worker that has least to do, if one has room for it."""
    for worker in workers:
        worker.exchange()
    free = [worker for worker in workers if worker.ready and len(worker.tasks) < BATCHES_EACH]
    if not free or any(_is_for_here(piece) for piece in batch[1]):
        return None
    task = _Task(batch)
    min(free, key=lambda worker: len(worker.tasks)).take(task)
    return task


def _is_for_here(piece: Piece) -> bool:
    """Whether it is a prompt, of which more is to be known than its tokens, or too large to be copied about."""
    return len(piece.text) > LONG or bool(piece.document and piece.document.prompt_characters)


class _Worker:
    """A process that encodes what is written to it. Nothing here waits for it."""

    def __init__(self, texts: TextEncoder) -> None:
        self.dtype = texts.dtype
        self.ready = False
        """Whether it has said that it knows the tokenizer."""
        self.tasks: deque[_Task] = deque()
        """In the order in which it answers them."""
        self._unsent = deque([memoryview(pack_texts([self.dtype.char.encode(), texts.specification.encode()]))])
        self._received = bytearray()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Worker":
        # It imports what this process would, and nothing that lies in the working directory by chance.
        path = os.pathsep.join(str(Path(each).absolute()) for each in sys.path)
        settings = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}
        with contextlib.suppress(OSError):  # no room for another process: then without it
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hfpretrain.data.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | settings | {"OPENBLAS_NUM_THREADS": "1"},
                bufsize=0,
                start_new_session=True,  # a Ctrl-C is for this process to decide on
            )
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                if sys.platform == "linux":
                    with contextlib.suppress(OSError):  # more than a user may have: then slower
                        fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def take(self, task: _Task) -> None:
        """Is handed a batch."""
        self.tasks.append(task)
        self._unsent.append(memoryview(pack_texts([piece.text.encode() for piece in task.batch[1]])))
        self.exchange()

    def exchange(self) -> None:
        """Sends and receives as much as goes through at the moment."""
        if self._process is None:
            return
        try:
            self._send()
            self._receive()
        except OSError:  # a broken pipe
            self._lose()

    def _send(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                sent = os.write(self._process.stdin.fileno(), self._unsent[0])
                self._unsent[0] = self._unsent[0][sent:]
                if not self._unsent[0]:
                    self._unsent.popleft()

    def _receive(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while received := os.read(self._process.stdout.fileno(), PIPE_BYTES):
                self._received += received
                while (encoded := take_encoded(self._received, self.dtype)) is not None:
                    if not self.ready:
                        self.ready = True
                        log.debug("process %d tokenises as well", self._process.pid)
                        continue
                    self.tasks.popleft().encoded = encoded
            raise BrokenPipeError

    def _lose(self) -> None:
        """It has ended; what it had to do is left for others."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipes close before it is gone
        status = self._end()
        why = f"signal {-status}" if status < 0 else f"status {status}"
        log.warning("one of the processes that tokenise ended (%s): going on without it", why)

    def _end(self) -> int:
        """Ends the process, wherever it is: nothing of it is needed any more."""
        process, self._process = self._process, None
        self.ready = False
        self.tasks.clear()
        if process is None:
            return 0
        process.kill()  # which does nothing to one that has ended
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return status
