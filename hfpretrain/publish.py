"""To the Hub: a finished model, and checkpoints while a run goes on, with huggingface_hub's own transfer.

What is sent is looked at first and is whole. A push that failed is repeated by the same call, which sends what is
missing. Checkpoints wait for their push in a folder of the run (training/publisher.py pushes them while it trains).
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfpretrain import hub, recipe, recipe_types
from hfpretrain.card import generated, write_card
from hfpretrain.errors import CheckpointError, HFPretrainError, HubError, ModelError, RunError, UserError
from hfpretrain.files import MANIFEST, damage, remove
from hfpretrain.model_files import INDEX, check_model_files, is_model_file
from hfpretrain.run import Run, newest_whole

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

CARD_FILES = ["README.md", "training_curve.png"]
WAIT_SECONDS = 60.0
"""How long the Hub may be silent; $HF_HUB_DOWNLOAD_TIMEOUT says otherwise. The library itself waits for ever."""
# What git allows, but for what would be a commit or a reference of another kind.
_BRANCH = re.compile(r"(?=.{1,200}$)(?!refs/|.*\.\.|HEAD$|[0-9a-fA-F]{40}$)[\w]([\w./-]*[\w])?(?<!\.lock)")
AGAIN = "the same push again sends only what is missing"


@dataclass(frozen=True)
class Pushed:
    """Where something was pushed to."""

    url: str
    changed: bool
    """False where the Hub had it all."""


def push(
    model: str | Path, repo_id: str, *, public: bool = False, revision: str | None = None, message: str | None = None
) -> list[Pushed]:
    """Pushes a run, a checkpoint or any other local model folder to the Hub.

    The repository is made if there is none, private unless `public`; `revision` is a branch, made if there is none. Of
    a run its card comes along, and its checkpoints that still wait for this repository follow, each to its own branch;
    of an unfinished run the newest checkpoint is taken. Raises UserError for what cannot be pushed, and HubError for
    what the Hub says or does not say: then the same call again sends what is missing.
    """
    if problem := recipe.repo_id_problem(repo_id):
        raise UserError(f"{recipe_types.quoted(repo_id)} {problem}")
    if revision is not None and not _BRANCH.fullmatch(revision):
        raise UserError(
            f"{recipe_types.quoted(revision)} cannot name a branch",
            hint="give letters, digits, dashes, and dots in between",
        )
    if not str(model).strip():
        raise ModelError("the name of the model is empty", hint="give a run, a checkpoint or a model folder")
    folder, run = _model_folder(Path(model))
    check_whole(folder)
    log.info("pushing %s to %s%s", folder, repo_id, f", branch {revision}" if revision else "")
    name = find_repository(repo_id, public=public)
    if run:
        write_card(run, name, revision)
    pushed = [_push_folder(folder, name, revision=revision, message=message)]
    if run and revision is None:
        pushed += _push_waiting(run, repo_id, name)
    return pushed


def _push_waiting(run: Run, repo_id: str, name: str) -> list[Pushed]:
    """Pushes the checkpoints that wait for this repository; for another one they go on waiting, which is said."""
    staged = waiting(run)
    meant = recipe.load(run.recipe_file).hub.repo_id
    if meant not in (repo_id, name):
        if staged:
            log.info("checkpoints that go on waiting, for another repository, %s: %d", meant, len(staged))
        return []
    pushed = [push_checkpoint(each, name) for each in staged]
    all_done(run)
    return pushed


def waiting(run: Run) -> list[Path]:
    """The checkpoints of a run that are still to be pushed, the oldest first; damaged ones are left out, and said."""
    found = []
    for path in run.unpushed.glob("[!.]*"):
        try:
            check_whole(path)
            found.append((path.stat().st_mtime_ns, path))
        except HFPretrainError as error:
            log.warning("%s is not pushed: %s", path, error.message)
        except FileNotFoundError:  # pushed just now
            continue
    return [path for _, path in sorted(found)]


def push_checkpoint(staged: Path, name: str) -> Pushed:
    """Pushes a waiting checkpoint to the branch of its name, and takes it away when that is done."""
    log.info("pushing %s to %s, branch %s", staged, name, staged.name)
    pushed = _push_folder(staged, name, revision=staged.name, waited=True)
    remove(staged)
    return pushed


def all_done(run: Run) -> None:
    """Notes that nothing of a run is left to push: the folder of what waits goes."""
    if run.unpushed.is_dir() and not any(run.unpushed.glob("[!.]*")):
        shutil.rmtree(run.unpushed, ignore_errors=True)


def stage(checkpoint: Path, run: Run, branch: str) -> None:
    """Puts the model of a checkpoint where it waits for its push: linked, so that it costs no room of its own.

    It stays when older checkpoints are pruned. Said and left out where it cannot be done: a push never stops a run.
    """
    place, beside = run.unpushed / branch, run.unpushed / f".{branch}.partial"
    if place.is_dir():
        return
    try:
        files = model_files(checkpoint)
        size = sum(path.stat().st_size for path in files)
        if shutil.disk_usage(run.path).free < 4 * size:
            raise OSError(None, "the disk is nearly full, and training needs the room")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for path in files:
            try:
                (beside / path.name).hardlink_to(path)
            except OSError:  # a file system without links
                shutil.copyfile(path, beside / path.name)
        beside.rename(place)
    except OSError as error:
        log.warning("%s will not be pushed: it cannot be put aside (%s)", checkpoint.name, error.strerror or error)
        shutil.rmtree(beside, ignore_errors=True)


def model_files(folder: Path) -> list[Path]:
    """The files in a folder, not below it, that belong to a model."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_model_file(path.name))


