"""From the names in a recipe to the files they mean: paths, folders and patterns.

A file that is there but cannot be read is an error at once, wherever it was found: what is passed over in silence
would make a smaller corpus.
"""

import contextlib
import fnmatch
import glob
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from hfpretrain.errors import DataError, nearest

log = logging.getLogger(__name__)

_OTHER_THINGS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


def find_files(
    names: Iterable[str], key: str, *, kind_of: Callable[[Path], str | None], known: str
) -> dict[Path, tuple[int, int]]:
    """The files that the names mean, sorted, each once however often it is named, with size and time.

    Raises DataError where a name means no file of a `known` kind, or one that cannot be read.
    """
    try:
        matches = sorted(path for name in names for path in _find(name, key, kind_of, known))
        found: dict[str, Path] = {}
        for path in matches:
            found.setdefault(os.path.realpath(path), path)
        if len(found) < len(matches):
            log.warning("%s: files named more than once, which are read once: %d", key, len(matches) - len(found))
        return {path: size_and_time(path) for path in found.values()}
    except OSError as error:
        raise DataError(f"{key}: {error.filename} cannot be read: {error.strerror}") from error


def require_unchanged(path: Path, before: tuple[int, int]) -> None:
    """Raises DataError if the file has another size or time: tokens are cached under those seen at the start."""
    try:
        now = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if (now.st_size, now.st_mtime_ns) != before:
        raise DataError(f"{path}: the file changed while it was read", hint="start again when it is complete")


def size_and_time(path: Path) -> tuple[int, int]:
    """Size and time of a file. Raises DataError if it is no plain file, or may not be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for somebody to write into it
            what = _OTHER_THINGS.get(stat.S_IFMT(status.st_mode), "a device")
            raise DataError(f"{path}: is {what}, not a file", hint="write what it gives to a file, and name that")
        path.open("rb").close()
    except FileNotFoundError as error:
        said = "is a link to a file that is not there" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise DataError(f"{path}: {said}", hint=f"remove it, or restore {os.path.realpath(path)}") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it", hint=f"try: chmod u+r '{path}'") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _find(name: str, key: str, kind_of: Callable[[Path], str | None], known: str) -> list[Path]:
    """The files of a known kind that a path, a folder or a pattern means. DataError if there are none."""
    if not name.strip():
        raise DataError(f"{key}: a name is empty", hint="give a path, a folder or a pattern")
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - leaves ~nobody as it is instead of failing
    folders = 0
    if path.is_dir():
        files = [folder / file for folder, below in _walk(path) for file in below]
        what = f"the folder {name}"
    elif _is_there(path):
        if kind_of(path) is None:
            raise DataError(f"{key}: {name}: unknown file type {path.suffix or 'without extension'}", hint=known)
        return [path]
    elif glob.has_magic(name):
        parts = path.parts[1:] if path.anchor else path.parts
        matches = list(dict.fromkeys(_matching(Path(path.anchor), parts)))
        files = [match for match in matches if not match.is_dir()]
        folders = 0 if "**" in parts else len(matches) - len(files)
        what = f"the pattern {name}"
    else:
        siblings: list[str] = []
        with contextlib.suppress(OSError):
            siblings = [sibling.name for sibling in path.parent.iterdir()]
        similar = nearest(path.name, siblings)
        raise DataError(
            f"{key}: there is no file or folder {name}",
            hint=f"did you mean {path.parent / similar}?" if similar else f"relative paths start at {Path.cwd()}",
        )
    usable = [file for file in files if kind_of(file)]
    if not usable:
        others = sorted({file.suffix or file.name for file in files})[:5] + ["folders"] * bool(folders)
        there_is = f"; there is: {', '.join(others)}" if others else ""
        hint = f"to read what is in the folders, write {name}/*" if folders else known
        nothing = "matches nothing" if glob.has_magic(name) and not others else "has no files that can be read"
        raise DataError(f"{key}: {what} {nothing}{there_is}", hint=hint)
    if len(usable) < len(files):
        log.info("%s: %s: %d files of unknown types are left out", key, what, len(files) - len(usable))
    if folders:
        log.info("%s: %s: %d folders are left out", key, what, folders)
    return usable


def _is_there(path: Path) -> bool:
    """Whether something has that name, be it a link to nothing. OSError where that cannot be known."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no file has a NUL in its name
        return False
    return True


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What a pattern's parts match below `folder`, as `glob` does, which would pass over folders it may not read."""
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        for below, _ in _walk(folder) if folder.is_dir() else ():
            yield from _matching(below, rest or ("*",))
    elif glob.has_magic(first):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        for name in sorted(fnmatch.filter(names, first)):
            if name[0] != "." or first[0] == ".":
                yield from _matching(folder / name, rest)
    elif _is_there(folder / first):
        yield from _matching(folder / first, rest)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """`folder` and every folder below it that is not hidden, linked ones too, each once with its files' names."""

    def give_up(error: OSError) -> NoReturn:
        raise error

    seen: set[str] = set()
    for current, folders, files in os.walk(folder, onerror=give_up, followlinks=True):
        seen.add(os.path.realpath(current))
        folders[:] = [
            name
            for name in sorted(folders)
            if name[0] != "." and os.path.realpath(os.path.join(current, name)) not in seen  # noqa: PTH118
        ]
        yield Path(current), [name for name in files if name[0] != "."]
