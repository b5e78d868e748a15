"""Where a model, tokenizer or data set is: a folder here, or a repository on the Hugging Face Hub.

The disk is looked at first, and the Hub is asked once, without the libraries' half minute of retries, so that a
wrong name is a sentence at once. Without a connection what the cache holds is used.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfpretrain.errors import DataError, HFPretrainError, ModelError, UserError, nearest
from hfpretrain.files import write_whole
from hfpretrain.model_files import FILES, check_model_files
from hfpretrain.recipe_types import quoted

log = logging.getLogger(__name__)

Kind = Literal["model", "tokenizer", "dataset"]

_WORDS = {"model": "model", "tokenizer": "tokenizer", "dataset": "data set"}


@dataclass(frozen=True)
class Commit:
    """One commit of a data set on the Hub."""

    repo_id: str
    sha: str
    away: Exception | None = None
    """Why the cache has to do: the Hub did not answer, or has this commit no more; None where it knows the commit."""


def locate(name: str, *, kind: Literal["model", "tokenizer"]) -> str:
    """Finds `name`, a folder or a repository on the Hub (`org/name`, `org/name@revision`); returns an absolute path.

    A folder comes before a Hub id of the same name. Of a repository it is the path of one commit in the cache,
    downloaded first if need be: safetensors, never code. Where the Hub cannot be reached (or HF_HUB_OFFLINE is set),
    what the cache holds serves. Raises ModelError in a sentence where there is neither, or where the folder is one that
    no library should be given.
    """
    folder = local_folder(name, kind=kind) or _snapshot(name, kind)
    check_model_files(Path(folder))
    return folder


def local_folder(name: str, *, kind: Kind) -> str | None:
    """The absolute path of the folder that `name` is; None where it can only be a repository on the Hub.

    Raises ModelError (DataError for a data set) in a sentence where it can be neither.
    """
    error_class = DataError if kind == "dataset" else ModelError
    if not name.strip():
        raise error_class(f"the name of the {_WORDS[kind]} is empty", hint="give a folder, or org/name on the Hub")
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown ~user
        why = getattr(error, "strerror", None) or first_line(error)
        raise error_class(f"{quoted(name)} cannot name a {_WORDS[kind]}: {why}") from None
    if is_folder:
        return str(path.absolute())
    if name.endswith("@"):
        raise error_class(f"{name}: there is no revision behind the @", hint="give a branch, a tag or a commit")
    if is_file:
        raise error_class(
            f"{name} is a file, not the folder of a {_WORDS[kind]}", hint="give a folder, or org/name on the Hub"
        )
    if _looks_like_path(name):
        raise error_class(f"{name}: there is no such folder", hint=_neighbours(path))
    return None


def explain(error: Exception, name: str, *, kind: Kind) -> HFPretrainError:
    """Says in a sentence what a failed download of `name` means; the caller raises the result.

    A ModelError (DataError for a data set), or a plain HFPretrainError where the Hub itself failed.
    """
    from huggingface_hub import errors

    if isinstance(error, HFPretrainError):
        return error
    user_error: type[UserError] = DataError if kind == "dataset" else ModelError
    what = f"the {_WORDS[kind]} {name}"
    for cause in causes(error):
        # GatedRepoError is a RepositoryNotFoundError, so it comes first. `datasets` leaves nothing of it but the word.
        if isinstance(cause, errors.GatedRepoError) or (kind == "dataset" and "is a gated dataset" in str(cause)):
            return user_error(
                f"{what} is gated: this account has no access",
                hint="ask for access on its page on the Hub, then log in with `hf auth login` or set HF_TOKEN",
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return user_error(
                f"{what} is neither a folder here nor on the Hub",
                hint="check the spelling; a private repository needs `hf auth login` or HF_TOKEN",
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            repo_id, revision = split_revision(name)
            if is_commit(revision or ""):
                return user_error(
                    f"the {_WORDS[kind]} {repo_id} has no commit {revision} on the Hub",
                    hint="give another one; if it was there before, the history has been rewritten since",
                )
            return user_error(
                f"the {_WORDS[kind]} {repo_id} has no revision {revision}",
                hint="give one of its branches, tags or commits behind the @",
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return user_error(
                f"{what} is neither a folder here nor in the cache, and HF_HUB_OFFLINE forbids asking the Hub",
                hint="give a folder that exists, or unset HF_HUB_OFFLINE",
            )
        if isinstance(cause, errors.HFValidationError):
            return user_error(
                f"{quoted(name)} is neither a folder here nor a name that the Hub could have",
                hint="give a folder that exists, or org/name",
            )
        status = status_of(cause)
        if status in (401, 403):
            return user_error(
                f"{what}: the Hub refused access (status {status})",
                hint="log in with `hf auth login`, or set HF_TOKEN to a token that may read it",
            )
        if status is not None and (status == 429 or status >= 500):
            return HFPretrainError(f"{what}: the Hub did not answer (status {status})", hint="try again later")
        if is_connection_failure(cause):
            return user_error(
                f"{what} is neither a folder here nor in the cache, and the Hub cannot be reached",
                hint="give a folder that exists, or check the connection",
            )
        if isinstance(cause, errors.EntryNotFoundError):
            return user_error(
                f"{what} lacks a file that is needed: {first_line(cause)}",
                hint=f"check that it really is a {_WORDS[kind]}",
            )
    return user_error(f"{what} could not be loaded: {first_line(error)}")


def _looks_like_path(name: str) -> bool:
    """Whether nobody can mean a Hub id by `name`: those are `name` or `org/name`."""
    parts = split_revision(name)[0].split("/")
    return (
        name.startswith((".", "/", "~"))
        or len(parts) > 2
        or name.endswith("/")
        or (os.sep != "/" and os.sep in name)
        or (len(parts) == 2 and (parts[0] == "runs" or Path(parts[0]).is_dir()))
    )


def _neighbours(path: Path) -> str:
    """A hint for a folder that is not there: the folders beside it, the nearest names first."""
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {parent} either"
    try:
        folders = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        folders = []
    if not folders:
        return f"there are no folders in {parent}"
    similar = nearest(path.name, folders, count=3)
    if similar:
        return f"in {parent} there is: {similar}"
    more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
    return f"in {parent} there is: {', '.join(folders[:5])}{more}"


def split_revision(name: str) -> tuple[str, str | None]:
    """`org/name@revision` as (`org/name`, `revision`); the revision is None where there is none."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def _snapshot(name: str, kind: Kind) -> str:
    """The folder in the cache that holds one commit of a model repository, downloaded if it is not there yet."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo_id, revision = split_revision(name)
    wanted: dict[str, Any] = {"repo_id": repo_id, "revision": revision, "allow_patterns": FILES[kind]}
    try:
        # One request, tried once: what the library does later is retried for half a minute.
        found = HfApi().model_info(repo_id, revision=revision, timeout=float(constants.HF_HUB_ETAG_TIMEOUT))
        try:
            snapshot_download(**wanted | {"revision": found.sha}, local_files_only=True)
        except LocalEntryNotFoundError:
            log.info("downloading the %s %s", _WORDS[kind], name)
        folder: str = snapshot_download(**wanted)
    except Exception as error:
        cached = _without_the_hub(error, lambda: str(snapshot_download(**wanted, local_files_only=True)))
        if cached is None:
            raise explain(error, name, kind=kind) from error
        log.info("the Hub cannot be reached: the %s %s is taken from the cache", _WORDS[kind], name)
        return cached
    return folder


def find_commit(name: str, *, or_cached: bool) -> Commit:
    """The commit that a data set of the Hub (`org/name`, `org/name@revision`) is at now.

    Where the Hub cannot be reached (or HF_HUB_OFFLINE is set), and the cache may do, the one that it was at when it was
    last downloaded whole; and a commit itself, which never changes, where the Hub has it no more. Raises DataError, or
    HFPretrainError where the Hub itself failed.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    repo_id, revision = split_revision(name)
    try:
        # One request, tried once: what the libraries do later is retried for half a minute.
        found = HfApi().dataset_info(repo_id, revision=revision, timeout=float(constants.HF_HUB_ETAG_TIMEOUT))
    except Exception as error:
        cached = _without_the_hub(error, lambda: _remembered(name)) if or_cached else None
        if or_cached and isinstance(error, RevisionNotFoundError) and is_commit(revision or ""):
            cached = revision
        if cached is None:
            raise explain(error, name, kind="dataset") from error
        return Commit(repo_id, cached, error)
    return Commit(str(found.id), str(found.sha))


