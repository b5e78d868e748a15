"""Filters of a source: documents that are too short or too long, on a drop list, or there before, are left out.

Texts are told apart by the first 128 bits of their SHA-256: two texts that differ would have to share them for one to
be left out wrongly, which among 10^12 texts has a chance of about one in 10^15.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hfpretrain.data.formats import lines
from hfpretrain.errors import DataError
from hfpretrain.recipe import Source

if TYPE_CHECKING:
    from hfpretrain.data.sources import Document

log = logging.getLogger(__name__)

BATCH_DOCUMENTS, BATCH_CHARACTERS = 1000, 1_000_000
"""Documents that are looked up at once: enough to be fast, few enough for memory."""
_DIGEST_BYTES = 16
_SHA256 = re.compile(r"([0-9a-fA-F]{64})(\s.*)?", re.DOTALL)
IN_WORDS = {
    "min_chars": "shorter than min_chars",
    "max_chars": "longer than max_chars",
    "drop_list": "on the drop list",
    "deduplicate": "duplicates",
}

DigestArray: TypeAlias = npt.NDArray[np.bytes_]


class Digests:
    """A set of 128-bit digests that takes 16 bytes for each, and for a moment 24 more while it grows.

    They lie in sorted runs, each at least twice as long as the next, so that few have to be searched.
    """

    def __init__(self, digests: Sequence[bytes] = ()) -> None:
        self._runs: list[DigestArray] = []
        if digests:
            self.add(_array(digests))

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def holds(self, digests: DigestArray) -> npt.NDArray[np.bool_]:
        """Which of the digests are in the set."""
        found = np.zeros(len(digests), dtype=np.bool_)
        for run in self._runs:
            places = np.searchsorted(run, digests)
            found |= run[np.minimum(places, len(run) - 1)] == digests
        return found

    def add(self, digests: DigestArray) -> npt.NDArray[np.bool_]:
        """Adds the digests, and says which of them were new; of equal ones the first."""
        new = np.zeros(len(digests), dtype=np.bool_)
        new[np.unique(digests, return_index=True)[1]] = True
        new &= ~self.holds(digests)
        run = np.sort(digests[new])
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # which merges what is sorted already
        if len(run):
            self._runs.append(run)
        return new

    def fingerprint(self) -> str:
        return hashlib.sha256(np.sort(np.concatenate([_array([]), *self._runs])).tobytes()).hexdigest()


@dataclass(frozen=True)
class Filters:
    """What a source leaves out. Characters are those of the text; a pair's text is both parts as they are joined."""

    min_chars: int = 0
    max_chars: int | None = None
    drop_list: Digests | None = None
    deduplicate: bool = False

    @staticmethod
    def of(source: Source, key: str) -> "Filters":
        """Raises DataError if the drop list cannot be read, or a line of it is no hash."""
        drop_list = (
            read_drop_list(Path(source.drop_list).expanduser(), f"{key}.drop_list") if source.drop_list else None
        )
        return Filters(source.min_chars or 0, source.max_chars, drop_list, source.deduplicate)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies them, as JSON; empty if nothing is left out."""
        found = {
            "min_chars": self.min_chars,
            "max_chars": self.max_chars,
            "deduplicate": self.deduplicate,
            "drop_list": None if self.drop_list is None else self.drop_list.fingerprint(),
        }
        return {name: value for name, value in found.items() if value}

    def kept(
        self, documents: Iterable["Document"], left_out: Counter[str], seen: Digests | None
    ) -> Iterator["Document"]:
        """The documents that stay; the others are counted by key. With `deduplicate`, `seen` gets their digests."""
        batch: list[Document] = []
        characters = 0
        for document in documents:
            length = len(document.text)
            if length < self.min_chars:
                left_out["min_chars"] += 1
            elif self.max_chars is not None and length > self.max_chars:
                left_out["max_chars"] += 1
            elif seen is None and self.drop_list is None:
                yield document
            else:
                batch.append(document)
                characters += length
                if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
                    yield from self._unknown(batch, left_out, seen)
                    batch, characters = [], 0
        if batch:
            yield from self._unknown(batch, left_out, seen)

    def _unknown(self, batch: list["Document"], left_out: Counter[str], seen: Digests | None) -> Iterator["Document"]:
        digests = _array([hashlib.sha256(document.text.encode()).digest() for document in batch])
        stays = np.ones(len(batch), dtype=np.bool_)
        if self.drop_list is not None:
            stays &= ~self.drop_list.holds(digests)
            left_out["drop_list"] += int((~stays).sum())
        if seen is not None:
            new = seen.add(digests[stays])
            left_out["deduplicate"] += int((~new).sum())
            stays[stays] = new
        return (document for document, stay in zip(batch, stays.tolist(), strict=True) if stay)


def in_words(left_out: Mapping[str, int]) -> str:
    """How many documents each filter left out, e.g. "3 shorter than min_chars, 2 duplicates"; nothing if none."""
    return ", ".join(f"{left_out[key]:,} {what}" for key, what in IN_WORDS.items() if left_out.get(key))


def read_drop_list(path: Path, key: str) -> Digests:
    """The hashes of a drop list: the SHA-256 of a text's UTF-8 bytes in hex, one a line, as sha256sum prints them.

    What follows a hash on its line, blank lines and those that begin with # are passed over.
    """
    if not path.is_file():
        raise DataError(f"{key}: there is no file {path}", hint="give a file with a SHA-256 in hex on each line")
    digests = []
    for number, raw in lines(path):
        line = raw.decode(errors="replace").strip()
        if not line or line.startswith("#"):
            continue
        hash_ = _SHA256.fullmatch(line)
        if hash_ is None:
            raise DataError(
                f"{path}:{number}: not the SHA-256 of a text in hex (64 digits)",
                hint="write hashlib.sha256(text.encode()).hexdigest(), one a line",
            )
        digests.append(bytes.fromhex(hash_[1]))
    return Digests(digests)


def _array(digests: Sequence[bytes]) -> DigestArray:
    return np.array([digest[:_DIGEST_BYTES] for digest in digests], dtype=f"S{_DIGEST_BYTES}")
