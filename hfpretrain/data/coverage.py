"""How much text held-out tokens stand for, so that a loss can be told per byte, which no tokenizer changes."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.blocks import Blocks
from hfpretrain.data.tokens import TokenStore

DECODED_TOKENS = 5_000_000
"""A document of which only the tail is held out is decoded up to this size: some seconds."""


def covered_bytes(
    blocks: Blocks, tokenizer: PreTrainedTokenizerBase, *, first_predicted: bool, isolated: bool
) -> float | None:
    """UTF-8 bytes of the held-out text that its targets cover; None for prompts and completions.

    Of whole documents it is exact, as the token store knows the bytes of each; of a document's tail it is its share
    of the document's bytes, measured on what its tokens decode to, which is exact where decoding gives the text back;
    of tokens that another tool made it is estimated. Unless `first_predicted`, a token that has nothing before it to
    be predicted from covers nothing: the first of each document where they are `isolated`, else the very first.
    """
    if blocks.paired:
        return None
    covered = 0.0
    first: list[int] = []
    for number, start, end in blocks.stream.ranges.tolist():
        store = blocks.stream.stores[number]
        if store.text_lengths is None:
            covered += store.text_bytes * (end - start) / max(1, len(store.tokens))
        else:
            covered += _bytes(store, start, end, tokenizer)
        if not first_predicted and (isolated or not first):
            inner = slice(*np.searchsorted(store.offsets, [start + 1, end if isolated else start]).tolist())
            first += [int(store.tokens[place]) for place in (start, *store.offsets[inner].tolist())]
    ids, counts = np.unique(first, return_counts=True)
    sizes = [_size(tokenizer, [token]) for token in ids.tolist()]
    return covered - int(np.dot(sizes, counts))


def _bytes(store: TokenStore, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> float:
    """Of the text of a range of tokens: whole documents, or a part of one."""
    assert store.text_lengths is not None
    first = int(np.searchsorted(store.offsets, start, side="right")) - 1
    last = int(np.searchsorted(store.offsets, end, side="left"))
    begin, whole = int(store.offsets[first]), int(np.asarray(store.text_lengths[first:last]).sum())
    if start == begin and end == store.offsets[last]:
        return whole
    assert last == first + 1, "only a part of a single document is held out"
    after = int(store.offsets[last])
    if after - begin > DECODED_TOKENS:
        return whole * (end - start) / (after - begin)
    pieces = [_size(tokenizer, store.tokens[a:b].tolist()) for a, b in ((begin, start), (start, end), (end, after))]
    return whole * pieces[1] / max(1, sum(pieces))


def _size(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """UTF-8 bytes of what tokens decode to; a part of a character, which cannot be decoded, counts as one."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(str(text).replace("\N{REPLACEMENT CHARACTER}", "?").encode())
