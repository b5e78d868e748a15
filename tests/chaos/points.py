"""Inside a training process: kills it with SIGKILL at a point that has a name.

The product knows nothing of this: tests/no_network/sitecustomize.py runs this file where HFPRETRAIN_TEST_HOOK names it.
Files that are opened, renamed and removed are seen through Python's audit events, functions through its profiler, and
each is a line of text. CHAOS_POINT=<name>:<nth> says where to kill: when the first line of the point was seen `nth`
times, and after that each of its other lines once. CHAOS_REACHED is the file that proves that it came to that.
Of several processes it is the first that dies, as only that one writes.
"""

import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

PARTIAL = r"\S*/\.step-\d+\.partial"
POINTS = {
    "in the middle of a file": [f"mkdir {PARTIAL}$", *["call write_record$"] * 3],
    "before the manifest": [rf"write {PARTIAL}/\S*manifest\.json"],
    "before the rename": [f"rename {PARTIAL} > "],
    "after the rename": [f"rename {PARTIAL} > ", "(open|write) "],
    "while pruning": [r"rmtree \S*/step-\d+$", "remove ", "remove "],
    "while evaluating": [r"write run/metrics\.jsonl$", *["call validation_rows$"] * 2],
    "in the final save": [r"rename run/\.\w+\.partial/\S+ > run/(?!report\.json)"],
    "before report.json": [r"rename \S+ > run/report\.json$"],
    "after report.json": [r"rename \S+ > run/report\.json$", "(open|write) "],
}
"""What has to be seen, in that order. What is written into a checkpoint comes in records of torch.save."""


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
        first, *rest = POINTS[name]
        self.awaited, self.reached = [first] * nth + rest, reached

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
