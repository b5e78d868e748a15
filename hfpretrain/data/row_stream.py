"""Rows that are read while they are needed, through the streaming of `datasets`, from any place in the stream on."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hfpretrain.errors import HFPretrainError
from hfpretrain.hub import causes, first_line, is_connection_failure, status_of

log = logging.getLogger(__name__)

ROWS = 256
"""Read at once. What is read from a state on is the same as without an interruption, table for table."""
PAUSES = (1, 2, 4, 8, 16, 32)
"""Seconds before a failed read is tried again: the libraries have tried for a while before they fail."""

State = dict[str, Any]
"""Where a stream is, as `datasets` describes it: JSON."""


@dataclass
class RowStream:
    """One pass over a streamed source. `load` opens its `datasets.IterableDataset` of Arrow tables."""

    key: str
    name: str
    load: Callable[[], Any]
    explain: Callable[[Exception], HFPretrainError]
    """What an error that does not pass means, in a sentence."""
    interrupted: threading.Event = field(default_factory=threading.Event)
    """Set, nobody waits for a failed read any more."""

    def tables(self, state: State | None = None) -> Iterator[tuple[Any, State]]:
        """The tables of ROWS rows from a state on (None: the beginning), and the state behind each.

        What fails to be read and may go away, such as a lost connection, is tried again where it was. Raises DataError
        for what stays.
        """
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
                if self.interrupted.wait(PAUSES[tries]):
                    raise Interrupted from error
                tries += 1


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
