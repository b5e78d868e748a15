"""What `hfpretrain check` says of the data: how it is cut into tokens, rows as the model sees them, and what usually
goes wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from hfpretrain.amounts import count
from hfpretrain.data.blocks import PADDING, IntArray
from hfpretrain.data.tokens import TokenStore, end_of_document
from hfpretrain.modeling.fim import sentinels
from hfpretrain.modeling.objective import IGNORED
from hfpretrain.training.session import Session

LENGTHS, TOKENS, CHUNK, POSITIONS = 100_000, 20_000_000, 20_000, 2**18
"""What is looked at, at most: documents for their lengths, tokens for their counts (in chunks from all over the text)
and positions of training rows."""
BAR = 30
FEW_TOKENS_EACH, MANY_UNKNOWN, UNSEEN, LARGE_VOCABULARY = 20, 0.01, 0.5, 1000
"""Limits of the warnings; the words of a small vocabulary are mostly bytes and characters, which may all be missing."""


@dataclass(frozen=True)
class DataFacts:
    """What the training sources (held-out part included) and the first training rows are like."""

    documents: int
    lengths: IntArray
    """Tokens of documents: of all, or of a sample."""
    tokens: int
    text_bytes: int
    counts: IntArray
    """How often each id occurs: in all tokens, or in a sample."""
    unknown: float | None
    """Share of the tokens counted; None where no token stands for what the vocabulary lacks."""
    padding: float
    """Share of the positions of the first rows."""
    targets: float
    """Share of what is no padding in them."""

    @property
    def sampled(self) -> bool:
        return int(self.counts.sum()) < self.tokens

    def lines(self) -> Iterator[tuple[str, str]]:
        """Names and values for the plan."""
        unknown = "no token for unknown text" if self.unknown is None else f"{self.unknown:.2%} unknown tokens"
        where = f" (in {count(int(self.counts.sum()))} of {count(self.tokens)} tokens)" if self.sampled else ""
        yield "text", f"{self.text_bytes / self.tokens:.2f} bytes per token, {unknown}{where}"
        yield "rows", f"{self.padding:.1%} padding, {self.targets:.1%} of the other tokens are targets"

    def histogram(self, block_size: int) -> str:
        """The lengths of documents: a line for each doubling."""
        longest = int(self.lengths.max())
        sample = f", {count(len(self.lengths))} of them looked at" if len(self.lengths) < self.documents else ""
        longer = float((self.lengths > block_size).mean())
        text = [
            f"Tokens per document ({count(self.documents)} documents{sample}; median {np.median(self.lengths):.0f}, "
            f"longest {longest}; {longer:.0%} longer than a block):"
        ]
        first, last = int(self.lengths.min()).bit_length() - 1, longest.bit_length() - 1
        step = -(-(last - first + 1) // 12)  # a dozen lines at most
        edges = [2**power for power in range(first, last + 1 + step, step)]
        shares = np.histogram(self.lengths, edges)[0] / len(self.lengths)
        width = len(f"{edges[-2]}-{edges[-1] - 1}")
        for low, high, share in zip(edges, edges[1:], shares, strict=False):
            bar = "█" * round(BAR * share / shares.max()) or ("▏" if share else "")
            text.append(f"{f'{low}-{high - 1}':>{width}}  {bar:<{BAR}} {share:6.1%}".rstrip())
        return "\n".join(text)

    def warnings(self, session: Session) -> Iterator[str]:
        """A sentence for each thing that usually is a mistake."""
        words, recipe = len(session.tokenizer), session.recipe
        if end_of_document(session.tokenizer, recipe.objective) is None:
            what = "no token ends a document, as the tokenizer has neither eos nor sep"
            yield f"{what}: the model does not learn where a text ends"
        trained = not (recipe.tokenizer.from_ or recipe.model.from_)
        advice = "a smaller tokenizer.vocab_size or more text" if trained else "a smaller tokenizer or more text"
        each = self.tokens / words
        unseen = 1 - np.count_nonzero(self.counts) / words
        if each < FEW_TOKENS_EACH:
            yield f"the vocabulary of {words} is large for the data, {each:.3g} tokens for each entry: take {advice}"
        elif unseen > UNSEEN and words > LARGE_VOCABULARY:
            where = "the tokens counted" if self.sampled else "the data"
            yield f"{unseen:.0%} of the vocabulary of {words} never occur in {where}: take {advice}"
        if self.unknown is not None and self.unknown > MANY_UNKNOWN:
            other = "tokenizer.algorithm: bpe or byte" if trained else "a tokenizer that was made for such text"
            yield f"{self.unknown:.1%} of the tokens are unknown, their text is lost: take {other}"


def data_facts(session: Session) -> DataFacts:
    """Counted over everything, or over samples where that is large."""
    tokenizer, batches = session.tokenizer, session.batches
    stores = batches.stores
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for store in stores:
        _count(store, TOKENS // len(stores), counts)
    # GPT-2 names its end of text as the unknown token, which it never needs.
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    unknown = None
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in ends:
        unknown = float(counts[tokenizer.unk_token_id] / counts.sum())
    rows = min(batches.blocks, max(16, POSITIONS // session.recipe.data.block_size))
    first = [batches.row(position) for position in range(rows)]
    size = len(first[0].block.token_ids)  # a later stage may have blocks of another
    batch = session.collator([row for row in first if len(row.block.token_ids) == size])
    shown = batch["document_ids"] != PADDING
    return DataFacts(
        documents=sum(len(store.keys) for store in stores),
        lengths=np.concatenate([_lengths(store, LENGTHS // len(stores)) for store in stores]),
        tokens=sum(len(store.tokens) for store in stores),
        text_bytes=sum(store.text_bytes for store in stores),
        counts=counts,
        unknown=unknown,
        padding=1 - float(shown.float().mean()),
        targets=float((batch["labels"] != IGNORED).sum() / shown.sum()),
    )


def _lengths(store: TokenStore, at_most: int) -> IntArray:
    """Tokens of each document, or of so many from all over the text."""
    documents = np.arange(len(store.keys))
    if len(documents) > at_most:
        documents = np.linspace(0, len(documents) - 1, at_most).astype(np.int64)
    return np.asarray(store.offsets[documents + 1] - store.offsets[documents])


def _count(store: TokenStore, at_most: int, counts: IntArray) -> None:
    """Adds how often each id occurs in all tokens, or in about so many in chunks from all over the text."""
    chunks = -(-len(store.tokens) // CHUNK)
    taken = np.linspace(0, chunks - 1, min(chunks, max(1, at_most // CHUNK))).astype(np.int64)
    for chunk in taken:
        found = np.bincount(store.tokens[chunk * CHUNK : (chunk + 1) * CHUNK])
        counts[: len(found)] += found


def legend(session: Session) -> Text:
    """What the marks in sample rows mean."""
    if session.recipe.objective == "mlm":
        return Text.assemble(("|", "magenta"), " document border, ", ("[MASK: the word to guess]", "bold green"))
    text = Text.assemble(("|", "magenta"), " document border, ", ("{no target}", "dim"))
    if session.collator.fill_in is not None:
        text.append(", ").append("<|fim_...|>", "cyan").append(" of a document that is turned round")
    return text


def sample_row(session: Session, position: int) -> Text:
    """One training row, decoded token by token, with masks, prompts, sentinels and document borders shown."""
    row = session.batches.row(position)
    batch = session.collator([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    documents = batch["document_ids"][0].tolist()
    masked, paired = session.recipe.objective == "mlm", session.collator.paired
    tokenizer = session.tokenizer
    marks = set() if session.collator.fill_in is None else set(sentinels(tokenizer))
    pieces: list[Text] = []
    run: list[int] = []

    def flush() -> None:
        if run:
            pieces.append(Text(tokenizer.decode(run), "green" if paired else ""))
            run.clear()

    def show(text: str, style: str) -> None:
        flush()
        pieces.append(Text(text, style))

    for place, token in enumerate(ids):
        if place and documents[place] != documents[place - 1]:
            show("|", "magenta")
        if documents[place] == PADDING:
            break
        if masked and labels[place] != IGNORED:
            show(f"[{tokenizer.decode([token]).strip()}: {tokenizer.decode([labels[place]]).strip()}]", "bold green")
        elif paired and not row.block.targets[place]:
            show("{" + tokenizer.decode([token]) + "}", "dim")
        elif token in marks:
            show(tokenizer.decode([token]), "cyan")
        else:
            run.append(token)
    flush()
    return Text(" ").join(pieces)
