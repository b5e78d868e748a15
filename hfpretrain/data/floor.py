"""What no next-word model can do better than on the builtin corpus: the cross-entropy of the grammar itself."""

import numpy as np

from hfpretrain.data import everyday
from hfpretrain.data.batches import Batches
from hfpretrain.recipe import Recipe
from hfpretrain.recipe_stages import training_sources, validation_sources


def grammar_loss(recipe: Recipe, batches: Batches, *, isolated: bool) -> float | None:
    """Nats per target that the grammar's own probabilities cost on the held-out texts; None for other data.

    That is -log of the probability of the choices that made each text (`everyday.surprise`, which is a little more
    than that of the text, as some can come about in two ways), over the targets that a text has. With `isolated`
    documents nobody predicts the first token of one: what it tells, by how often texts begin with it, is taken off.
    """
    if recipe.objective != "clm" or batches.validation is None:
        return None
    stream = batches.validation.stream
    sources = validation_sources(recipe.data) or training_sources(recipe.data)
    if any(source.builtin is None for _, source in sources) or any(
        store.manifest["left_out"] for store in stream.stores
    ):
        return None
    nats, targets = 0.0, 0
    for number, start, end in stream.ranges.tolist():
        store = stream.stores[number]
        offsets = np.asarray(store.offsets)
        first, last = np.searchsorted(offsets, [start, end])
        if offsets[first] != start or offsets[last] != end:
            return None  # part of a text
        nats += sum(everyday.surprise(int(index)) for index in range(first, last))
        targets += end - start
        if isolated:
            begins = np.asarray(store.tokens[offsets[:-1]])
            often = np.bincount(begins) / len(begins)
            nats += float(np.log(often[np.asarray(store.tokens[offsets[first:last]])]).sum())
            targets -= int(last - first)
    return nats / targets if targets else None
