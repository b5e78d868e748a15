"""A file of lines, written as a run goes: a line is there whole or not at all, and one that cannot be written is kept.

Training never waits for it and never stops because of it.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hfpretrain.files import flush, open_own
from hfpretrain.run import step_of

log = logging.getLogger(__name__)


class Lines:
    """Lines added to a file. `unsafe` are those that may not outlive a power loss, as far as is known."""

    def __init__(self, file: Path, *, upto_step: int, unsafe: Sequence[str] = ()) -> None:
        """Goes on with a file: lines after `upto_step` will be written again. `unsafe` may be in it, or not yet."""
        self.file = file
        there = set()
        end = 0
        self._bytes = 0
        """So much of the file is lines to keep; what follows is of a write that failed, or will be written again."""
        self._said = False
        try:
            for line in _read(file).splitlines(keepends=True) if os.path.lexists(file) else ():
                end += len(line)
                text = line.decode(errors="replace")
                if text.endswith("\n") and step_of(text) <= upto_step:
                    self._bytes = end
                    there.add(text.rstrip("\n"))
        except OSError as error:
            self._say(error)
        self.unsafe = [*unsafe]
        self._written = sum(line in there for line in unsafe)
        """So many of `unsafe`, the first, are in the file."""
        self._write()

    def add(self, line: str) -> None:
        self.unsafe.append(line)
        self._write()

    def save(self) -> None:
        """Makes all lines durable, if that is possible."""
        self._write()
        if self._written < len(self.unsafe) or not self.file.exists():
            return
        try:
            flush(self.file)
            flush(self.file.parent)
        except OSError as error:
            self._say(error)
            return
        self.unsafe, self._written = [], 0

    def _write(self) -> None:
        """Adds what is missing to the file, all of it or nothing."""
        new = "".join(line + "\n" for line in self.unsafe[self._written :]).encode()
        if not new and not self.file.exists():
            return
        try:
            descriptor = open_own(self.file, os.O_WRONLY | os.O_CREAT)
            try:
                self._bytes = min(self._bytes, os.fstat(descriptor).st_size)
                os.ftruncate(descriptor, self._bytes)
                done = 0
                while done < len(new):
                    done += os.pwrite(descriptor, new[done:], self._bytes + done)
            except OSError:
                os.ftruncate(descriptor, self._bytes)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            self._say(error)
            return
        self._bytes += len(new)
        self._written = len(self.unsafe)

    def _say(self, error: OSError) -> None:
        """Once: the next lines will fail like the first."""
        if not self._said:
            self._said = True
            log.warning(
                "%s cannot be written (%s): training goes on, and the lines are kept for when it can be",
                self.file,
                error.strerror or error,
            )


def _read(file: Path) -> bytes:
    with os.fdopen(open_own(file, os.O_RDONLY), "rb") as opened:
        return opened.read()
