"""Fill-in-the-middle: documents are turned round so that a next-word model learns to fill a gap (Bavarian et al. 2022).

Turned within their block ("context-level", as StarCoder's and Megatron's), so that each part of a document that a block
shows keeps its prefix, middle and suffix together: a document that was turned before it was cut into blocks would be
torn from its gap. Blocks are cut with room for the three sentinel tokens of each part, so that no token is lost to
them; where a part stays as it is the room is padding.
"""

from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.blocks import PADDING, Block
from hfpretrain.errors import ModelError
from hfpretrain.recipe import FillInTheMiddle

SPELLINGS = tuple(
    tuple(name.format(part) for part in ("prefix", "middle", "suffix"))
    for name in ("<|fim_{}|>", "<fim_{}>", "<fim-{}>")
)
"""What the sentinel tokens are called: here and by Qwen, by StarCoder, by SantaCoder."""

# The places of a part's pieces by (turned, suffix first). Sentinels of the prefix, the middle and the suffix; then what
# stands before, the prefix, the middle, the suffix and what stands after. The prefix follows its sentinel, or, with the
# suffix first, the middle's (their variant 2, which shares its sentinels with the other order).
_PREFIX_FIRST = (1, 5, 3, 0, 2, 6, 4, 7)
_SUFFIX_FIRST = (1, 4, 2, 0, 5, 6, 3, 7)
_AS_IT_IS = (0, 0, 0, 0, 0, 0, 0, 0)
_ORDERS = np.array([_AS_IT_IS, _PREFIX_FIRST, _SUFFIX_FIRST])


def sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """The ids of the tokens before prefix, middle and suffix. Raises ModelError if the tokenizer has none."""
    vocabulary = tokenizer.get_vocab()
    for names in SPELLINGS:
        if all(name in vocabulary for name in names):
            prefix, middle, suffix = (vocabulary[name] for name in names)
            return prefix, middle, suffix
    raise ModelError(
        f"fim: this tokenizer has no sentinel tokens ({', '.join(SPELLINGS[0])})",
        hint="give one that has them, train one (no tokenizer.from and no model.from), or set fim.rate: 0",
    )


class FillIn:
    """Turns the documents of a block round, as its seed says."""

    def __init__(self, settings: FillInTheMiddle, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings = settings
        self.sentinels = np.array(sentinels(tokenizer))
        self.outside = np.array(sorted(set(_outside(tokenizer))), dtype=np.int64)
        self.padding_id = tokenizer.pad_token_id or 0

    def __call__(self, block: Block, seed: int) -> Block:
        """The block with about `rate` of its documents as prefix, suffix, middle or (`spm` of them) suffix, prefix,
        middle.

        Two cuts fall between any two tokens, at each place with the same probability (the paper's cut characters, so
        that a gap may begin inside a token). The tokens that begin and end a text stay where they are: the end after
        the middle says that the gap is filled. All tokens are targets, the sentinels too.
        """
        filled = int(np.count_nonzero(block.documents != PADDING))
        if not filled:
            return block
        documents, token_ids = block.documents[:filled], block.token_ids[:filled]
        starts = np.flatnonzero(np.diff(documents, prepend=PADDING))
        ends = np.append(starts[1:], filled)
        edge = np.isin(token_ids, self.outside)
        first = starts + edge[starts]
        last = np.maximum(ends - edge[ends - 1], first)

        random = np.random.default_rng(seed).random((4, len(starts)))
        turned = (random[0] < self.settings.rate) & (last > first)
        orders = _ORDERS[np.where(turned, 1 + (random[1] < self.settings.spm), 0)]
        cuts = first + np.sort((random[2:] * (last - first + 1)).astype(np.int64), axis=0)

        # Each token, and behind them each sentinel, knows its document and its place there: sorted, they are in order.
        within = np.arange(filled)
        borders = np.stack([first, cuts[0], cuts[1], last])[:, documents]
        places = orders[documents, 3 + (within >= borders).sum(0)]
        added = np.flatnonzero(turned)
        everything = np.concatenate([token_ids, np.tile(self.sentinels, len(added))])
        owners = np.concatenate([documents, np.repeat(added, 3)])
        order = np.argsort(8 * owners + np.concatenate([places, orders[added, :3].ravel()]), kind="stable")

        size, length = len(block.token_ids), len(everything)
        assert length < size, "blocks are cut with room for the sentinels"
        missing = size - length
        return Block(
            np.concatenate([everything[order], np.full(missing, self.padding_id)]),
            np.arange(size) < length,
            np.concatenate([owners[order], np.full(missing, PADDING)]),
        )


def _outside(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """The tokens that begin and end texts."""
    for number in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
        if number is not None:
            yield number