def _model_folder(place: Path) -> tuple[Path, Run | None]:
    """The folder to push, and the run if it is a finished one."""
    try:
        place = place.expanduser()
        found = place.is_dir()
    except (OSError, RuntimeError):  # too long, of an unknown ~user
        found = False
    if not found:
        raise ModelError(f"{place}: there is no such folder", hint="give a run, a checkpoint or a model folder")
    run = Run(place)
    if not run.recipe_file.is_file():
        return place, None
    run.check_own()
    if run.state == "finished":
        return place, run
    checkpoint = newest_whole(run.checkpoints)
    if checkpoint is None:
        raise RunError(f"{place} has no model yet: it is not finished and has no checkpoint")
    log.info("%s is not finished: its newest checkpoint, %s, is pushed", place, checkpoint.name)
    if any(run.unpushed.glob("[!.]*")):
        log.info("its other checkpoints in %s are pushed when it goes on: train --resume", run.unpushed)
    return checkpoint, None


def check_whole(folder: Path) -> None:
    """Raises ModelError or CheckpointError unless the folder holds a model whose files are complete.

    Where there is a manifest they also have to be what was saved; the recipe may be edited for the card's sake.
    """
    from safetensors import SafetensorError, safe_open

    if (folder / MANIFEST).is_file() and (what := damage(folder, covers=is_model_file)):
        raise CheckpointError(
            f"{folder} is damaged: {what}",
            hint=f"push another checkpoint; or, if you changed it on purpose, first remove {folder / MANIFEST}",
        )
    check_model_files(folder)
    what = "config.json"
    try:
        (folder / "config.json").stat()
        for path in model_files(folder) + [path for path in [folder / "README.md"] if path.is_file()]:
            if path.suffix in (".json", ".md"):
                what = path.name
                text = path.read_text(encoding="utf-8")
                if path.suffix == ".json":
                    json.loads(text)
        what = "its weights"
        index = folder / INDEX
        single = not index.is_file()
        shards = ["model.safetensors"] if single else set(json.loads(index.read_text())["weight_map"].values())
        for shard in sorted(shards):
            with safe_open(folder / shard, framework="np"):  # compares the sizes in its header with the file's
                pass
    except FileNotFoundError as error:
        missing = Path(str(error.filename or error).split(": ")[-1].strip('"')).name
        raise ModelError(
            f"{folder} is no whole model: {missing} is missing", hint="give a finished run or a saved model"
        ) from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder} is no whole model: {what} cannot be read ({hub.first_line(error)})") from error
    if not any(next(folder.glob(pattern), None) for pattern in ("tokenizer*.json", "vocab.*", "*.model")):
        raise ModelError(f"{folder} holds no tokenizer", hint="save the tokenizer into the same folder")


def find_repository(repo_id: str, *, public: bool) -> str:
    """The full name of the repository, made (private unless `public`) if it is not there. Raises HubError."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise HubError("nothing is pushed: HF_HUB_OFFLINE is set", hint="unset it and repeat the push")
    token = get_token()
    if token is None or not (token.isascii() and token.isprintable()):
        what = "there is no token for the Hub" if token is None else "the token for the Hub holds signs that none has"
        raise HubError(f"nothing is pushed: {what}", hint="log in with `hf auth login`, or set HF_TOKEN")
    _bound_waiting()
    with _explained(repo_id) as api:
        name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        try:
            private = api.model_info(name).private
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            api.create_repo(name, private=not public, exist_ok=True)
            return name
    if not private and not public:
        raise HubError(
            f"nothing is pushed: {name} is public, and the push is a private one",
            hint="push with --public (hub.private: false in a recipe), or make the repository private on its page",
        )
    if private and public:
        log.warning("%s exists and is private, and stays so; its page on the Hub can make it public", name)
    return name


def _bound_waiting() -> None:
    """Has huggingface_hub's client give up on a silent Hub, unless somebody has given it a client of their own."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def client() -> Any:
        made = _http.default_client_factory()
        made.timeout = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or WAIT_SECONDS)
        return made

    # Not the one client that there is: the library makes a new one whenever a connection fails.
    if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:
        set_client_factory(client)


