"""Makes docs/images/terminal.svg: the next-word quick start as it looks in a terminal. `python docs/terminal.py`

The commands are really run, in a pseudo-terminal, in the working directory; what they print is drawn by rich, without
the web font that its own template asks for. It takes as long as the quick start.
"""

import os
import pty
import re
import shlex
import struct
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

WIDTH, HEIGHT = 112, 60
PICTURE = Path(__file__).parent / "images" / "terminal.svg"
ROOT = Path(__file__).parent.parent


def run(arguments: list[str]) -> str:
    """What a command writes to a terminal, with the signs that move the cursor."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
        os.execv(sys.executable, [sys.executable, "-m", "hfpretrain", *arguments])
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    written = b""
    try:
        while piece := os.read(terminal, 65536):
            written += piece
    except OSError:  # Linux says so that the other end is closed
        pass
    _, status = os.waitpid(process, 0)
    text = written.decode()
    if status:
        sys.exit(f"hfpretrain {shlex.join(arguments)} failed:\n{text}")
    return text


def last_screen(written: str) -> str:
    """What is left on the screen when all was written: lines that were drawn anew count once."""
    lines, row = [""], 0
    for sign in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if sign == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif sign.endswith("A") and sign.startswith("\x1b"):
            row -= int(sign[2:-1] or 1)
        elif sign == "\x1b[2K":
            lines[row] = ""
        elif not sign.startswith("\x1b") or sign.endswith("m"):
            lines[row] += "" if sign == "\r" else sign
    return "\n".join(line.rstrip() for line in lines)


def draw(text: str) -> str:
    """The screen as SVG that asks nothing of the network."""
    template = re.sub(r"@font-face\s*\{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = template.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace")
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(text), soft_wrap=False)
        drawn = console.export_svg(title="hfpretrain", theme=DIMMED_MONOKAI, code_format=template, unique_id="terminal")
    return "\n".join(line.rstrip() for line in drawn.splitlines()).strip() + "\n"


def main() -> None:
    """Runs, draws and writes."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("recipes").symlink_to(ROOT / "recipes")
        shown = []
        for command in (
            "train recipes/quickstart-clm.yaml",
            'generate "I love to eat pizza with" --words 1',
            'generate "I love to eat pizza with" --top-k-next 3',
        ):
            shown.append(f"\x1b[1m$ hfpretrain {command}\x1b[0m\n{last_screen(run(shlex.split(command))).strip()}")
        PICTURE.write_text(draw("\n\n".join(shown)), encoding="utf-8")


if __name__ == "__main__":
    main()
