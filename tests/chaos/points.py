"""Inside a training process: kills it with SIGKILL at a point that has a name.

The product knows nothing of this: tests/no_network/sitecustomize.py runs this file where HFPRETRAIN_TEST_HOOK names it.
Files that are opened, renamed and removed are seen through Python's audit events, functions through its profiler, and
each is a line of text. CHAOS_POINT=<name>:<nth> says where to kill, and CHAOS_REACHED is the file that proves that it
came to that. Of several processes it is the first that dies, as only that one writes.
"""

import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PARTIAL = r"\S*/\.step-\d+\.partial"
SAVED = f"rename {PARTIAL} > "


@dataclass(frozen=True)
class Point:
    """What has to be seen, in that order; `counted` as often as is asked for, which may be from `lowest` to `highest`.

    The bounds are those of a run with nine checkpoints, of which two are kept.
    """

    counted: str
    then: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    lowest: int = 1
    highest: int = 9


POINTS = {
    # What is written into a checkpoint comes in records of torch.save.
    "in the middle of a file": Point(f"mkdir {PARTIAL}$", ("call write_record$",) * 3),
    "before the manifest": Point(rf"write {PARTIAL}/\S*manifest\.json"),
    "before the rename": Point(SAVED),
    "after the rename": Point(SAVED, ("(open|write) ",)),
    "while pruning": Point(SAVED, (r"rmtree \S*/\.?step-\d+(\.removed)?$", "remove ", "remove "), lowest=3),
    "while evaluating": Point(SAVED, ("call validation_rows$",) * 2, highest=8),
    "in the final save": Point(r"(write|rename) run/\.\w+\.partial/", before=(SAVED,) * 9, highest=6),
    "before report.json": Point(r"rename \S+ > run/report\.json$", highest=1),
    "after report.json": Point(r"rename \S+ > run/report\.json$", ("(open|write) ",), highest=1),
}


def line(event: str, arguments: tuple[Any, ...]) -> str | None:
    """An audit event as a line, or None if points have no use for it."""
    if event == "open":
        path, mode, flags = arguments
        writing = bool(set(mode or "") & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)
        return f"{'write' if writing else 'open'} {text(path)}"
    if event == "os.rename":
        return f"rename {text(arguments[0])} > {text(arguments[1])}"
    if event in ("os.mkdir", "os.remove", "shutil.rmtree"):
        return f"{event.split('.')[1]} {text(arguments[0])}"
    return None


def text(path: Any) -> str:
    return str(path) if isinstance(path, int) else os.fsdecode(path)


class Killer:
    """Follows the lines of one point to its end."""

    def __init__(self, name: str, nth: int, reached: Path) -> None:
        point = POINTS[name]
        self.awaited, self.reached = [*point.before, *[point.counted] * nth, *point.then], reached

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.awaited and (seen := line(event, arguments)):
            self.see(seen)

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.see(f"call {frame.f_code.co_name}")
        elif event == "c_call":
            self.see(f"call {argument.__name__}")

    def see(self, seen: str) -> None:
        if not self.awaited or not re.match(self.awaited[0], seen):
            return
        del self.awaited[0]
        if not self.awaited:
            self.reached.write_text(seen, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        # The profiler slows everything down, so it runs only while a function is awaited.
        sys.setprofile(self.profile if self.awaited[0].startswith("call ") else None)


if os.environ.get("CHAOS_POINT") and os.environ.get("RANK", "0") == "0":
    name, nth = os.environ["CHAOS_POINT"].split(":")
    sys.addaudithook(Killer(name, int(nth), Path(os.environ["CHAOS_REACHED"])).audit)
