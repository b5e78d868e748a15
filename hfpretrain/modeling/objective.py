"""The two objectives: how blocks become a micro-batch."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, default_data_collator

from hfpretrain.data.batches import Row
from hfpretrain.data.blocks import BoolArray
from hfpretrain.modeling.fim import FillIn, sentinels
from hfpretrain.modeling.masking import choose_spans, choose_words, highest_rate, most_targets, rate_of, word_borders
from hfpretrain.recipe import Masking, Recipe
from hfpretrain.recipe_stages import training_sources

IGNORED = -100
"""The label of a position that is no target."""

MicroBatch = dict[str, Tensor]
"""input_ids, labels, document_ids, each int64 [blocks, block_size]. Labels stand where they are predicted.

Where few positions are targets also `targets`, int64 [at least as many as there are]: their places in the flattened
labels, and if there are more, some places that are none.
"""


class Collator:
    """Rows to micro-batches, with the data collators of transformers.

    clm: the label of a position is the token after it, also across the end of a block, so that every token is
    predicted once; where the recipe says so, documents of training rows are turned round before (fim). mlm: masks are
    drawn for each row by itself from the row's own seed, so that they do not depend on how a batch is cut. `steps` is
    the length of the run, over which the masking rate may move; held-out rows have one of their own. With `static`,
    shapes are the same in every batch, as compiled models want.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        *,
        isolated: bool,
        masking: Masking | None = None,
        steps: int | None = None,
        static: bool = False,
    ) -> None:
        self.static = static
        self.isolated = isolated
        self.steps = steps
        self.masking = masking or recipe.masking
        self.held_out_rate = recipe.evaluation.masking_rate
        self.paired = any(source.prompt_column for _, source in training_sources(recipe.data))
        self.fill_in = FillIn(recipe.fim, tokenizer) if recipe.objective == "clm" and recipe.fim.rate else None
        self.masked: DataCollatorForLanguageModeling | None = None
        if recipe.objective == "mlm":
            self.masked = DataCollatorForLanguageModeling(
                tokenizer,
                mask_replace_prob=self.masking.mask,
                random_replace_prob=self.masking.random,
            )
            # Ids may have holes, so there may be larger ones than there are tokens.
            self.special = np.zeros(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1), dtype=np.bool_)
            self.special[tokenizer.all_special_ids] = True
            self.borders = word_borders(tokenizer) if self.masking.unit == "word" else None

    def __call__(self, rows: Sequence[Row]) -> MicroBatch:
        examples = [self._masked(row) if self.masked else self._next_word(row) for row in rows]
        batch: MicroBatch = default_data_collator(examples)
        if self.few_targets:
            capacity = self._capacity(batch["labels"].numel(), held_out=rows[0].step is None)
            batch["targets"] = target_places(batch["labels"], capacity)
        return batch

    @property
    def few_targets(self) -> bool:
        """Whether many positions are no targets, so that it pays to know which are."""
        return self.masked is not None or self.paired

    def _capacity(self, positions: int, *, held_out: bool) -> int | None:
        """How many places of targets a batch has room for where shapes are to stay the same: very rarely exceeded."""
        if not self.static or self.masked is None:
            return None
        rate = self.held_out_rate if held_out else highest_rate(self.masking)
        return min(positions, -(-most_targets(self.masking, rate, positions) // 64) * 64)

    def _next_word(self, row: Row) -> dict[str, Any]:
        block = row.block
        if self.fill_in is not None and row.step is not None:  # what is held out measures plain text
            block = self.fill_in(block, row.seed)
        learnt = block.targets[1:]
        if self.isolated:  # the first token of a document cannot be told from another document's end
            learnt = learnt & (block.documents[1:] == block.documents[:-1])
        return {
            "input_ids": block.token_ids[:-1],
            "labels": np.where(learnt, block.token_ids[1:], IGNORED),
            "document_ids": block.documents[:-1],
        }

    def _masked(self, row: Row) -> dict[str, Any]:
        assert self.masked is not None
        token_ids = row.block.token_ids[:-1]
        collator = copy.copy(self.masked)  # two threads may collate at once
        collator.generator = torch.Generator().manual_seed(row.seed)
        rate = self.held_out_rate if row.step is None else rate_of(self.masking, row.step, self.steps)
        collator.mlm_probability = rate
        maskable = self.maskable(row)
        if self.masking.unit != "token":
            maskable = self._chosen(row, maskable, collator.mlm_probability)
            collator.mlm_probability = 1.0  # they are chosen already, and it only replaces them
        kept = torch.from_numpy(~maskable)[None]
        inputs, labels = collator.torch_mask_tokens(torch.tensor(token_ids)[None], special_tokens_mask=kept)
        return {"input_ids": inputs[0], "labels": labels[0], "document_ids": torch.from_numpy(row.block.documents[:-1])}

    def maskable(self, row: Row) -> BoolArray:
        """Which of a block's tokens may be masked, [block_size]: those that may be learnt and are not special."""
        kept: BoolArray = row.block.targets[:-1] & ~self.special[row.block.token_ids[:-1]]
        return kept

    def _chosen(self, row: Row, maskable: BoolArray, rate: float) -> BoolArray:
        """The tokens of words or spans that are to be guessed; neither reaches over the border of a document."""
        random = np.random.default_rng(row.seed)
        documents = row.block.documents[:-1]
        begins = np.concatenate([[True], documents[1:] != documents[:-1]])
        if self.borders is None:
            return choose_spans(maskable, begins, rate, self.masking.mean_span, random)
        begins |= self.borders.begins(row.block.token_ids[:-1])
        return choose_words(maskable, begins, rate, random)


def check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError if the objective asks for what this tokenizer does not have, before any text is tokenised."""
    if recipe.objective == "mlm" and recipe.masking.unit == "word":
        word_borders(tokenizer)
    if recipe.objective == "clm" and recipe.fim.rate:
        sentinels(tokenizer)


def target_places(labels: Tensor, capacity: int | None = None) -> Tensor:
    """Where the targets are in the flattened labels, int64 [targets]; filled up to `capacity` with other places."""
    targets = (labels.flatten() != IGNORED).nonzero()[:, 0]
    missing = max(capacity or 0, 1) - len(targets)  # heads need not take nothing at all
    if missing <= 0:
        return targets
    others = (labels.flatten() == IGNORED).nonzero()[:missing, 0]
    return torch.cat([targets, others])
