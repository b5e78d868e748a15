"""The process that the command line runs in: what libraries read when they are imported, stderr, and how it ends."""

import contextlib
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from hfpretrain.secrets import without_secrets

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
LAUNCHER_ENDED: int | None = getattr(signal, "SIGRTMIN", None) if sys.platform == "linux" else None


def prepare_environment(*, their_bars: bool = False) -> None:
    """Settings that libraries read when they are imported: no bars and notices of their own among ours, and threads.

    With `their_bars` they show their own where stderr is a terminal, as huggingface_hub does of what it sends.

    GNU OpenMP's threads otherwise spin long while they wait for each other, which halves the speed or worse as soon
    as another process wants the same cores. Spinning this little costs nothing on an idle machine; not spinning at
    all (OMP_WAIT_POLICY=PASSIVE) costs a third.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Of DDP, about a setting that Accelerate passes on under its old name.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its warnings show signed addresses
    if not (their_bars and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def launched() -> bool:
    """Whether torchrun or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def started_alone() -> bool:
    """Whether `accelerate launch` was asked for several processes and, as it does on a CPU, has started this one only.

    It sets where they would meet, and neither their number nor this one's.
    """
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ


def accelerate_configuration() -> Path | None:
    """The file that `accelerate config` has written, if there is one."""
    folder = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "accelerate"
    return next((file for file in sorted(folder.glob("default_config.*")) if file.is_file()), None)


def follow_launcher() -> None:
    """Has Linux send LAUNCHER_ENDED to this process when the launcher that started it ends before it.

    `accelerate launch` does not pass on the signal that ends it, and a launcher that is killed cannot: its processes
    would train on, unseen, and hold the devices. A signal of its own, since the launcher may end of the same SIGTERM
    that came here, which must not count as a second one.
    """
    if not launched() or LAUNCHER_ENDED is None:
        return
    import ctypes  # not before: most commands have no launcher

    launcher = os.getppid()
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, LAUNCHER_ENDED)
    if os.getppid() != launcher:  # it has ended meanwhile
        os.kill(os.getpid(), LAUNCHER_ENDED)


class CurrentStderr(logging.Handler):
    """Writes to what stderr is at the moment: while a progress bar is shown, above the bar. Secrets are left out."""

    def emit(self, record: logging.LogRecord) -> None:
        print(without_secrets(self.format(record)), file=sys.stderr)  # noqa: T201


def leave(status: int) -> NoReturn:
    """Ends the process; after a signal at once, where Python would wait for uploads on other threads."""
    if status > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