def remember_commit(name: str, commit: Commit) -> None:
    """Notes in the cache, as huggingface_hub does, at which commit a branch or tag is: the Hub may be away later."""
    note = _note(name)
    if note.name != commit.sha:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, commit.sha)
        except OSError as error:
            log.warning("the cache %s cannot be written: %s", note.parent, error.strerror or error)


def _remembered(name: str) -> str:
    """The commit that was noted for a data set. Raises FileNotFoundError."""
    note = _note(name)
    sha = note.name if is_commit(note.name) else note.read_text(encoding="utf-8")
    if not is_commit(sha):
        raise FileNotFoundError(note)
    return sha


def _note(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repo_id, revision = split_revision(name)
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="dataset")
    return Path(folder, "refs", revision or constants.DEFAULT_REVISION)


def is_commit(revision: str) -> bool:
    """Whether it is written as git writes a commit, in full."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def _without_the_hub(error: Exception, cached: Callable[[], str]) -> str | None:
    """What the cache has, if the error says that the Hub is away; None where it has answered or the cache has nothing.

    A model that was deleted or a login that ran out is said; a Hub that is away need not stop anyone.
    """
    from huggingface_hub.errors import HFValidationError

    statuses = [status for cause in causes(error) if (status := status_of(cause)) is not None]
    if not all(status >= 500 for status in statuses):
        return None
    try:
        return cached()
    except (OSError, HFValidationError):  # the library's LocalEntryNotFoundError is a FileNotFoundError
        return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from or while handling, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the error carries, if any."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_connection_failure(error: BaseException) -> bool:
    """Whether nothing answered. By class name for the HTTP library, which has changed under huggingface_hub."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError) or bool(
        names & {"TransportError", "ConnectionError", "Timeout", "gaierror"}
    )


def first_line(error: BaseException) -> str:
    """The first line of the library's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back transformers' own warnings and bars where we say in a line of our own what matters."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
