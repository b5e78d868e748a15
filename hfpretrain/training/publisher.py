"""Pushing while a run trains: on a thread of its own, so that neither a slow Hub nor one that is away holds it up."""

import logging
import queue
import shlex
import threading
from pathlib import Path

from hfpretrain.errors import HFPretrainError
from hfpretrain.files import remove
from hfpretrain.publish import find_repository, push, push_checkpoint, stage, waiting
from hfpretrain.recipe import Hub
from hfpretrain.run import Run

log = logging.getLogger(__name__)


class Publisher:
    """Pushes the checkpoints of a run as they come, and in the end the finished model.

    Nothing that goes wrong here stops the run: it is said, and what is not pushed waits in the run.
    """

    def __init__(self, run: Run, settings: Hub) -> None:
        assert settings.repo_id is not None
        self.run, self.repo_id, self.settings = run, settings.repo_id, settings
        try:
            run.unpushed.mkdir(exist_ok=True)  # stays until everything is pushed, the finished model too
            for left in run.unpushed.glob(".*"):
                remove(left)
        except OSError as error:
            log.warning("checkpoints cannot be put aside for the Hub: %s", error)
        self._orders: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        """False: push what waits. True: the finished model as well, and be done. None: be done."""
        self._ending = threading.Event()
        self._said: set[str] = set()
        # A daemon: a stopped run ends at once, and what waits is pushed when it goes on.
        self._thread = threading.Thread(target=self._work, name="hfpretrain-push", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._orders.put(False)

    def offer(self, checkpoint: Path, branch: str) -> None:
        """Has a checkpoint pushed to `branch`, some time."""
        stage(checkpoint, self.run, branch)
        self._orders.put(False)

    def finish(self) -> None:
        """Pushes the finished model and all that waits; returns when that is done or has failed."""
        self._ending.set()
        self._orders.put(True)
        log.info("what is left to push is pushed now; it may be stopped, and done later with: %s", self.command)
        self._thread.join()

    def abandon(self) -> None:
        """Begins no other push: the run has stopped."""
        self._ending.set()
        self._orders.put(None)

    @property
    def command(self) -> str:
        """What pushes the run by hand."""
        public = "" if self.settings.private else " --public"
        return f"hfpretrain push {shlex.quote(str(self.run.path))} {self.repo_id}{public}"

    def _work(self) -> None:
        finished: bool | None = False
        while not finished:
            finished = self._orders.get()
            if finished is None:
                return
            try:
                if finished:
                    for pushed in push(self.run.path, self.repo_id, public=not self.settings.private):
                        log.info("pushed: %s", pushed.url)
                elif not self._ending.is_set():  # else the last order does it all
                    self._push_waiting()
            except BaseException as error:  # Xet's panics are no Exceptions
                self._say(error, finished)

    def _push_waiting(self) -> None:
        name = find_repository(self.repo_id, public=not self.settings.private)
        for staged in waiting(self.run):
            if self._ending.is_set():
                return
            log.info("pushed: %s", push_checkpoint(staged, name).url)

    def _say(self, error: BaseException, finished: bool) -> None:
        """Says why nothing was pushed: once for each reason while the run goes on, and at its end what to do."""
        known = isinstance(error, HFPretrainError)
        sentence = error.message if isinstance(error, HFPretrainError) else f"{type(error).__name__}: {error}"
        if finished:
            hint = f" ({error.hint})" if isinstance(error, HFPretrainError) and error.hint else ""
            log.warning("the run is finished, but %s%s; push it later with: %s", sentence, hint, self.command)
        elif sentence not in self._said and not self._ending.is_set():
            self._said.add(sentence)
            then = "with each checkpoint" if self.settings.push == "checkpoints" else "in the end"
            log.warning("training goes on, but %s; it is tried again %s", sentence, then)
        log.debug("the push failed", exc_info=not known)
