"""A chart as a piece of a page: curves in an SVG that stretches to any size, and around it labels that do not.

The SVG has no text and its strokes keep their width, so that one drawing serves the widest screen and a phone.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfpretrain.amounts import count
from hfpretrain.report.curves import Bucket
from hfpretrain.report.html import shown

SIZE = 1000.0
"""The SVG's own units, both ways."""
LOG_FROM = 6.0
"""Where the greatest value is so many times the least, an axis that may be logarithmic is."""
DOTS = 60
"""Up to so many points of a curve with `dots` are shown by themselves."""
Format = Callable[[float], str]


@dataclass(kw_only=True)
class Curve:
    """A curve of a chart; its colour is a number, see `colour`."""

    name: str
    colour: int
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    """Where a point is the mean of several: the least and the greatest of them."""
    dots: bool = False
    rest: float | None = None
    """What stands beside the name where no point is looked at, if not the last point."""
    filled: bool = False
    """Drawn as an area, above the filled curves before it."""

    @staticmethod
    def of(name: str, colour: int, buckets: Sequence[Bucket], x: list[float], **settings: bool) -> "Curve":
        """A curve of a series, with the place of each of its buckets on the x axis."""
        places = [place for place, each in enumerate(x) if math.isfinite(each)]
        chosen = [buckets[place] for place in places]
        several = any(each.count > 1 for each in chosen)
        return Curve(
            name=name,
            colour=colour,
            x=[x[place] for place in places],
            y=[each.mean for each in chosen],
            low=[each.low for each in chosen] if several else None,
            high=[each.high for each in chosen] if several else None,
            **settings,
        )


@dataclass(kw_only=True)
class Chart:
    """What is drawn into one frame."""

    title: str
    unit: str
    """What y is counted in, for people."""
    curves: list[Curve]
    x_end: float
    x_name: str = "step"
    value: Format = "{:.4g}".format
    """How a value is written beside the curve's name."""
    tick: Format | None = None
    """How a value is written at the axis, if in another way."""
    log: bool = False
    """Whether the y axis may be logarithmic."""
    from_zero: bool = False
    to: float | None = None
    """Where the y axis ends, if that is known."""
    lines: list[tuple[str, float]] = field(default_factory=list)
    """Levels that are drawn across, with their names."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Places on x where something happened, and what."""
    second_row: Callable[[list[float]], list[str]] | None = None
    """A second label for places on x."""
    tall: bool = False


def draw(chart: Chart) -> str:
    """The chart as HTML; nothing where no curve has a point."""
    curves = [each for each in chart.curves if each.x]
    if not curves:
        return ""
    scale = _Scale.of(chart, curves)
    ticks = scale.ticks()
    parts = [f'<path class="grid" d="{"".join(f"M0 {_n(scale.y(each))}H{SIZE:.0f}" for each in ticks)}"/>']
    parts += [f'<path class="mark" d="M{_n(scale.x(x))} {SIZE:.0f}V{SIZE * 0.93:.0f}"/>' for x, _ in chart.marks]
    parts += [f'<path class="level" d="M0 {_n(scale.y(level))}H{SIZE:.0f}"/>' for level in scale.levels]
    parts += _areas(curves, scale) if curves[0].filled else [part for each in curves for part in _line(each, scale)]
    label = f"{chart.title} over {chart.x_name}s, {chart.unit}"
    svg = (
        f'<svg viewBox="0 0 {SIZE:.0f} {SIZE:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{shown(label)}">{"".join(parts)}</svg>'
    )
    written = chart.tick or chart.value
    y_labels = "".join(f'<span style="top:{_percent(scale.y(each))}">{shown(written(each))}</span>' for each in ticks)
    axis = ", logarithmic" if scale.log else ""
    return (
        f'<figure class="chart{" tall" if chart.tall else ""}">'
        f"<figcaption><h3>{shown(chart.title)}</h3><small>{shown(chart.unit)}{axis}</small></figcaption>"
        f'<ul class="legend">{_legend(chart, curves, scale)}</ul>'
        f'<div class="plot"><div class="y">{y_labels}</div>'
        f'<div class="frame">{svg}<i class="rule"><b></b></i></div>{_x_labels(chart, scale)}</div>'
        f'<script type="application/json">{embedded(_data(chart, curves))}</script></figure>'
    )


