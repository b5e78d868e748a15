"""Files of token ids that other tools made, as a source: raw .bin, .npy, and datatrove's .ds with its index.

They are read where they are, and never copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hfpretrain.data.finding import find_files, size_and_time
from hfpretrain.errors import DataError
from hfpretrain.recipe import Source

KINDS = (".bin", ".npy", ".ds")
DEFAULT_DTYPE = "uint16"
LOOKED_AT = 100_000
"""16-bit numbers of a raw file that are looked at, to see whether they are halves of larger ones."""


@dataclass(frozen=True)
class TokenFile:
    """One file: its ids, memory-mapped, and where its documents end, where it says so."""

    path: Path
    status: tuple[int, int]
    """Size and time when it was found."""
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.int64] | None
    beside: list[tuple[int, int] | None]
    """Size and time of .index and .metadata."""


class JoinedTokens(Sequence[int]):
    """The ids of several files as one row, of which slices can be taken."""

    def __init__(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        self.parts = list(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self.dtype = np.result_type(*{part.dtype for part in parts})

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, where: Any) -> Any:
        if not isinstance(where, slice):
            return self[where : where + 1][0]
        start, end, _ = where.indices(len(self))
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, end, side="left"))
        pieces = [
            self.parts[number][max(0, start - self.starts[number]) : end - self.starts[number]]
            for number in range(first, min(last, len(self.parts)))
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.zeros(0, self.dtype)])


def open_token_files(source: Source, key: str) -> list[TokenFile]:
    """The files of a source of tokens. Raises DataError where there are none, or they cannot be what they seem."""
    names = (source.tokens,) if isinstance(source.tokens, str) else source.tokens or ()
    found = find_files(names, f"{key}.tokens", kind_of=_kind_of, known=f"known are {', '.join(KINDS)}")
    return [TokenFile(path, status, *_opened(path, source.dtype, key), _beside(path)) for path, status in found.items()]


def _beside(path: Path) -> list[tuple[int, int] | None]:
    """Size and time of what may stand beside a .ds file."""
    names = [path.with_name(path.name + ending) for ending in (".index", ".metadata")]
    return [size_and_time(name) if name.is_file() else None for name in names]


def _kind_of(path: Path) -> str | None:
    return path.suffix if path.suffix in KINDS else None


def _opened(path: Path, dtype: str | None, key: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """The ids of a file, and where its documents end, where it says so."""
    if path.suffix == ".ds":
        return _opened_ds(path, dtype, key)
    if path.suffix == ".npy" and _magic(path) == b"\x93NUMPY":
        try:
            tokens: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{path}: the .npy file is truncated or damaged: {error}") from error
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            said = f"an array of {tokens.ndim} dimensions of {tokens.dtype}"
            raise DataError(f"{path}: holds {said}, not a row of token ids", hint="write it flat, as uint16 or uint32")
        if dtype is not None and tokens.dtype != np.dtype(dtype):
            raise DataError(f"{key}.dtype: {path} says itself that it is {tokens.dtype}", hint=f"remove {key}.dtype")
        return tokens, None
    tokens = _raw(path, np.dtype(dtype or DEFAULT_DTYPE), f"{key}.dtype")
    odd = tokens[1:LOOKED_AT:2]
    if tokens.dtype.itemsize == 2 and len(tokens) % 2 == 0 and len(odd) and not odd.any():
        raise DataError(
            f"{path}: every second number is 0, as if it held uint32 and not {tokens.dtype.name}",
            hint=f"set {key}.dtype: uint32, or int64",
        )
    return tokens, None


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _raw(path: Path, dtype: np.dtype[Any], key: str) -> npt.NDArray[Any]:
    size = path.stat().st_size
    if not size:
        raise DataError(f"{path}: the file is empty")
    if size % dtype.itemsize:
        raise DataError(
            f"{path}: {size} bytes are no whole number of {dtype.name}: the file is cut, or of another type",
            hint=f"copy it again, or set {key}",
        )
    return np.memmap(path, dtype=dtype.newbyteorder("<"), mode="r")


def _opened_ds(path: Path, dtype: str | None, key: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """datatrove's: little-endian ids; .index holds the end of each document, .metadata the tokenizer and token size."""
    index, metadata = path.with_name(f"{path.name}.index"), path.with_name(f"{path.name}.metadata")
    if path.with_name(f"{path.name}.loss").exists():
        raise DataError(
            f"{path}: has a .loss file, which says what is to be learnt, and that is not read",
            hint="tokenize with save_loss_metadata=False",
        )
    said = None
    if metadata.is_file():
        size = metadata.read_text(encoding="utf-8", errors="replace").partition("\n")[0].rpartition("|")[2]
        said = {"2": "uint16", "4": "uint32"}.get(size.strip())
    if said and dtype and said != dtype:
        raise DataError(f"{key}.dtype: {metadata} says that it is {said}", hint=f"remove {key}.dtype")
    tokens = _raw(path, np.dtype(said or dtype or DEFAULT_DTYPE), f"{key}.dtype")
    if not index.is_file():
        return tokens, None
    ends = _raw(index, np.dtype("uint64"), f"{key}.dtype").astype(np.int64)
    if (np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(tokens):
        told = f"has {len(tokens)} tokens, and its index ends at {ends[-1]}"
        raise DataError(
            f"{path}: {told}: one of both is cut, or the dtype wrong",
            hint=f"copy both again, or set {key}.dtype",
        )
    return tokens, ends
