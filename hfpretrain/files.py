"""Files and folders that are there whole or not at all, the manifest by which damage is seen, and room on the disk."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
ROOM = 2
"""So many times what is to be written has to be free: other things are written to a disk, too."""


def cache_folder() -> Path:
    """Where what is made once is kept: $HFPRETRAIN_CACHE, else hfpretrain in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("HFPRETRAIN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfpretrain"


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a small file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    remove(beside)  # of an earlier kill; or a link, which must not lead the writing elsewhere
    try:
        with beside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        flush(beside)
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def commit_folder(beside: Path, place: Path) -> None:
    """Gives the finished folder `beside` a manifest and then, in one step, the name `place`.

    A whole folder that has the name already stays, and `beside` goes: at no time is there none.
    """
    write_manifest(beside, of=place.name)
    flush_all(beside)
    if os.path.lexists(place):
        if damage(place, of=place.name) is None:
            shutil.rmtree(beside)
            return
        remove(place)
    beside.rename(place)
    flush(place.parent)


def move_files(beside: Path, folder: Path, *, last: str | None = None) -> None:
    """Moves what is in `beside` into `folder`, each file whole or not at all, and `last` when all others are there."""
    flush_all(beside)

    def rank(path: Path) -> tuple[bool, bool, bool, str]:
        # Weights after what describes them, their index after its parts, and the manifest after what it vouches for.
        return path.name == last, path.name == MANIFEST, ".safetensors" in path.name, path.name

    for path in sorted(beside.iterdir(), key=rank):
        if path.name == last:
            flush(folder)
        if path.is_dir():  # as several chat templates have it; it can take the place of an empty folder only
            remove(folder / path.name)
        path.rename(folder / path.name)
    flush(folder)
    beside.rmdir()


def write_manifest(folder: Path, *, of: str, also: Sequence[Path] = ()) -> None:
    """Writes down the size and SHA-256 of every file in `folder`, and of those in `also`, and what they are together.

    The manifest holds the SHA-256 of its own content, too.
    """
    named = {str(path.relative_to(folder)): path for path in files_below(folder)} | {path.name: path for path in also}
    named.pop(MANIFEST, None)
    files = {name: {"bytes": path.stat().st_size, "sha256": digest(path)} for name, path in sorted(named.items())}
    content = {"of": of, "files": files}
    text = json.dumps(content | {"sha256": _digest_of(content)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def damage(folder: Path, *, of: str | None = None, covers: Callable[[str], bool] | None = None) -> str | None:
    """What is wrong with a folder that has a manifest, or None if it is whole.

    `of` is what the manifest has to be of. With `covers` only the files whose names it takes are looked at.
    """
    name = MANIFEST
    try:
        manifest = json_object((folder / MANIFEST).read_text(encoding="utf-8"))
        own = manifest.pop("sha256")
        if own != _digest_of(manifest):
            return f"{MANIFEST} is not what was saved"
        if of is not None and manifest["of"] != of:
            return f"it is a copy of {manifest['of']}"
        for name, expected in manifest["files"].items():
            path = folder / name
            if covers is not None and not covers(name):
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"{name} leads out of the folder"
            if path.exists() and not path.is_file():
                return f"{name} is no file"
            if path.stat().st_size != expected["bytes"] or digest(path) != expected["sha256"]:
                return f"{name} is not what was saved"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was saved"
    return None


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a text is; ValueError for anything else, however odd."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def lack_of_room(folder: Path, needed: int) -> str | None:
    """In words, if there is less than twice the bytes that are needed where `folder` is or will be; else None."""
    free = free_bytes(folder)
    if free >= ROOM * needed:
        return None
    return f"it needs {size_in_words(ROOM * needed)} free, twice what is written, and {size_in_words(free)} are"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or will be."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size_in_words(count: float) -> str:
    """Bytes with one decimal: `15.7 MB`, `1.2 GB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, and makes their names durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if there is one: gone under its name at once, even if killed half-way.

    A hidden folder is removed where it is: by its name nobody takes it for a whole one.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        going = path.with_name(f".{path.name}.removed")
        remove(going)  # of an earlier kill
        path = path.rename(going)
    shutil.rmtree(path)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def bytes_below(folder: Path) -> int:
    """The size of all files in a folder and below it; 0 if there is none."""
    return sum(path.stat().st_size for path in files_below(folder))


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file, made if `flags` say so. OSError for a link, which may lead anywhere, and others.

    A folder of a stranger may hold links, and pipes that wait for ever.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link")
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def flush(path: Path) -> None:
    """Makes a file's content, or a folder's names, durable; some file systems do that with files only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Makes a folder and all in it durable."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)