def _push_folder(
    folder: Path, name: str, *, revision: str | None, message: str | None = None, waited: bool = False
) -> Pushed:
    """Sends the files of a model and its card that the Hub does not have, as one commit.

    Files of a model that was there before go: old weights or tokenizer files would be loaded with the new ones. Of a
    checkpoint that waited main's card goes from its branch, since it is of another model.
    """
    from huggingface_hub import constants

    with _explained(name) as api:
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        before = api.model_info(name, revision=revision)
        there = {sibling.rfilename for sibling in before.siblings or ()}
        sent = {path.name for path in model_files(folder)}
        stale = {file for file in there if is_model_file(file)} - sent
        own = (folder / "README.md").is_file()
        card = _card_there(name, str(before.sha)) if "README.md" in there else None
        edited_there = card is not None and not generated(card)
        if own and edited_there and card != (folder / "README.md").read_text(encoding="utf-8"):
            log.info("README.md was edited on the Hub, and is kept as it is; delete it there to have this one instead")
        elif own:
            sent |= {file for file in CARD_FILES if (folder / file).is_file()}
        elif waited and not edited_there:
            stale |= there & set(CARD_FILES)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"{folder.absolute().name}, with hfpretrain",
            allow_patterns=[escape(file) for file in sorted(sent)],
            delete_patterns=[escape(file) for file in sorted(stale)] or None,
            parent_commit=before.sha,  # what was looked at is what is changed
        )
    tree = f"/tree/{revision}" if revision else ""
    return Pushed(f"{constants.ENDPOINT}/{name}{tree}", changed=commit.oid != before.sha)


def _card_there(name: str, commit: str) -> str:
    """The card of a commit on the Hub."""
    from huggingface_hub import hf_hub_download

    # By its commit. By its branch, an older copy in the cache would do where the Hub fails, and the ref would move.
    return Path(hf_hub_download(name, "README.md", revision=commit)).read_text(encoding="utf-8", errors="replace")


@contextmanager
def _explained(repo_id: str) -> Iterator["HfApi"]:
    """The Hub's API; what goes wrong with it becomes a HubError, a sentence without secrets."""
    from huggingface_hub import HfApi, get_token

    api = HfApi(library_name="hfpretrain")
    try:
        yield api
    except Exception as error:
        problem = _problem(error, repo_id)
        # A server may say anything, and addresses to send files to are signed.
        message = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", problem.message)
        problem = HubError(message.replace(get_token() or "\0", "***"), hint=problem.hint)
        # Not `from error`: a traceback would show what the server said.
        raise problem from None


def _problem(error: Exception, repo_id: str) -> HubError:
    """What a failed request means, and what to do."""
    from huggingface_hub import errors

    causes = list(hub.causes(error))
    said = next((cause.server_message for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    said = f": {' '.join(said.split())}" if said else ""
    names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return HubError("nothing is pushed: HF_HUB_OFFLINE is set", hint="unset it and repeat the push")
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return HubError(f"{repo_id} is gated, and this account has no access", hint="ask for it on its page on the Hub")
    status = next((status for cause in causes if (status := _status(cause)) is not None), None)
    match status:
        case _ if "Invalid metadata in README.md" in str(error):
            return HubError(
                f"{repo_id}: {' '.join(str(error).split())}",
                hint="mend it in README.md, or under hub in the run's recipe.yaml, and push again",
            )
        case None:
            if names & {"TimeoutException", "TimeoutError"}:
                return HubError(f"{repo_id}: the Hub did not answer in time", hint=AGAIN)
            if any(hub.is_connection_failure(cause) for cause in causes):
                return HubError(f"{repo_id}: the connection to the Hub failed or was lost", hint=AGAIN)
            return HubError(f"{repo_id} could not be pushed: {' '.join(str(causes[-1]).split())}", hint=AGAIN)
        case 401:
            what = "the Hub does not know this token"
            hint = "log in with `hf auth login`, or set HF_TOKEN to a token that is still valid"
        case 402 | 403:
            what = "the Hub refused to write"
            hint = "use a token with write access to that name (`hf auth whoami` says whose it is), or another name"
        case 404:
            what = "it is not on the Hub, or not for this account to see"
            hint = "check the name and the token; a repository that was deleted is made anew by the same push"
        case 409 | 412:
            what, hint = "it was changed by somebody else meanwhile", AGAIN
        case 429:
            what, hint = "too many requests", f"wait some minutes; {AGAIN}"
        case _ if status >= 500:
            what, hint = "the Hub failed", f"try again later; {AGAIN}"
        case _:
            what, hint = "the Hub refused", f"mend that; {AGAIN}"
    return HubError(f"{repo_id}: {what} (status {status}){said}", hint=hint)


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error; Xet's transfer, which is no Python, only says it: `(403 Forbidden)`."""
    status = hub.status_of(error)
    if status is None and (said := re.search(r"\b([45]\d\d) [A-Z][a-z]+", str(error))):
        return int(said[1])
    return status
