"""To the Hub: a finished model, and checkpoints while a run goes on, with huggingface_hub's own transfer.

What is sent is looked at first and is whole. A push that failed is repeated by the same call, which sends what is
missing. Checkpoints wait for their push in a folder of the run, so that neither a slow Hub nor a full turn of old
checkpoints costs anything: a thread of its own pushes them.
"""

import json
import logging
import os
import queue
import re
import shlex
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from hfpretrain import hub
from hfpretrain.card import generated, write_card
from hfpretrain.errors import CheckpointError, HFPretrainError, HubError, ModelError, RunError, UserError
from hfpretrain.files import MANIFEST, damage
from hfpretrain.recipe import Hub, repo_id_problem
from hfpretrain.run import Run, newest_whole

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

MODEL_FILES = hub.FILES["model"]
CARD_FILES = ["README.md", "LICENSE*", "training_curve.png"]
WAIT_SECONDS = 60.0
"""How long the Hub may be silent; $HF_HUB_DOWNLOAD_TIMEOUT says otherwise. The library itself waits for ever."""


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
    a run its card comes along, and its checkpoints that still wait to be pushed follow, each to its own branch; of an
    unfinished run the newest checkpoint is taken. Raises UserError for what cannot be pushed, and HubError for what
    the Hub says or does not say: then the same call again sends what is missing.
    """
    if problem := repo_id_problem(repo_id):
        raise UserError(f"{repo_id!r} {problem}")
    folder, run = _model_folder(Path(model).expanduser())
    if run:
        write_card(run, repo_id)
    _check_whole(folder)
    pushed = [_push_folder(folder, repo_id, public=public, revision=revision, message=message)]
    if run and revision is None:
        pushed += [push_checkpoint(staged, repo_id, public=public) for staged in waiting(run)]
    return pushed


def waiting(run: Run) -> list[Path]:
    """The checkpoints of a run that are still to be pushed, the oldest first."""
    found = [path for path in run.unpushed.glob("[!.]*") if path.is_dir()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def push_checkpoint(staged: Path, repo_id: str, *, public: bool) -> Pushed:
    """Pushes a waiting checkpoint to the branch of its name, and takes it away when that is done."""
    _check_whole(staged)
    pushed = _push_folder(staged, repo_id, public=public, revision=staged.name, surplus=CARD_FILES)
    shutil.rmtree(staged)
    return pushed


def stage(checkpoint: Path, run: Run, branch: str) -> None:
    """Puts the model of a checkpoint where it waits for its push: linked, so that it costs no room of its own.

    It stays when older checkpoints are pruned. Said and left out where it cannot be done: a push never stops a run.
    """
    place, beside = run.unpushed / branch, run.unpushed / f".{branch}.partial"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for path in checkpoint.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in MODEL_FILES):
                try:
                    (beside / path.name).hardlink_to(path)
                except OSError:  # a file system without links
                    shutil.copyfile(path, beside / path.name)
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
    except OSError as error:
        log.warning("%s will not be pushed: it cannot be put aside (%s)", checkpoint.name, error.strerror or error)
        shutil.rmtree(beside, ignore_errors=True)


class Publisher:
    """Pushes the checkpoints of a run while it trains, and the finished model, on a thread of its own.

    Nothing that goes wrong here stops the run: it is said, and what is not pushed waits.
    """

    def __init__(self, run: Run, settings: Hub) -> None:
        assert settings.repo_id is not None
        self.run, self.repo_id, self.public = run, settings.repo_id, not settings.private
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._said: set[str] = set()
        # A daemon: a stopped run ends at once, and what waits is pushed when it goes on.
        self._thread = threading.Thread(target=self._work, name="hfpretrain-push", daemon=True)
        self._thread.start()
        self._orders.put(False)

    def offer(self, checkpoint: Path, branch: str) -> None:
        """Has a checkpoint pushed to `branch`, some time."""
        stage(checkpoint, self.run, branch)
        self._orders.put(False)

    def finish(self) -> None:
        """Pushes the finished model and all that waits; returns when that is done or has failed."""
        self._closing.set()
        self._orders.put(True)
        log.info("what is left to push is pushed now; it may be stopped, and done later with: %s", self.command)
        self._thread.join()

    @property
    def command(self) -> str:
        """What pushes the run by hand."""
        public = " --public" if self.public else ""
        return f"hfpretrain push {shlex.quote(str(self.run.path))} {self.repo_id}{public}"

    def _work(self) -> None:
        finished = False
        while not finished:
            finished = self._orders.get()
            try:
                if finished:
                    for pushed in push(self.run.path, self.repo_id, public=self.public):
                        log.info("pushed: %s", pushed.url)
                if self._closing.is_set():  # the last order does it all
                    continue
                find_repository(self.repo_id, public=self.public)
                for staged in waiting(self.run):
                    pushed = push_checkpoint(staged, self.repo_id, public=self.public)
                    log.info("pushed: %s", pushed.url)
            except Exception as error:
                self._say(error, finished)

    def _say(self, error: Exception, finished: bool) -> None:
        """Says why nothing was pushed: once for each reason while the run goes on, and at its end what to do."""
        known = isinstance(error, HFPretrainError)
        sentence = error.message if isinstance(error, HFPretrainError) else f"{type(error).__name__}: {error}"
        if finished:
            hint = f" ({error.hint})" if isinstance(error, HFPretrainError) and error.hint else ""
            log.warning("the run is finished, but %s%s; push it later with: %s", sentence, hint, self.command)
        elif sentence not in self._said:
            self._said.add(sentence)
            log.warning("training goes on, but %s; it is tried again with each checkpoint", sentence)
        log.debug("the push failed", exc_info=not known)


def _model_folder(place: Path) -> tuple[Path, Run | None]:
    """The folder to push, and the run if it is a finished one."""
    if not place.is_dir():
        raise ModelError(f"{place}: there is no such folder", hint="give a run, a checkpoint or a model folder")
    run = Run(place)
    if not run.recipe_file.is_file():
        return place, None
    if run.state == "finished":
        return place, run
    checkpoint = newest_whole(run.checkpoints)
    if checkpoint is None:
        raise RunError(f"{place} has no model yet: it is not finished and has no checkpoint")
    log.info("%s is not finished: its newest checkpoint, %s, is pushed", place, checkpoint.name)
    return checkpoint, None


def _check_whole(folder: Path) -> None:
    """Raises ModelError or CheckpointError unless the folder holds a model whose files are complete."""
    from safetensors import SafetensorError, safe_open

    if (folder / MANIFEST).is_file() and (what := damage(folder)):
        raise CheckpointError(f"{folder} is damaged: {what}", hint="push another checkpoint")
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        index = folder / "model.safetensors.index.json"
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
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{folder} is no whole model: {hub.first_line(error)}") from error
    if not any(next(folder.glob(pattern), None) for pattern in ("tokenizer*.json", "vocab.*", "*.model")):
        raise ModelError(f"{folder} holds no tokenizer", hint="save the tokenizer into the same folder")


def find_repository(repo_id: str, *, public: bool) -> str:
    """The full name of the repository, made (private unless `public`) if it is not there. Raises HubError."""
    from huggingface_hub import constants, get_session, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise HubError("nothing is pushed: HF_HUB_OFFLINE is set", hint="unset it and repeat the push")
    if get_token() is None:
        raise HubError(
            "nothing is pushed: there is no token for the Hub", hint="log in with `hf auth login`, or set HF_TOKEN"
        )
    own = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT")
    get_session().timeout = float(own) if own else WAIT_SECONDS
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


def _push_folder(
    folder: Path,
    repo_id: str,
    *,
    public: bool,
    revision: str | None,
    message: str | None = None,
    surplus: Sequence[str] = (),
) -> Pushed:
    """Sends the files of a model that the Hub does not have, as one commit, and removes `surplus` ones there."""
    from huggingface_hub import constants

    name = find_repository(repo_id, public=public)
    with _explained(repo_id) as api:
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        before = api.model_info(name, revision=revision).sha
        where = f"{name}, branch {revision}" if revision else name
        log.info("pushing %s to %s", folder, where)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"{folder.absolute().name}, with hfpretrain",
            allow_patterns=[*MODEL_FILES, *CARD_FILES],
            ignore_patterns=["README.md"] if _card_stays(folder, name, revision) else None,
            # Weights of an earlier push that are cut in other files would be loaded instead of these.
            delete_patterns=[*hub.WEIGHTS, *surplus],
        )
    tree = f"/tree/{revision}" if revision else ""
    return Pushed(f"{constants.ENDPOINT}/{name}{tree}", changed=commit.oid != before)


def _card_stays(folder: Path, name: str, revision: str | None) -> bool:
    """Whether the card on the Hub is somebody's own, and the one to be pushed is not."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    card = folder / "README.md"
    if not card.is_file() or not generated(card.read_text(encoding="utf-8", errors="replace")):
        return False
    try:
        there = Path(hf_hub_download(name, "README.md", revision=revision)).read_text(encoding="utf-8")
    except LocalEntryNotFoundError:  # nothing answered
        raise
    except EntryNotFoundError:
        return False
    if generated(there):
        return False
    log.info("README.md was edited on the Hub, and is kept there as it is; delete it there to have it written anew")
    return True


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

    again = "the same push again sends only what is missing"
    causes = list(hub.causes(error))
    status = next((status for cause in causes if (status := hub.status_of(cause)) is not None), None)
    said = next((cause.server_message for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    said = f": {' '.join(said.split())}" if said else ""
    names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return HubError("nothing is pushed: HF_HUB_OFFLINE is set", hint="unset it and repeat the push")
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return HubError(f"{repo_id} is gated, and this account has no access", hint="ask for it on its page on the Hub")
    if status == 401:
        return HubError(
            f"{repo_id}: the Hub does not know this token (status 401){said}",
            hint="log in with `hf auth login`, or set HF_TOKEN to a token that is still valid",
        )
    if status in (402, 403):
        return HubError(
            f"{repo_id}: the Hub refused to write (status {status}){said}",
            hint="use a token with write access to that name (`hf auth whoami` says whose it is), or another name",
        )
    if status == 404:
        return HubError(
            f"{repo_id} is not on the Hub, or not for this account to see (status 404){said}",
            hint="check the name and the token; a repository that was deleted is made anew by the same push",
        )
    if status in (409, 412):
        return HubError(f"{repo_id} was changed by somebody else meanwhile (status {status}){said}", hint=again)
    if status == 429:
        return HubError(f"{repo_id}: too many requests (status 429){said}", hint=f"wait some minutes; {again}")
    if status is not None and status >= 500:
        return HubError(f"{repo_id}: the Hub failed (status {status}){said}", hint=f"try again later; {again}")
    if status is not None:
        return HubError(f"{repo_id}: the Hub refused (status {status}){said}", hint=f"mend that; {again}")
    if names & {"TimeoutException", "TimeoutError"}:
        return HubError(f"{repo_id}: the Hub did not answer in time", hint=again)
    if any(hub.is_connection_failure(cause) for cause in causes):
        return HubError(f"{repo_id}: the connection to the Hub failed or was lost", hint=again)
    return HubError(f"{repo_id} could not be pushed: {' '.join(str(causes[-1]).split())}", hint=again)
