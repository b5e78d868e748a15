"""One evaluation: the held-out blocks, each token by itself if asked for, other metrics, and minimal pairs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain.data.batches import Batches
from hfpretrain.data.coverage import covered_bytes
from hfpretrain.evaluation.held_out import Sums, look_at_blocks, look_at_each_token
from hfpretrain.evaluation.looking import GivenUp, Looker
from hfpretrain.evaluation.other_metrics import OtherMetrics
from hfpretrain.evaluation.pairs import Pairs, read_pairs
from hfpretrain.evaluation.results import Evaluated
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.objective import Collator
from hfpretrain.place import Place
from hfpretrain.recipe import Recipe


@dataclass(kw_only=True)
class Evaluator:
    """What there is to look at, read and tried out before any training. Calling it evaluates a model."""

    loss: Loss
    accelerator: Accelerator
    place: Place = Place()
    block_size: int
    """Tokens of a block: with the blocks of a micro-batch, how many are looked at at once."""
    batches: Batches | None = None
    """None where no blocks are to be looked at."""
    collator: Collator | None = None
    text_bytes: float | None = None
    """UTF-8 bytes of the text that all targets cover; of a masked model, all tokens."""
    mask_id: int | None = None
    """Of a masked model whose tokens are each to be masked by itself."""
    pairs: Pairs | None = None
    others: OtherMetrics = field(default_factory=lambda: OtherMetrics(()))

    @property
    def looks(self) -> bool:
        """Whether there is anything to look at."""
        return self.batches is not None or self.pairs is not None

    @torch.no_grad()
    def __call__(
        self,
        model: torch.nn.Module,
        *,
        micro_batch_size: int,
        max_tokens: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> Evaluated | None:
        """What the model came to, on so many held-out tokens at most. It is the same on every process.

        None where `stopped`, which is asked before each micro-batch, said so on one of them. `tell` is called after
        each with how many there were, and how many there are, of the part that is looked at.
        """
        looker = Looker(
            model=model, loss=self.loss, accelerator=self.accelerator, place=self.place, stopped=stopped, tell=tell
        )
        was_training = model.training
        model.eval()
        try:
            found = self._held_out(looker, micro_batch_size, max_tokens)
            if self.pairs:
                found["pairs"] = self.pairs.look(looker, batch_tokens=micro_batch_size * self.block_size)
            return Evaluated(**found)
        except GivenUp:
            self.others.found = []
            return None
        finally:
            model.train(was_training)

    def blocks(self, max_tokens: int | None) -> int:
        """How many held-out blocks so many tokens are."""
        if self.batches is None or self.batches.validation is None:
            return 0
        count = len(self.batches.validation)
        return count if max_tokens is None else min(count, max(1, max_tokens // self.batches.validation.block_size))

    def _held_out(self, looker: Looker, micro_batch_size: int, max_tokens: int | None) -> dict[str, Any]:
        if self.batches is None:
            return {}
        assert self.collator is not None
        assert self.batches.validation is not None
        size, count = self.batches.validation.block_size, self.blocks(max_tokens)
        sums = look_at_blocks(
            looker,
            self.batches,
            self.collator,
            count,
            micro_batch_size=micro_batch_size,
            each=lambda first, scores: self.others.take(first, scores, size),
        )
        others = self.others.compute(self.accelerator, self.place)
        masked = self.collator.masked is not None
        found = _computed(sums, None if masked else self._text_bytes(sums))
        if self.mask_id is not None:
            of_each = look_at_each_token(
                looker, self.batches, self.collator, count, self.mask_id, micro_batch_size=micro_batch_size
            )
            pseudo = _computed(of_each, self._text_bytes(sums))
            kept = ("loss", "perplexity", "bits_per_byte")
            found |= {f"pseudo_{name}": pseudo[name] for name in kept if name in pseudo}
        return found | {"others": others}

    def _text_bytes(self, sums: Sums) -> float | None:
        """Of what was looked at: all of the text, or the share of it that its tokens are."""
        assert self.batches is not None
        assert self.batches.validation is not None
        return self.text_bytes and self.text_bytes * sums.tokens / self.batches.validation.tokens


def _computed(sums: Sums, text_bytes: float | None) -> dict[str, Any]:
    from hfpretrain.metrics import LanguageModeling  # with datasets and evaluate, half a second: not before training

    metric = LanguageModeling(keep_in_memory=True)
    parts = {"nats": [sums.nats], "targets": [sums.targets], "right": [sums.right], "right_in_5": [sums.right_in_5]}
    found: dict[str, Any] = metric.compute(**parts, text_bytes=text_bytes)
    return found


def prepare_evaluator(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    loss: Loss,
    accelerator: Accelerator,
    *,
    batches: Batches | None,
    collator: Collator | None,
    text_begins: bool = False,
) -> Evaluator:
    """Reads and tries out what the recipe wants looked at. RecipeError or DataError for what is of no use.

    With `text_begins`, the sentences of minimal pairs begin with the beginning-of-text token whatever the tokenizer
    does by itself; in a run they do so unless no token of its documents was predicted from it.
    """
    settings, masked = recipe.evaluation, recipe.objective == "mlm"
    with accelerator.main_process_first():  # a metric's script is copied into a cache
        others = OtherMetrics(settings.metrics)
    evaluator = Evaluator(
        loss=loss,
        accelerator=accelerator,
        place=Place.in_run(accelerator, recipe.parallel),
        others=others,
        block_size=recipe.data.block_size,
    )
    isolated = loss.how is not None
    if settings.pairs is not None:
        begins = text_begins or not isolated
        evaluator.pairs = read_pairs(settings.pairs, tokenizer, model, masked=masked, begins=begins)
    if batches is not None and batches.validation is not None:
        evaluator.batches, evaluator.collator = batches, collator
        evaluator.text_bytes = covered_bytes(batches.validation, tokenizer, first_predicted=masked, isolated=isolated)
        evaluator.mask_id = tokenizer.mask_token_id if masked and settings.pseudo_perplexity else None
    return evaluator
