"""A file of lines, written as a run goes: a line is there whole or not at all, and one that cannot be written is kept.

Training never waits for it and never stops because of it.
"""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from hfpretrain.files import flush, open_own
from hfpretrain.run import step_of

log = logging.getLogger(__name__)


@dataclass
class Written:
    """What is known of a file of lines; saved with a checkpoint."""

    safe: int = 0
    """So many lines, the first, are in it for certain."""
    unsafe: list[str] = field(default_factory=list)
    """Lines after those, which may not be in it, or may not outlive a power loss."""
    lost: int = 0
    """So many lines were safe, and not there any more when the run went on."""

    def take_back(self) -> None:
        """Has the last line make way for another."""
        if self.unsafe:
            self.unsafe.pop()
        else:
            self.safe -= 1


class Lines:
    """Lines added to a file."""

    def __init__(self, file: Path, written: Written, *, upto_step: int) -> None:
        """Goes on with a file as it was when the step `upto_step` was saved; what was added later is written again."""
        self.file, self.written, self._upto_step = file, written, upto_step
        self._end: int | None = None
        """The end, in bytes, of what is to be kept of the file; None until it could be read."""
        self._added = 0
        """So many of the unsafe lines, the first, are in what is kept."""
        self._said = False
        self._write()

    def add(self, line: str) -> None:
        self.written.unsafe.append(line)
        self._write()

    def save(self) -> Written:
        """Makes all lines durable, if that is possible."""
        written = self.written
        self._write()
        if self._added < len(written.unsafe) or not self.file.exists():
            return written
        try:
            flush(self.file)
            flush(self.file.parent)
        except OSError as error:
            self._say(error)
            return written
        written.safe += len(written.unsafe)
        written.unsafe, self._added = [], 0
        return written

    def _find_end(self) -> int:
        """The end of the safe lines. It says how many are missing, and counts them as lost from now on."""
        kept = end = place = 0
        content = _read(self.file) if os.path.lexists(self.file) else b""
        for number, line in enumerate(content.splitlines(keepends=True)[: self.written.safe], start=1):
            place += len(line)
            if line.endswith(b"\n") and step_of(line.decode(errors="replace")) <= self._upto_step:
                kept, end = number, place
        if missing := self.written.safe - kept:
            log.warning("%s lacks %d lines that were in it when the run was saved", self.file, missing)
            self.written.safe, self.written.lost = kept, self.written.lost + missing
        return end

    def _write(self) -> None:
        """Adds what is missing to the file, all of it or nothing."""
        new = "".join(line + "\n" for line in self.written.unsafe[self._added :]).encode()
        try:
            if self._end is None:
                self._end = self._find_end()
            if not new and not os.path.lexists(self.file):
                return
            descriptor = open_own(self.file, os.O_WRONLY | os.O_CREAT)
            try:
                self._end = min(self._end, os.fstat(descriptor).st_size)
                os.ftruncate(descriptor, self._end)
                done = 0
                while done < len(new):
                    done += os.pwrite(descriptor, new[done:], self._end + done)
            except OSError:
                os.ftruncate(descriptor, self._end)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            self._say(error)
            return
        self._end += len(new)
        self._added = len(self.written.unsafe)

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
