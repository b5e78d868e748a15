"""Files and folders that are there whole or not at all, and the manifest by which damage is seen."""

import hashlib
import json
import os
import shutil
from pathlib import Path

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Where what is made once is kept: $HFPRETRAIN_CACHE, else hfpretrain in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("HFPRETRAIN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfpretrain"


def write_whole(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    flush(beside)
    beside.rename(path)
    flush(path.parent)


def commit_folder(beside: Path, place: Path) -> None:
    """Gives the finished folder `beside` a manifest (size and SHA-256 of every file) and the name `place`."""
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(beside)): {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files}
    (beside / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")
    for path in [*files, beside / MANIFEST, beside]:
        flush(path)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
    flush(place.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `commit_folder` made, or None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or digest(path) != expected["sha256"]:
                return f"{name} is not what was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Makes a file's content, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