def colour(number: int) -> str:
    """The CSS classes of a colour: there are eight, then the same again, dashed."""
    return f"c{number % 8}" + (" dashed" if number // 8 % 2 else "")


def embedded(value: Any) -> str:
    """JSON that can stand in a page's script element, whatever texts are in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass(frozen=True)
class _Scale:
    """From values to places in the SVG."""

    x_end: float
    low: float
    high: float
    log: bool
    levels: tuple[float, ...] = ()
    """Those that are near enough to be drawn."""

    @staticmethod
    def of(chart: Chart, curves: Sequence[Curve]) -> "_Scale":
        values = [value for each in curves for part in (each.y, each.low or [], each.high or []) for value in part]
        low, high = min(values), max(values)
        levels = tuple(level for _, level in chart.lines if _is_near(level, low, high))
        low, high = min(low, *levels, high), max(high, *levels, low)
        if curves[0].filled:
            return _Scale(chart.x_end or 1.0, 0.0, 1.0, False)
        if chart.log and low > 0 and high / low >= LOG_FROM:
            reach = (high / low) ** 0.04
            return _Scale(chart.x_end or 1.0, low / reach, high * reach, True, levels)
        if chart.from_zero:
            low = min(0.0, low)
        if chart.to is not None:
            high = max(chart.to, high)
        if low == high:
            low, high = low - (abs(low) * 0.5 or 0.5), high + (abs(high) * 0.5 or 0.5)
        space = (high - low) * 0.06
        bottom = low if chart.from_zero and low == 0 else low - space
        return _Scale(chart.x_end or 1.0, bottom, high if high == chart.to else high + space, False, levels)

    def x(self, value: float) -> float:
        return SIZE * value / self.x_end

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return SIZE * (high - value) / (high - low)

    def ticks(self) -> list[float]:
        if not self.log:
            return nice(self.low, self.high, 5)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for mantissas in ([1.0, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]):
            found = [m * 10.0**decade for decade in decades for m in mantissas]
            found = [each for each in found if self.low <= each <= self.high]
            if len(found) <= 7:
                break
        return found[:: max(1, len(found) // 7)]


def _is_near(level: float, low: float, high: float) -> bool:
    """Whether drawing a level below them would leave the curves at least two thirds of the height, or nearly."""
    if level <= 0 or low <= 0:
        return level >= low
    return level >= low or math.log(low / level) <= 0.6 * math.log(max(high / low, 1.5))


def nice(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about `most` of them and no more; with `whole` integers alone."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    if whole:
        step = max(1.0, step)
    steps = [step * factor for factor in (1, 2, 2.5, 5, 10, 20)]
    step = next(each for each in steps if (high - low) / each <= most and (not whole or each == int(each)))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number of an axis: 0.004, 25, 1.2M."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return count(value) if value >= 1000 else f"{value:.4g}"


def _line(curve: Curve, scale: _Scale) -> list[str]:
    """The band from the least to the greatest, if there is one, the line of the means, and its points."""
    parts, kind = [], colour(curve.colour)
    points = [(_n(scale.x(x)), _n(scale.y(y))) for x, y in zip(curve.x, curve.y, strict=True)]
    if curve.low is not None and curve.high is not None:
        upper = [(x, _n(scale.y(each))) for (x, _), each in zip(points, curve.high, strict=True)]
        lower = [(x, _n(scale.y(each))) for (x, _), each in zip(points, curve.low, strict=True)]
        parts.append(f'<path class="band {kind}" d="{_path(upper + lower[::-1])}Z"/>')
    parts.append(f'<path class="line {kind}" d="{_path(points)}"/>')
    if (curve.dots and len(points) <= DOTS) or len(points) == 1:
        parts.append(f'<path class="dots {kind}" d="{"".join(f"M{x} {y}h0" for x, y in points)}"/>')
    return parts


def _areas(curves: Sequence[Curve], scale: _Scale) -> list[str]:
    """Curves that add up to one, each above those before it; from edge to edge."""
    parts = []
    places = [0.0, *curves[0].x, scale.x_end]
    floor = [0.0] * len(places)
    for curve in curves:
        values = [curve.y[0], *curve.y, curve.y[-1]]
        top = [min(1.0, below + value) for below, value in zip(floor, values, strict=False)]
        upper = [(_n(scale.x(x)), _n(scale.y(y))) for x, y in zip(places, top, strict=False)]
        lower = [(_n(scale.x(x)), _n(scale.y(y))) for x, y in zip(places, floor, strict=False)]
        parts.append(f'<path class="area {colour(curve.colour)}" d="{_path(upper + lower[::-1])}Z"/>')
        floor = top
    return parts


def _path(points: Sequence[tuple[str, str]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _legend(chart: Chart, curves: Sequence[Curve], scale: _Scale) -> str:
    """Each curve with its last value, which the script replaces by the one that is pointed at."""
    rest = [chart.value(each.y[-1] if each.rest is None else each.rest) for each in curves]
    entries = [
        f'<li><i class="key {colour(each.colour)}"></i>{shown(each.name)} <b>{shown(text)}</b></li>'
        for each, text in zip(curves, rest, strict=True)
    ]
    entries += [
        f'<li><i class="key level"></i>{shown(name)} <b class="fixed">{shown(chart.value(level))}</b>'
        f"{'' if level in scale.levels else ', below'}</li>"
        for name, level in chart.lines
    ]
    counted = {what: sum(each == what for _, each in chart.marks) for _, what in chart.marks}
    entries += [f'<li><i class="key mark"></i>{shown(what)}</li>' for what in counted]
    return "".join(entries)


def _x_labels(chart: Chart, scale: _Scale) -> str:
    ticks = nice(0.0, scale.x_end, 5, whole=True)
    rows = [("step" if chart.x_name == "step" else f"{chart.x_name}s", [short(each) for each in ticks])]
    if chart.second_row:
        rows.append(("tokens", chart.second_row(ticks)))
    return "".join(
        f'<div class="x"><em>{shown(name)}</em>'
        + "".join(
            f'<span style="left:{_percent(scale.x(tick))}">{shown(text)}</span>'
            for tick, text in zip(ticks, texts, strict=True)
            if text
        )
        + "</div>"
        for name, texts in rows
    )


def _data(chart: Chart, curves: Sequence[Curve]) -> dict[str, Any]:
    """What the script shows of a place that is pointed at: the values as they are written."""
    return {
        "end": _exact(chart.x_end or 1.0),
        "name": chart.x_name,
        "curves": [
            {
                "name": each.name,
                "x": [_exact(x) for x in each.x],
                "y": [_exact(y) for y in each.y],
                "text": _texts(chart, each),
            }
            | ({"low": [_exact(y) for y in each.low], "high": [_exact(y) for y in each.high or []]} if each.low else {})
            for each in curves
        ],
    }


def _texts(chart: Chart, curve: Curve) -> list[str]:
    """Each point's value in words, with the extremes where it is the mean of several."""
    texts = [chart.value(y) for y in curve.y]
    for number, (low, high) in enumerate(zip(curve.low or [], curve.high or [], strict=True)):
        if low < high:
            texts[number] += f" ({chart.value(low)} to {chart.value(high)})"
    return texts


def _exact(value: float) -> float:
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.7g}")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _percent(value: float) -> str:
    return f"{100 * value / SIZE:.2f}%"
