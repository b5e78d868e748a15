"""How many blocks each step has, which may grow over the run: a pure function of the step, and back."""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property


@dataclass(frozen=True)
class BatchSizes:
    """`first` blocks in the first step, `last`, a multiple of that, from step `over` on; between them every multiple of
    `first` in turn, for equally many steps up to rounding."""

    first: int
    last: int
    over: int = 0

    def of(self, step: int) -> int:
        """Blocks of a step."""
        return self.first * bisect_right(self._begins, step)

    def before(self, step: int) -> int:
        """Blocks of all steps before this one: the position of its first block."""
        level = bisect_right(self._begins, step) - 1
        return self._positions[level] + (step - self._begins[level]) * self.first * (level + 1)

    def step_at(self, position: int) -> int:
        """The step that a position is in."""
        level = bisect_right(self._positions, position) - 1
        return self._begins[level] + (position - self._positions[level]) // (self.first * (level + 1))

    def steps(self, position: Fraction) -> Fraction:
        """After how many steps, which may end within one, there were so many blocks."""
        level = bisect_right(self._positions, position) - 1
        return self._begins[level] + (position - self._positions[level]) / (self.first * (level + 1))

    @cached_property
    def _begins(self) -> list[int]:
        """The step from which on each size is."""
        levels = self.last // self.first
        return [0] + [-(-level * self.over // (levels - 1)) for level in range(1, levels)]

    @cached_property
    def _positions(self) -> list[int]:
        """The position of each size's first block."""
        found = [0]
        for level in range(1, len(self._begins)):
            found.append(found[-1] + (self._begins[level] - self._begins[level - 1]) * self.first * level)
        return found
