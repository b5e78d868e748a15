"""One dial: depth, width, heads and feed-forward of a model with so many parameters, in its family's proportions.

A family's published sizes make a line, from which the proportions of any other size are read; of the sizes in whole
heads and round widths near it, one that has the parameters asked for is taken. The parameters are those of the real
model: a layer's are a polynomial of its sizes, which a dozen small models of the architecture give exactly.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfpretrain.amounts import count
from hfpretrain.errors import ModelError
from hfpretrain.modeling.families import FAMILIES, Family, Published

TOLERANCE = 0.05
"""The parameters of the model are those asked for within this share."""
SMALLEST_WIDTH, SMALLEST_DEPTH, LARGEST_WIDTH, LARGEST_DEPTH = 16, 2, 32768, 256
_BEGINNING = Published(4, 64, 4, 0, 0, 16)
"""Where the lines of families begin whose published sizes are all larger."""
_BEYOND = 0.2
"""Beyond the largest published size depth grows with the square root of the width, which is this power of depth times
width squared."""
_SAMPLES, _FEW_SAMPLES = 12, 8
"""Of models to count: enough for the terms where key-value heads or heads have widths of their own, and where not."""
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")

Count = Callable[[Mapping[str, Any]], int]
"""Parameters of the model with these settings, all of them, tied tables once."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int


@dataclass(frozen=True)
class Proportions:
    """What a family has at a body of some weight, depth times width squared; no whole numbers."""

    depth: float
    head_dim: float
    heads_to_width: float
    """Width of all heads together, over the width."""
    group: float
    """Heads that share a key-value head."""
    feed_forward: float
    """Over the width."""


def choose_sizes(
    architecture: str, parameters: float, given: Mapping[str, Any], declared: Mapping[str, Any], counted: Count
) -> dict[str, Any]:
    """The settings (by the names of the configuration classes' attributes) that make a model of so many parameters.

    `given` are settings that are to stay as they are; `declared` are the keys that the architecture has. Raises
    ModelError where the family's sizes are not known, or no sensible model comes within TOLERANCE.
    """
    if architecture not in FAMILIES:
        raise ModelError(
            f"model.size: the proportions of {architecture} are not known",
            hint=f"give its sizes under model.config, or take one of {', '.join(sorted(FAMILIES))}",
        )
    family = _Choice(FAMILIES[architecture], given, declared)
    tied: dict[str, Any] = {}
    if family.family.tied_below and "tie_word_embeddings" not in given:
        tied = {"tie_word_embeddings": parameters < family.family.tied_below}
    measured = _measure(family, lambda sizes: counted(family.settings(sizes) | tied))
    found = _best(family, parameters, measured)
    if found is None:
        raise _unreachable(family, parameters, measured)
    return family.settings(found) | tied


