"""The parts that pages are made of. Every text comes through `shown`, and a page asks nothing of any network."""

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from html import escape

from hfpretrain.report.style import SCRIPT, STYLE
from hfpretrain.secrets import without_secrets

GENERATOR = '<meta name="generator" content="hfpretrain"/>'
"""By this a page is known as one of ours, which may be written over."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Nothing is loaded from anywhere, and no script runs but ours, even were a text to come through unescaped.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def shown(text: object) -> str:
    """A text as it may stand anywhere in a page: escaped, with a sign for what cannot be seen, and without secrets."""
    return escape(_CONTROL.sub("\ufffd", without_secrets(str(text))))


def document(title: str, body: Iterable[str], *, running: bool = False) -> str:
    """A whole page. That of a running run loads itself again every half minute."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    again = '<noscript><meta http-equiv="refresh" content="60"/></noscript>' if running else ""
    marked = ' data-running="1"' if running else ""
    now = time.gmtime()
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>{GENERATOR}'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY.format(digest))}"/>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>{again}'
        f"<title>{shown(title)}</title><style>{STYLE}</style></head>\n"
        f"<body{marked}><main>{''.join(filter(None, body))}"
        f'<footer>Written by hfpretrain on <time datetime="{time.strftime("%Y-%m-%dT%H:%M:%SZ", now)}">'
        f'{time.strftime("%Y-%m-%d %H:%M UTC", now)}</time><span class="age"></span>.</footer></main>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: what each is, itself, and something more about it."""
    return (
        '<dl class="tiles">'
        + "".join(
            f'<div><dt>{shown(what)}</dt><dd class="value{" long" if len(value) > 8 else ""}">{shown(value)}</dd>'
            + (f'<dd class="more">{shown(more)}</dd>' if more else "")
            + "</div>"
            for what, value, more in entries
        )
        + "</dl>"
    )


def card(title: str, content: str) -> str:
    """A titled part of the page; nothing without content."""
    return f'<section class="card"><h2>{shown(title)}</h2>{content}</section>' if content else ""


def folded(title: str, content: str) -> str:
    """A part that can be folded away."""
    return f'<details class="card" open=""><summary>{shown(title)}</summary>{content}</details>' if content else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """What is what, a line each."""
    lines = "".join(f"<tr><th>{shown(what)}</th><td>{shown(value)}</td></tr>" for what, value in rows)
    return f'<table class="facts">{lines}</table>' if lines else ""


def numbers(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, best: Iterable[tuple[int, int]] = (), words: bool = False
) -> str:
    """A table of numbers, or `words`, which scrolls where it is too wide; `best` are places of (row, column)."""
    if not rows:
        return ""
    strong, best_cell = set(best), ' class="best"'
    title = "".join(f"<th>{shown(each)}</th>" for each in head)
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{best_cell if (row, column) in strong else ''}>{shown(cell)}</td>" for column, cell in enumerate(cells)
        )
        + "</tr>"
        for row, cells in enumerate(rows)
    )
    kind = "numbers words" if words else "numbers"
    table = f'<table class="{kind}"><thead><tr>{title}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="scroll">{table}</div>'
