"""What a person sees: a bar with time left and the curve of the loss on a terminal, plain lines without one."""

import errno
import io
import os
import pty
import re
import struct
import tempfile
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
import warm
from conftest import Command
from loopback_hub import LoopbackHub
from rich.console import Console
from tiny import tiny_recipe, tiny_run

from hfpretrain.recipe import dump
from hfpretrain.terminal import BLOCKS, MOST_VALUES, PLAIN_BLOCKS, Bar, sparkline

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SET_BY_COMMANDS = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
"""Also by those that an earlier test ran in this process."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def on_a_terminal(
    folder: Path, *arguments: str | Path, columns: int, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Runs the command line with stderr on a terminal of so many columns: exit status, stdout, and what was shown."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    # Wherever the tests run: what says otherwise of the terminal is left out.
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "CI", *SET_BY_COMMANDS)
    }
    with tempfile.TemporaryFile() as out, os.fdopen(theirs, "wb") as terminal:
        process = warm.start(
            ["-m", "hfpretrain", *map(str, arguments)],
            cwd=str(folder),
            environment=kept | {"TERM": "xterm-256color"} | (environment or {}),
            stdout=out,
            stderr=terminal,
        )
        terminal.close()
        shown = b"".join(_read(ours))
        status = process.wait(240)
        out.seek(0)
        printed = out.read().decode()
    os.close(ours)
    return status, printed, shown.decode()


def _read(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError as error:  # the other end is closed
            assert error.errno == errno.EIO
            return
        if not piece:
            return
        yield piece


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "clm", "train.duration=60", "evaluation.every=20")))
    return file


def test_training_on_a_terminal_has_a_bar_time_left_and_the_curve(tmp_path: Path, recipe: Path) -> None:
    status, out, shown = on_a_terminal(tmp_path, "train", recipe, columns=120)
    assert status == 0, shown
    assert out.startswith("run ")
    assert COLOUR.search(shown)
    plain = CONTROL.sub("", shown)
    assert "━" in plain
    assert re.search(r"step \d+/60  loss \d\.\d{4}  \d+ s left  [\d.]+k? tokens/s  [▁▂▃▄▅▆▇█]{8}", plain)
    assert "step 20: validation loss" in plain
    assert "data.sources.0" in plain


@pytest.mark.parametrize("columns", [40, 80])
def test_no_line_is_longer_than_the_terminal(tmp_path: Path, recipe: Path, columns: int) -> None:
    status, _, shown = on_a_terminal(tmp_path, "train", recipe, columns=columns, environment={"NO_COLOR": "1"})
    assert status == 0, shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown), "NO_COLOR is honoured"
    bars = [line for line in re.split(r"[\r\n]+", CONTROL.sub("\n", shown)) if line.startswith("training  ")]
    assert bars
    assert max(map(len, bars)) <= columns
    assert any("loss" in line for line in bars)


def test_where_the_encoding_has_no_blocks_ascii_is_used(tmp_path: Path, recipe: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    status, _, shown = on_a_terminal(tmp_path, "train", recipe, columns=120, environment=environment)
    assert status == 0, shown
    assert shown.isascii()
    assert re.search(r"training  #+-*  step", CONTROL.sub("", shown))


def test_without_a_terminal_there_are_plain_lines_only(tmp_path: Path, recipe: Path, hfpretrain: Command) -> None:
    done = hfpretrain("train", recipe)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr
    steps = [line for line in done.stderr.splitlines() if line.startswith("step ") and "tokens/s" in line]
    assert 15 <= len(steps) <= 20
    assert re.fullmatch(r"step 60/60  loss \d\.\d{4}  [\d.]+k? tokens/s  0 s left", steps[-1])


def test_evaluating_and_pushing_show_how_far_they_are(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=2", "data.validation=50%")
    status, out, shown = on_a_terminal(tmp_path, "evaluate", run.path, columns=120)
    assert status == 0, shown
    assert "loss" in out
    assert re.search(r"evaluating  ━+  (\d+)/\1 batches  0 s left", CONTROL.sub("", shown))
    with LoopbackHub() as hub:
        arguments = ("push", run.path, "tester/small")
        environment = hub.environment(HFPRETRAIN_COLD="1")  # what waits has loaded tqdm already, without bars
        status, out, shown = on_a_terminal(tmp_path, *arguments, columns=120, environment=environment)
        assert (status, out) == (0, f"{hub.url}/tester/small\n"), shown
        assert re.search(r"model\.safetensors.*100%", CONTROL.sub("", shown)), "huggingface_hub's own bar"


def test_a_curve_falls_as_the_loss_does() -> None:
    falling = [5 - number / 100 for number in range(400)]
    assert sparkline(falling, 8) == "█▇▆▅▄▃▂▁"
    assert sparkline(falling, 8, plain=True) == PLAIN_BLOCKS[::-1]
    assert sparkline(falling[:3], 8) == "█▅▁"
    assert sparkline([2.0, 2.0], 8) == BLOCKS[0] * 2
    assert sparkline([], 8) == ""


def test_a_bar_keeps_a_long_curve_short_and_leaves_out_what_is_no_number() -> None:
    bar = Bar("training")
    for number in range(3 * MOST_VALUES):
        bar.add(float(number))
        bar.add(float("nan"))
    assert len(bar.values) <= MOST_VALUES
    assert bar.values == sorted(bar.values)
    bar.update(0.5, "step 1/2  loss 1.0000", "1 min 0 s left", "1k tokens/s")
    shown = {width: _shown(bar, width) for width in (120, 90, 80, 50, 40)}
    words = "  step 1/2  loss 1.0000  1 min 0 s left"
    assert shown[120].startswith("training  ━")
    assert f"{words}  1k tokens/s  ▁" in shown[120]
    assert f"{words}  ▁" in shown[80], "the curve is worth more than the speed"
    assert shown[50] == f"training{words}"
    assert shown[40] == "training  step 1/2  loss 1.0000"
    assert all(len(line) < width for width, line in shown.items())


def test_a_line_above_the_bar_is_shown_as_it_is() -> None:
    console = Bar("training").console
    with console.capture() as captured:
        console.print("[red] :fire: 1", markup=False, soft_wrap=True)
    assert captured.get() == "[red] :fire: 1\n"


def _shown(bar: Bar, width: int) -> str:
    bar.console = Console(file=io.StringIO(), width=width)
    return bar._line().plain.rstrip()
