"""Which charts a page has: the same for one run and for several, which then share each of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from hfpretrain.amounts import count
from hfpretrain.report.chart import Chart, Curve, Format, draw, short
from hfpretrain.report.curves import PHASES, TROUBLES
from hfpretrain.report.told import Told

Axis = Literal["step", "token"]
LARGE = {"loss", "validation_loss"}
FINE, COARSE = 400, 120
"""Points of a curve in a large chart, and in a small one; of more, means are drawn, in a band of their extremes."""
MOST_MARKS = 200


def percent(value: float) -> str:
    return f"{value:.1%}"


def rough_percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def plain(value: float) -> str:
    return f"{value:.4f}" if 0.1 <= abs(value) < 100 else short(value)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A key of metrics that has a chart of its own."""

    title: str
    unit: str
    value: Format = plain
    tick: Format = short
    log: bool = False
    from_zero: bool = False


MEASURES = {
    "validation_bits_per_byte": Measure(title="Bits per byte", unit="of held-out text", log=True),
    "validation_accuracy": Measure(
        title="Accuracy", unit="of held-out tokens", value=percent, tick=rough_percent, from_zero=True
    ),
    "pairs_accuracy": Measure(title="Minimal pairs", unit="right", value=percent, tick=rough_percent),
    "validation_pseudo_perplexity": Measure(title="Pseudo-perplexity", unit="each token masked by itself", log=True),
    "lr": Measure(title="Learning rate", unit="of each step", value=short, from_zero=True),
    "gradient_norm": Measure(title="Gradient norm", unit="before clipping", log=True),
    "tokens_per_second": Measure(title="Speed", unit="tokens per second", value=count, tick=count, from_zero=True),
    "mfu": Measure(
        title="Utilisation",
        unit="MFU, of what the hardware can multiply",
        value=percent,
        tick=rough_percent,
        from_zero=True,
    ),
}
ELSEWHERE = {"validation_loss", "validation_perplexity", "validation_targets", "validation_top5_accuracy"}
"""In the chart of the loss, or of accuracy, or saying the same."""
ELSEWHERE |= {"validation_pseudo_loss", "validation_pseudo_bits_per_byte"}


def plots_of(run: Told) -> Iterator[str]:
    """The charts of one run; the loss first, which is larger."""
    end = run.curves.last_step

    def tokens(ticks: list[float]) -> list[str]:
        return [short(each) if math.isfinite(each) else "" for each in run.curves.tokens_at(ticks)]

    curves = [
        curve
        for number, (key, name) in enumerate((("loss", "training"), ("validation_loss", "held out")))
        for curve in _curves([run], key, "step", names=[name], colour=number)
    ]
    floor = run.number("validation_floor")
    yield draw(
        Chart(
            title="Loss",
            unit="nats per token",
            curves=curves,
            x_end=end,
            value=plain,
            tick=short,
            log=True,
            lines=[("floor of the builtin corpus", floor)] if floor is not None and curves else [],
            marks=list(islice(_troubles(run), MOST_MARKS)),
            second_row=tokens if run.curves.series.get("tokens") else None,
            tall=True,
        )
    )
    yield '<div class="charts">'
    for key, measure in _measures([run]):
        names = [("validation_top5_accuracy", "top 5")] if key == "validation_accuracy" else []
        found = _curves([run], key, "step", names=["top 1" if names else measure.title.lower()])
        for number, (more, name) in enumerate(names, start=1):
            found += _curves([run], more, "step", names=[name], colour=number)
        yield _small(measure, found, end, "step")
    yield _time_split(run)
    yield "</div>"


def plots_of_all(runs: Sequence[Told], axis: Axis) -> Iterator[str]:
    """The charts of several runs, over steps or over tokens."""
    ends = [run.curves.last_step if axis == "step" else _last_token(run) for run in runs]
    end = max(ends, default=0.0)
    for key, title in (("validation_loss", "Held-out loss"), ("loss", "Training loss")):
        yield draw(
            Chart(
                title=title,
                unit="nats per token",
                curves=_curves(runs, key, axis),
                x_end=end,
                x_name=axis,
                value=plain,
                tick=short,
                log=True,
                tall=True,
            )
        )
    yield '<div class="charts">'
    for key, measure in _measures(runs):
        yield _small(measure, _curves(runs, key, axis), end, axis)
    yield "</div>"


def _small(measure: Measure, curves: list[Curve], end: float, axis: Axis) -> str:
    return draw(
        Chart(
            title=measure.title,
            unit=measure.unit,
            curves=curves,
            x_end=end,
            x_name=axis,
            value=measure.value,
            tick=measure.tick,
            log=measure.log,
            from_zero=measure.from_zero,
        )
    )


def _measures(runs: Sequence[Told]) -> Iterator[tuple[str, Measure]]:
    """Those that a run has points of; what other metrics are called is their title."""
    keys = {key: None for run in runs for key in run.curves.series}
    for key, measure in MEASURES.items():
        if key in keys:
            yield key, measure
    for key in keys:
        if key.startswith("validation_") and key not in MEASURES and key not in ELSEWHERE:
            yield key, Measure(title=key.removeprefix("validation_"), unit="of held-out tokens")


def _curves(
    runs: Sequence[Told], key: str, axis: Axis, *, names: Sequence[str] | None = None, colour: int | None = None
) -> list[Curve]:
    """A curve of `key` for each run that has it, called as the run unless `names` says otherwise."""
    found = []
    for number, run in enumerate(runs):
        series = run.curves.series.get(key)
        if not series:
            continue
        buckets = series.at_most(FINE if key in LARGE else COARSE)
        x = [each.at for each in buckets]
        x = run.curves.tokens_at(x) if axis == "token" else x
        dots = key.startswith(("validation_", "pairs"))
        curve = Curve.of(
            names[number] if names else run.name, number if colour is None else colour, buckets, x, dots=dots
        )
        curve.rest = series.newest
        if len(runs) > 1:
            curve.low = curve.high = None  # bands of several runs hide each other
        found.append(curve)
    return found


def _time_split(run: Told) -> str:
    """The phases of a step, one above the other, with their means over the run."""
    found = []
    for number, phase in enumerate(PHASES):
        series = run.curves.series.get(f"time.{phase}")
        if not series:
            continue
        buckets = series.at_most(COARSE)
        x = [each.at for each in buckets]
        curve = Curve.of(phase.replace("_", " and "), number, buckets, x, filled=True)
        curve.low = curve.high = None
        curve.rest = sum(each.total for each in series.buckets) / sum(each.count for each in series.buckets)
        found.append(curve)
    return draw(
        Chart(
            title="Time",
            unit="what a step's time goes into; the mean",
            curves=found,
            x_end=run.curves.last_step,
            value=percent,
            tick=rough_percent,
        )
    )


def _troubles(run: Told) -> Iterator[tuple[float, str]]:
    for key, what in TROUBLES.items():
        if series := run.curves.series.get(key):
            for each in series.buckets:
                yield each.at, f"{what}: {run.curves.troubles[key]:,}"


def _last_token(run: Told) -> float:
    series = run.curves.series.get("tokens")
    return series.newest if series else 0.0