class _Choice:
    """A family, and what of its sizes the recipe has fixed."""

    def __init__(self, family: Family, given: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
        self.family, self.given = family, given
        self.own_head_dim = "head_dim" in declared and any(size.head_dim for size in family.sizes)
        self.grouped = "num_key_value_heads" in declared
        keys = {"depth": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
        keys |= {"kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
        keys |= {"feed_forward": family.feed_forward} if family.feed_forward else {}
        self.fixed: dict[str, int] = {}
        for name, key in keys.items():
            value = given.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"model.config.{key} is {value!r}, and has to be a whole number above 0")
            self.fixed[name] = value
        sizes = sorted(family.sizes, key=_body)
        if (first := sizes[0]).width > _BEGINNING.width:
            sizes.insert(0, first._replace(**_small(first)))
        self.line = [(math.log(_body(size)), _proportions(size)) for size in sizes]

    def settings(self, sizes: Sizes) -> dict[str, Any]:
        """As the configuration has them."""
        found: dict[str, Any] = {
            "num_hidden_layers": sizes.depth,
            "hidden_size": sizes.width,
            "num_attention_heads": sizes.heads,
        }
        if self.grouped:
            found["num_key_value_heads"] = sizes.kv_heads
        if self.own_head_dim or "head_dim" in self.fixed:
            found["head_dim"] = sizes.head_dim
        key, times = self.family.feed_forward, self.family.feed_forward_default
        if key and (key in self.given or not times or sizes.feed_forward != times * sizes.width):
            found[key] = sizes.feed_forward
        found |= {key: getattr(sizes, name) for key, name in self.family.follows.items() if key not in self.given}
        return found

    def published(self, size: Published) -> Sizes | None:
        """A published model's sizes; None if the recipe has fixed one that differs."""
        kv_heads, head_dim = size.kv_heads or size.heads, size.head_dim or size.width // size.heads
        sizes = Sizes(size.depth, size.width, size.heads, kv_heads, head_dim, size.feed_forward)
        return None if any(getattr(sizes, name) != value for name, value in self.fixed.items()) else sizes

    def at(self, depth: int, width: int) -> Proportions:
        """The family's proportions for a body of that weight, on straight lines between logarithms."""
        body = math.log(depth * width * width)
        (low, first), (high, last) = self.line[0], self.line[-1]
        if body <= low:
            return first
        if body >= high:
            return _scaled(last, math.exp(_BEYOND * (body - high)))
        before, after = next((one, two) for one, two in itertools.pairwise(self.line) if one[0] <= body < two[0])
        share = (body - before[0]) / (after[0] - before[0])
        return Proportions(
            *(a ** (1 - share) * b**share for a, b in zip(_values(before[1]), _values(after[1]), strict=True))
        )

    def sizes(self, depth: int, width: int, feed_forward: int | None = None) -> tuple[Sizes, float] | None:
        """The sizes that go with a depth and a width, and how far their heads are from the family's; or None."""
        wanted, fixed = self.at(depth, width), self.fixed
        if self.own_head_dim or "head_dim" in fixed:
            wide = wanted.heads_to_width * width
            head_dim = fixed.get("head_dim") or _multiple(min(wanted.head_dim, wide), 8 if wanted.head_dim < 96 else 32)
            divisors = [number for number in range(2, width + 1) if width % number == 0]  # some insist on it
            heads = fixed.get("heads") or min(divisors, key=lambda number: abs(math.log(number * head_dim / wide)))
        else:
            if "heads" in fixed:
                choices = [fixed["heads"]] if width % fixed["heads"] == 0 and width // fixed["heads"] % 2 == 0 else []
            else:
                least = min(8, width // 2)
                choices = [width // size for size in range(least, width // 2 + 1, 8) if width % size == 0]
            if not choices:
                return None
            heads = min(choices, key=lambda number: abs(math.log(width / number / wanted.head_dim)))
            head_dim = width // heads
        kv_heads = fixed.get("kv_heads", heads)
        if self.grouped and "kv_heads" not in fixed:
            divisors = [number for number in range(1, heads + 1) if heads % number == 0]
            kv_heads = min(divisors, key=lambda number: abs(math.log(heads / number / wanted.group)))
        if heads % kv_heads:
            return None
        if feed_forward is None:
            feed_forward = fixed.get("feed_forward") or self.wide(wanted, width)
        off = abs(math.log(head_dim / wanted.head_dim)) + abs(
            math.log(heads * head_dim / width / wanted.heads_to_width)
        )
        off += 0.3 * abs(math.log(heads / kv_heads / wanted.group)) if self.grouped else 0.0
        return Sizes(depth, width, heads, kv_heads, head_dim, feed_forward), off

    def wide(self, wanted: Proportions, width: int) -> int:
        """The family's feed-forward at that width, as a round number."""
        return _multiple(wanted.feed_forward * width, 16 if width < 256 else 32)


def _body(size: Published) -> int:
    return size.depth * size.width**2


def _small(first: Published) -> dict[str, int]:
    """The sizes at which the line of a family begins whose first published size is `first`."""
    return {
        "depth": min(first.depth, _BEGINNING.depth),
        "width": _BEGINNING.width,
        "heads": _BEGINNING.heads,
        "head_dim": _BEGINNING.head_dim,
        "kv_heads": max(1, round(_BEGINNING.heads * (first.kv_heads or first.heads) / first.heads)),
        "feed_forward": round(_BEGINNING.width * first.feed_forward / first.width),
    }


def _proportions(size: Published) -> Proportions:
    head_dim = size.head_dim or size.width // size.heads
    return Proportions(
        depth=size.depth,
        head_dim=head_dim,
        heads_to_width=size.heads * head_dim / size.width,
        group=size.heads / (size.kv_heads or size.heads),
        feed_forward=size.feed_forward / size.width,
    )


def _values(one: Proportions) -> tuple[float, ...]:
    return one.depth, one.head_dim, one.heads_to_width, one.group, one.feed_forward


def _scaled(one: Proportions, factor: float) -> Proportions:
    return Proportions(one.depth * factor, *_values(one)[1:])


def _multiple(value: float, of: int) -> int:
    return max(of, round(value / of) * of)


# Counting


@dataclass(frozen=True)
class _Measured:
    """Parameters of any sizes, by the terms of a layer and of the rest."""

    layer: NDArray[np.float64]
    rest: NDArray[np.float64]

    def count(self, sizes: Sizes) -> float:
        return float(self.rest @ _rest_terms(sizes) + sizes.depth * (self.layer @ _layer_terms(sizes)))


def _rest_terms(sizes: Sizes) -> NDArray[np.float64]:
    return np.array([1.0, sizes.width, sizes.width**2])


def _layer_terms(sizes: Sizes) -> NDArray[np.float64]:
    width, queries, keys = sizes.width, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    products = [width * queries, width * keys, width * sizes.feed_forward]
    return np.array([1.0, width, queries, keys, sizes.head_dim, sizes.feed_forward, *products], dtype=np.float64)


def _measure(family: _Choice, counted: Callable[[Sizes], int]) -> _Measured:
    """From models of one and two layers with sizes by chance, small ones, and so exactly."""
    chance = random.Random(0)
    samples = []
    for _ in range(_SAMPLES if family.own_head_dim or family.grouped else _FEW_SAMPLES):
        heads, head_dim = chance.choice((2, 4, 6, 8)), 8 * chance.randint(1, 5)
        kv_heads = chance.choice([number for number in range(1, heads + 1) if heads % number == 0])
        width = heads * (8 * chance.randint(1, 5) if family.own_head_dim else head_dim)
        sizes = Sizes(1, width, heads, kv_heads if family.grouped else heads, head_dim, 8 * chance.randint(4, 40))
        if not family.family.feed_forward:
            sizes = Sizes(1, width, heads, sizes.kv_heads, head_dim, family.family.feed_forward_default * width)
        samples.append(sizes)
    one = np.array([counted(sizes) for sizes in samples], dtype=np.float64)
    two = np.array([counted(_with_depth(sizes, 2)) for sizes in samples], dtype=np.float64)
    layer = _solve([_layer_terms(sizes) for sizes in samples], two - one)
    rest = _solve([_rest_terms(sizes) for sizes in samples], 2 * one - two)
    return _Measured(layer, rest)


def _solve(terms: list[NDArray[np.float64]], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors of the terms; of terms that go together (queries and width, say) each has a share."""
    matrix = np.stack(terms)
    scale = np.abs(matrix).max(axis=0)
    found: NDArray[np.float64] = np.linalg.lstsq(matrix / scale, values, rcond=1e-10)[0] / scale
    return found


def _with_depth(sizes: Sizes, depth: int) -> Sizes:
    return Sizes(depth, sizes.width, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.feed_forward)


# Searching


def _best(family: _Choice, parameters: float, measured: _Measured) -> Sizes | None:
    """Published sizes within TOLERANCE if there are some; else those nearest to the family's proportions, in round
    widths with the family's feed-forward, or else in any."""
    published = [size for size in map(family.published, family.family.sizes) if size is not None]
    misses = [(abs(measured.count(sizes) / parameters - 1), sizes) for sizes in published]
    if fitting := [each for each in misses if each[0] <= TOLERANCE]:
        return min(fitting, key=lambda each: each[0])[1]
    for finely in (False, True):
        found = [
            (score, sizes)
            for sizes, score in _candidates(family, parameters, measured, finely=finely)
            if abs(measured.count(sizes) / parameters - 1) <= TOLERANCE
        ]
        if found:
            return min(found, key=lambda each: each[0])[1]
    return None


def _candidates(
    family: _Choice, parameters: float, measured: _Measured, *, finely: bool
) -> Iterator[tuple[Sizes, float]]:
    """Sizes near the family's line with about the parameters, and how far they are from both."""
    grid = [family.fixed["width"]] if "width" in family.fixed else _widths(finely)
    if "heads" in family.fixed and not (family.own_head_dim or "head_dim" in family.fixed):
        grid = [width for width in grid if width % (2 * family.fixed["heads"]) == 0] or grid
    free = "width" not in family.fixed and "depth" not in family.fixed
    depths = [family.fixed["depth"]] if "depth" in family.fixed else range(SMALLEST_DEPTH, LARGEST_DEPTH + 1)
    own_heads = bool(family.fixed.keys() & {"heads", "kv_heads", "head_dim"})
    far, rows, heads_off = (math.log(2), 2.0, math.log(4)) if finely else (math.log(1.5), 1.0, math.log(1.7))
    for depth in depths:
        widths = _around(grid, functools.partial(_count, family, measured, depth), parameters)
        if free and depth > 2 * max(family.at(depth, width).depth for width in widths) + 2:
            return  # too deep, and what is deeper still is further still
        for width in widths:
            wanted = family.at(depth, width)
            off = abs(math.log(depth / wanted.depth))
            if free and off > far and abs(depth - wanted.depth) > rows:
                continue
            for sizes, differs in _with_feed_forward(family, measured, parameters, depth, width, finely=finely):
                found = family.sizes(depth, width, sizes)
                if found is None or (found[1] > heads_off and not own_heads):
                    continue
                miss = abs(math.log(measured.count(found[0]) / parameters))
                yield found[0], off + 0.5 * found[1] + differs + 2 * miss


def _with_feed_forward(
    family: _Choice, measured: _Measured, parameters: float, depth: int, width: int, *, finely: bool
) -> Iterator[tuple[int | None, float]]:
    """Widths of the feed-forward to try, and how far each is from the family's; None for the family's."""
    yield None, 0.0
    usual = family.sizes(depth, width)
    if not finely or usual is None or "feed_forward" in family.fixed or family.family.feed_forward is None:
        return
    own = usual[0].feed_forward
    more = family.sizes(depth, width, own + 8)
    assert more is not None
    each = (measured.count(more[0]) - measured.count(usual[0])) / 8
    exact = own + (parameters - measured.count(usual[0])) / each
    if 0.6 * own < exact < 1.67 * own:
        chosen = _multiple(exact, 8)
        yield chosen, abs(math.log(chosen / own))


def _count(family: _Choice, measured: _Measured, depth: int, width: int) -> float:
    """Parameters at a depth and a width, or as good as infinitely many where no heads go with them."""
    found = family.sizes(depth, width)
    return measured.count(found[0]) if found else math.inf


def _widths(finely: bool) -> list[int]:
    """Widths to choose from: multiples of a power of two that grows with them, up to 64; or of 8, and of 4 below 64."""
    found, width = [], SMALLEST_WIDTH
    while width <= LARGEST_WIDTH:
        found.append(width)
        step = (4 if width < 64 else 8) if finely else min(64, max(8, 2 ** (width.bit_length() - 4)))
        width += step
    return found


def _around(grid: list[int], counted: Callable[[int], float], parameters: float) -> list[int]:
    """The widths of the grid beside which the parameters lie: two smaller ones and two larger ones."""
    low, high = 0, len(grid)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if counted(grid[middle]) < parameters else (low, middle)
    return grid[max(0, low - 2) : low + 2]


def _unreachable(family: _Choice, parameters: float, measured: _Measured) -> ModelError:
    """Why there is no such model, and what to do."""
    asked = f"model.size: {count(parameters)} parameters"
    if family.fixed:
        keys = ", ".join(sorted(set(family.given) & {*_SIZES, family.family.feed_forward or ""}))
        near = [measured.count(sizes) for sizes, _ in _candidates(family, parameters, measured, finely=True)]
        nearest = min(near, key=lambda each: abs(each - parameters), default=None)
        said = "" if nearest is None else f"; the nearest has {count(nearest)}"
        return ModelError(
            f"{asked} cannot be had with {keys} as model.config says{said}", hint="leave one of them out, or model.size"
        )
    smallest = family.sizes(SMALLEST_DEPTH, 2 * SMALLEST_WIDTH)
    assert smallest is not None
    whole = measured.count(smallest[0])
    layers = SMALLEST_DEPTH * float(measured.layer @ _layer_terms(smallest[0]))
    return ModelError(
        f"{asked} are too few for the vocabulary: at a width of {2 * SMALLEST_WIDTH}, of {count(whole)} parameters"
        f" {count(whole - layers)} are in the embeddings",
        hint="set a smaller tokenizer.vocab_size (without tokenizer.from), or a larger model.size",
    )
