"""The order of things, computed instead of remembered.

Every random choice of a run is a function of the recipe's seed and of where it is used: which block comes
at which place, which tokens a row masks. Nothing here has state, so nothing has to be saved, and any place of any
epoch costs the same. Which source a place belongs to follows from the weights alone: mixing.py.
"""

import hashlib


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


def _mixed(value: int, seed: int) -> int:
    """64 well-mixed bits (the finalizer of SplitMix64: Steele, Lea & Flood 2014)."""
    value = (value * 0x9E3779B97F4A7C15 + seed) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
