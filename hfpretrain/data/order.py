"""The order of things, computed instead of remembered.

Every random choice of a run is a function of the recipe's seed and of where it is used: which block comes
at which place, which source a place belongs to, which tokens a row masks. Nothing here has state, so
nothing has to be saved, and any place of any epoch costs the same.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction


def derived(seed: int, *parts: int | str) -> int:
    """A seed for one use, in range(2**63): equal for equal `seed` and `parts`, on every machine."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permuted(index: int, size: int, seed: int) -> int:
    """Where `index` lands in a seeded permutation of range(size), in O(1) time and memory.

    A six-round Feistel network over the next power of four, walked until it falls inside (cycle walking:
    Black & Rogaway 2002). With four rounds neighbours stay neighbours up to 1.4 times as often as by chance.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (_mixed(right + (turn << 32), seed) & mask)
        index = left << half | right
        if index < size:
            return index


def interleaved(position: int, weights: Sequence[Fraction]) -> tuple[int, int]:
    """Which source the block at `position` comes from, and how many of that source came before it.

    Each source appears as evenly as its weight allows (a Beatty sequence): after n positions the first
    source was taken floor(n * share) times, the others share the rest in the same way.
    """
    rest = sum(weights, Fraction(0))
    for source, weight in enumerate(weights[:-1]):
        share = weight / rest
        before, after = int(position * share), int((position + 1) * share)
        if after > before:
            return source, before
        position -= before
        rest -= weight
    return len(weights) - 1, position


def _mixed(value: int, seed: int) -> int:
    """64 well-mixed bits (the finalizer of SplitMix64: Steele, Lea & Flood 2014)."""
    value = (value * 0x9E3779B97F4A7C15 + seed) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
