"""Which tokens a masked language model has to guess: how many, and single tokens, whole words or spans.

However they are chosen, each token is a target with exactly the masking rate as its probability. All choices for a row
come from its own seed and its own tokens, so that they do not depend on how a batch is cut.
"""

from hfpretrain.recipe import Masking, Ramp


def rate_of(masking: Masking, step: int | None, steps: int | None) -> float:
    """The masking rate in a step of `steps`; for held-out rows, which have none, the one that the run ends with."""
    if not isinstance(masking.rate, Ramp):
        return masking.rate
    if step is None:
        return masking.rate.to
    assert steps is not None, "the recipe allows no rate that moves over a run of unknown length"
    done = min(1.0, step / max(1, steps - 1))
    return masking.rate.from_ + done * (masking.rate.to - masking.rate.from_)


def largest_rate(masking: Masking) -> float:
    """The largest rate of the run."""
    return max(masking.rate.from_, masking.rate.to) if isinstance(masking.rate, Ramp) else masking.rate
