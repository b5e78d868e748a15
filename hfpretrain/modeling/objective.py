"""The two objectives: how blocks become a micro-batch, and the loss summed over its targets."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from hfpretrain.data.batches import Row
from hfpretrain.data.blocks import PADDING
from hfpretrain.modeling.attention import DocumentMasking, document_inputs
from hfpretrain.recipe import Masking, Recipe

IGNORED = -100
"""The label of a position that is no target."""

MicroBatch = dict[str, Tensor]
"""input_ids, labels, document_ids, each int64 [blocks, block_size]. Labels stand where they are predicted."""


class Collator:
    """Rows to micro-batches, with the data collators of transformers.

    clm: the label of a position is the token after it, also across the end of a block, so that every token is
    predicted once. mlm: masks are drawn for each row by itself from the row's own seed, so that they do not
    depend on how a batch is cut.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, isolated: bool, masking: Masking | None = None
    ) -> None:
        self.isolated = isolated
        self.masked: DataCollatorForLanguageModeling | None = None
        if recipe.objective == "mlm":
            masking = masking or recipe.masking
            self.masked = DataCollatorForLanguageModeling(
                tokenizer,
                mlm_probability=masking.rate,
                mask_replace_prob=masking.mask,
                random_replace_prob=masking.random,
            )
            # Ids may have holes, so there may be larger ones than there are tokens.
            self.special = np.zeros(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1), dtype=np.bool_)
            self.special[tokenizer.all_special_ids] = True

    def __call__(self, rows: Sequence[Row]) -> MicroBatch:
        examples = [self._masked(row) if self.masked else self._next_word(row) for row in rows]
        batch: MicroBatch = default_data_collator(examples)
        return batch

    def _next_word(self, row: Row) -> dict[str, Any]:
        block = row.block
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
        token_ids, targets = row.block.token_ids[:-1], row.block.targets[:-1]
        collator = copy.copy(self.masked)  # two threads may collate at once
        collator.generator = torch.Generator().manual_seed(row.seed)
        kept = torch.from_numpy(self.special[token_ids] | ~targets)[None]
        inputs, labels = collator.torch_mask_tokens(torch.tensor(token_ids)[None], special_tokens_mask=kept)
        return {"input_ids": inputs[0], "labels": labels[0], "document_ids": torch.from_numpy(row.block.documents[:-1])}


class Loss:
    """The summed cross-entropy of a micro-batch under a model, in nats."""

    def __init__(self, model: PreTrainedModel, how: DocumentMasking | None) -> None:
        self.how = how
        self.bidirectional = not getattr(model.config, "is_decoder", False) and not model.can_generate()
        accepted = inspect.signature(model.forward).parameters
        self.fixed = {"use_cache": False} if "use_cache" in accepted else {}

    def inputs(self, batch: MicroBatch) -> dict[str, Any]:
        """What the model is called with."""
        inputs = {"input_ids": batch["input_ids"], **self.fixed}
        documents = batch["document_ids"]
        if self.how is not None:
            inputs |= document_inputs(documents, self.how)
        elif self.bidirectional and bool((documents == PADDING).any()):
            # A causal model never looks at padding, which comes last.
            inputs["attention_mask"] = (documents != PADDING).long()
        return inputs

    def __call__(self, model: torch.nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The sum over targets, float32 [], and how many targets were predicted right, int64 []."""
        logits = model(**self.inputs(batch)).logits
        chosen = batch["labels"] != IGNORED
        logits, labels = logits[chosen].float(), batch["labels"][chosen]
        total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return total, (logits.detach().argmax(-1) == labels).sum()
