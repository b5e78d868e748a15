"""The page of several runs: their curves in the same charts, what differs in their recipes, and their last numbers."""

from collections.abc import Sequence
from typing import Any

from hfpretrain.amounts import count, span
from hfpretrain.report import html
from hfpretrain.report.chart import colour
from hfpretrain.report.page import COLUMNS, STATES
from hfpretrain.report.plots import Axis, percent, plain, plots_of_all
from hfpretrain.report.told import Told

LEAST = {"validation_loss", "validation_perplexity", "validation_bits_per_byte", "validation_pseudo_perplexity"}
LEAST |= {"validation_pseudo_bits_per_byte", "loss", "seconds"}
"""Of which less is better; of the other measures more is."""
OF_EQUAL_TOKENS = LEAST - {"validation_bits_per_byte", "validation_pseudo_bits_per_byte", "seconds"}
OF_EQUAL_TOKENS |= {"validation_accuracy", "validation_top5_accuracy"}
"""What says which run is better only where they predict the same tokens of the same held-out text."""
OTHERS = {
    "loss": ("training loss", plain),
    "parameters": ("parameters", count),
    "steps": ("steps", "{:,.0f}".format),
    "tokens": ("tokens", count),
    "tokens_per_second": ("tokens/s", count),
    "mfu": ("MFU", percent),
    "seconds": ("time", span),
}
UNRANKED = {"parameters", "steps", "tokens"}


def comparison(runs: Sequence[Told]) -> str:
    """The whole page, as a text."""
    runs = _told_apart(runs)
    colours = "".join(
        f'<li><i class="key {colour(number)}"></i>{html.shown(run.name)} <small>{STATES[run.state]}</small></li>'
        for number, run in enumerate(runs)
    )
    problems = "".join(
        f'<p class="soft">{html.shown(run.name)}: {html.shown(each)}</p>' for run in runs for each in run.problems
    )
    alike = _alike(runs)
    note = "" if alike else f'<p class="soft">{html.shown(_UNLIKE)}</p>'
    charts: dict[Axis, str] = {axis: "".join(plots_of_all(runs, axis)) for axis in ("token", "step")}
    switch = (
        '<p class="axis">over <label><input type="radio" name="axis" id="by-token" checked=""/>tokens seen</label>'
        '<label><input type="radio" name="axis" id="by-step"/>steps</label></p>'
    )
    body = [
        f'<header><h1>{len(runs)} runs compared</h1><ul class="legend">{colours}</ul>{note}{problems}</header>',
        html.card("What they came to", _numbers(runs, alike=alike)),
        html.card("What differs in their recipes", _differences(runs)),
        switch,
        *(f'<div class="by-{axis}">{chart}</div>' for axis, chart in charts.items()),
    ]
    return html.document(f"{', '.join(run.name for run in runs)}: compared", body)


_UNLIKE = (
    "These runs differ in their tokens or in what they hold out, so their losses, perplexities and accuracies do not "
    "say which is better; bits per byte of the same text do."
)


def _told_apart(runs: Sequence[Told]) -> list[Told]:
    """The runs, with a number after a name that several have."""
    names = [run.name for run in runs]
    seen: dict[str, int] = {}
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({seen[run.name]})"
    return list(runs)


def _alike(runs: Sequence[Told]) -> bool:
    """Whether all predict the same tokens of the same text, as far as that is known."""
    settings = [run.mapping() for run in runs]
    keys = [("tokenizer", each.get("tokenizer"), each.get("objective"), each.get("data")) for each in settings]
    return all(each == keys[0] for each in keys) and len({run.text("data_fingerprint") for run in runs} - {""}) < 2


def _numbers(runs: Sequence[Told], *, alike: bool) -> str:
    columns = {**COLUMNS, **OTHERS}
    keys = [key for key in columns if any(run.number(key) is not None for run in runs)]
    values = [[run.number(key) for key in keys] for run in runs]
    rows = [
        [run.name, *("–" if value is None else columns[key][1](value) for key, value in zip(keys, row, strict=True))]
        for run, row in zip(runs, values, strict=True)
    ]
    best = []
    for place, key in enumerate(keys):
        known = [(value, number) for number, row in enumerate(values) if (value := row[place]) is not None]
        if key in UNRANKED or len(known) < 2 or (key in OF_EQUAL_TOKENS and not alike):
            continue
        good = (min if key in LEAST else max)(value for value, _ in known)
        if any(value != good for value, _ in known):
            best += [(number, place + 1) for value, number in known if value == good]
    return html.numbers(["run", *(columns[key][0] for key in keys)], rows, best=best)


def _differences(runs: Sequence[Told]) -> str:
    """The keys of the recipes that are not the same everywhere, by run."""
    settings = [_flat(run.mapping()) for run in runs]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    rows = [
        [key, *(each.get(key, "–") for each in settings)]
        for key in keys
        if key != "name" and len({each.get(key) for each in settings}) > 1
    ]
    if not rows:
        return "<p>Nothing.</p>" if all(settings) else ""
    head = ["key", *(run.name for run in runs)]
    if len(runs) > len(rows):  # the longer way down
        head, *rows = (list(column) for column in zip(head, *rows, strict=True))
        head[0] = "run"
    return html.numbers(head, rows, words=True)


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """Every setting of a recipe by its dotted key, as a text."""
    if isinstance(value, dict) and value:
        parts = [_flat(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [_flat(item, f"{key}.{number}") for number, item in enumerate(value)]
    else:
        return {key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)}
    return {name: text for part in parts for name, text in part.items()}
