"""Several processes of one run, of which one fails: which of them says it, and what the others and a launcher learn.

The first one that fails leaves its reason in the store through which the processes have found each other, and says it.
Who fails later finds it there and is silent. Each also leaves its own in the file that torch's launcher names, which
shows it as the cause.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hfpretrain.secrets import without_secrets

OWN_LAUNCHER = "HFPRETRAIN_LAUNCHED"
"""In the environment of processes that `train --processes` has started, which says itself how the first one ended."""
STORE_SECONDS = 5.0
"""How long the store may take to answer: it may be on a machine that is gone."""
STAYS_SECONDS = 1.0
"""How long the store stays after its process has failed, for others to read there that it has said why."""
STARTED = time.time()

T = TypeVar("T")


@dataclass(frozen=True)
class Reason:
    """Why a process ended."""

    sentence: str
    exit_status: int
    process: int
    at: float
    """Seconds since 1970."""

    @property
    def earlier(self) -> bool:
        """Whether it is of processes that ended before this one began: a launcher has started others in their place."""
        return self.at < STARTED


class _Company:
    """What this process knows of the others of its run."""

    def __init__(self) -> None:
        self.store: Any = None
        self.out_of_reach = False
        self.runs = 0
        """Trainings in this process, which may be several one after another; each has a reason of its own."""
        self.says: bool | None = None
        """Whether this process is the one to say why it ended; None before it ends."""

    @property
    def key(self) -> str:
        return f"hfpretrain/reason/{max(self.runs, 1)}"

    def ask(self, question: Callable[[Any], T], otherwise: T) -> T:
        """What the store answers; `otherwise` where it is gone, or not there yet, or its machine is silent."""
        if not several() or self.out_of_reach:
            return otherwise
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is exported, without being listed

        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not dist.is_initialized():
            return otherwise  # the first process has it, later on
        answers = [otherwise]

        def asks() -> None:
            with suppress(RuntimeError):
                if self.store is None:
                    self.store = TCPStore(
                        os.environ["MASTER_ADDR"],
                        int(os.environ["MASTER_PORT"]),
                        is_master=False,
                        wait_for_workers=False,
                        timeout=timedelta(seconds=STORE_SECONDS),
                    )
                answers[0] = question(self.store)

        thread = threading.Thread(target=asks, daemon=True)  # torch waits for an answer for as long as it takes
        thread.start()
        thread.join(STORE_SECONDS)
        self.out_of_reach = thread.is_alive()
        return answers[0]


_company = _Company()


def several() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE") or "1") > 1


def restart_count() -> int:
    """How often torch's launcher has started processes in the place of others that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0")


def restarted() -> bool:
    """Whether a launcher has started these processes in the place of others, so that the run is to go on."""
    if restart_count():
        return True
    reason = _left()  # as others joined, or one machine was started anew, which counts as no restart
    return reason is not None and reason.earlier


def meeting(patience: timedelta) -> dict[str, Any]:
    """What `init_process_group` has to be told so that processes that were started again find each other.

    torch's launcher keeps its store over restarts, and in it the addresses of those that are gone, which torch 2.13
    takes for theirs. Of several machines the launchers count restarts each for itself, so that nothing can be said.
    """
    from_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not restart_count() or not from_launcher or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=patience)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return {"store": PrefixStore(f"restart-{restart_count()}", store), "rank": rank, "world_size": world_size}


def join() -> None:
    """A training of several processes begins in this one: opens the store, as long as it is there."""
    _company.runs += 1
    _company.says = None
    _left()


def report(sentence: str, exit_status: int, *, known_better: bool = False) -> bool:
    """Leaves why this process ends. Returns whether it is to say it: no other one has before.

    With `known_better` it does not where our own launcher has started it, who sees more.
    """
    if _company.says is None:
        sentence = without_secrets(sentence)
        first = _is_first(sentence, exit_status)
        _company.says = first and not (known_better and OWN_LAUNCHER in os.environ)
        _write(sentence, exit_status, said=_company.says)
        if _keeps_the_store():
            time.sleep(STAYS_SECONDS)
    return _company.says


def reason_of_others(*, earlier: bool = False) -> Reason | None:
    """Why the first process ended, if it has said so; with `earlier` one of those that were here before."""
    reason = _left()
    return reason if reason and reason.earlier == earlier else None


def note_waiting(process: int) -> None:
    """Leaves that this process has waited for another one in vain."""
    _company.ask(lambda store: store.set(f"{_company.key}/waits/{process}", ""), None)


def who_does_not_wait(processes: int) -> list[int]:
    """Those that have not left that they wait for another, so that they are what is waited for; none if unknown."""

    def which(store: Any) -> list[int]:
        return [each for each in range(processes) if not store.check([f"{_company.key}/waits/{each}"])]

    return _company.ask(which, [])


def _keeps_the_store() -> bool:
    """Whether the store ends with this process: it is in the first one, where no launcher has it."""
    return several() and os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _is_first(sentence: str, exit_status: int) -> bool:
    rank = int(os.environ.get("RANK") or "0")
    if several() and exit_status > 128 and "torch" not in sys.modules:  # a signal: all have got it, and it cannot wait
        return rank == 0
    mine = json.dumps(asdict(Reason(sentence, exit_status, rank, time.time())))

    def leave(store: Any) -> bool:
        found = store.compare_set(_company.key, "", mine).decode()
        if (reason := _reason(found)) and reason.earlier:
            found = store.compare_set(_company.key, found, mine).decode()
        return bool(found == mine)

    return _company.ask(leave, True)


def _left() -> Reason | None:
    def read(store: Any) -> Reason | None:
        return _reason(store.get(_company.key).decode()) if store.check([_company.key]) else None

    return _company.ask(read, None)


def _reason(text: str) -> Reason | None:
    try:
        return Reason(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _write(sentence: str, exit_status: int, *, said: bool) -> None:
    """Leaves the reason where torch's launcher looks for it, in its format; `read_left` reads it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    extra = {"py_callstack": sentence, "timestamp": str(int(time.time())), "said": said, "exit_status": exit_status}
    with suppress(OSError):
        Path(file).write_text(json.dumps({"message": {"message": sentence, "extraInfo": extra}}), encoding="utf-8")


@dataclass(frozen=True)
class Left:
    """What a process has left for its launcher."""

    sentence: str
    exit_status: int
    said: bool


def read_left(content: Any) -> Left | None:
    """From what a launcher has read in the file of a process; None where that has left nothing."""
    try:
        message = content["message"]
        extra = message["extraInfo"]
        return Left(message["message"], extra["exit_status"], extra["said"])
    except (KeyError, TypeError):
        return None
