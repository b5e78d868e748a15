"""Rows that are read while they are needed, from any place in the stream on: of data sets through the streaming of
`datasets`, of files by the readers that prepare them, so that both ways give the same."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfpretrain.data.finding import require_unchanged
from hfpretrain.data.formats import Report, Row, arrow_rows, read_file
from hfpretrain.errors import HFPretrainError
from hfpretrain.hub import causes, first_line, is_connection_failure, status_of

log = logging.getLogger(__name__)

ROWS = 256
"""Read at once. What is read from a state on is the same as without an interruption, table for table."""
PAUSES = (1, 2, 4, 8, 16, 32, 60, 60, 60)
"""Seconds before a failed read is tried again."""

State = dict[str, Any]
"""Where a stream is: JSON."""
Batch = tuple[list[Row], int, State]
"""Rows; how many were read for them, bad ones too; and the state behind them."""


@dataclass
class FileStream:
    """One pass over local files, as they were when they were found."""

    files: Sequence[tuple[Path, tuple[int, int]]]
    """Each with size and time."""
    columns: Row
    documents: str

    def rows(self, report: Report) -> Iterator[Row]:
        """All rows. Raises DataError for what cannot be read."""
        for number in range(len(self.files)):
            yield from self._rows_of(number, report)

    def _rows_of(self, number: int, report: Report) -> Iterator[Row]:
        path, status = self.files[number]
        yield from read_file(path, self.columns, self.documents, report)
        require_unchanged(path, status)

    def interrupt(self) -> None:
        """Nobody waits for a file."""

    def batches(self, state: State | None, _before: int, report: Report) -> Iterator[Batch]:
        """The rows from a state on (None: the beginning). Raises DataError for what cannot be read."""
        passing = state is not None
        start, done = (state["file"], state["rows"]) if state else (0, 0)

        def told(*what: Any, **more: Any) -> None:
            if not passing:  # else it was said before
                report(*what, **more)

        for number in range(start, len(self.files)):
            rows = self._rows_of(number, told)
            for _ in itertools.islice(rows, done):
                pass
            passing = False
            while batch := list(itertools.islice(rows, ROWS)):
                done += len(batch)
                yield batch, len(batch), {"file": number, "rows": done}
            done = 0


@dataclass
class RowStream:
    """One pass over a data set. `load` opens its `datasets.IterableDataset` of Arrow tables."""

    key: str
    name: str
    columns: Row
    load: Callable[[], Any]
    explain: Callable[[Exception], HFPretrainError]
    """What an error that does not pass means, in a sentence."""
    _interrupted: threading.Event = field(default_factory=threading.Event, init=False)

    def interrupt(self) -> None:
        """Nobody waits for a failed read any more, from now on."""
        self._interrupted.set()

    def rows(self, report: Report) -> Iterator[Row]:
        """All rows. Raises DataError for what cannot be read."""
        return (row for rows, _, _ in self.batches(None, 0, report) for row in rows)

    def batches(self, state: State | None, before: int, report: Report) -> Iterator[Batch]:
        """The rows from a state on (None: the beginning), which has so many rows before it."""
        for table, behind in self.tables(state):
            yield list(arrow_rows([table], self.columns, self.name, report, before=before)), len(table), behind
            before += len(table)

    def tables(self, state: State | None = None) -> Iterator[tuple[Any, State]]:
        """The tables of ROWS rows from a state on (None: the beginning), and the state behind each.

        What fails to be read and may go away, such as a lost connection, is tried again where it was. Raises DataError
        for what stays.
        """
        _fail_early()
        tries = 0
        while True:
            try:
                dataset = self.load()
                if state is not None:
                    dataset.load_state_dict(state)
                for table in dataset.iter(ROWS):
                    state, tries = dataset.state_dict(), 0
                    yield table, state
                return
            except (HFPretrainError, Interrupted):
                raise
            except Exception as error:
                if tries == len(PAUSES) or not may_pass(error):
                    raise self.explain(error) from error
                said = "%s: %s cannot be read just now (%s): trying again in %d s"
                log.warning(said, self.key, self.name, first_line(error), PAUSES[tries])
                if self._interrupted.wait(PAUSES[tries]):
                    raise Interrupted from error
                tries += 1


def _fail_early() -> None:
    """Has `datasets` try once: here it is said, a signal is heard, and nothing is lost.

    What it reads again after an error goes on behind what a decompressor or a text reader had already taken.
    """
    from datasets import config

    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 1
    for name in ("READ_RETRY", "READ_SERVER_UNAVAILABLE_RETRY", "READ_RATE_LIMIT_RETRY", "OPEN_RETRY"):
        setattr(config, f"STREAMING_{name}_INTERVAL", 0)


class Interrupted(Exception):
    """What could not be read was not to be waited for any more."""


def may_pass(error: Exception) -> bool:
    """Whether what cannot be read now may be read later: no answer, or one that says so."""
    for cause in causes(error):
        status = status_of(cause)
        if status is not None:
            return status == 429 or status >= 500
        if is_connection_failure(cause):
            return True
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | PermissionError):
            return cause.errno is not None  # Arrow's for a damaged file have none
    return False
