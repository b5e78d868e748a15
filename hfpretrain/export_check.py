"""Whether an exported model predicts what the model predicts, on texts that it was made for."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from hfpretrain.data import everyday
from hfpretrain.data.sources import open_sources
from hfpretrain.errors import HFPretrainError
from hfpretrain.inference import CausalLM, MaskedLM
from hfpretrain.inference.words import positions_of
from hfpretrain.modeling.kept import forget_loading
from hfpretrain.recipe import load as load_recipe
from hfpretrain.recipe_stages import training_sources

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
"""`input_ids` and `attention_mask`, int64 [texts, tokens]."""

TOLERANCE = 1e-3
"""How far log-probabilities may differ: float32 in another order differs by 1e-5, a wrong weight by much more."""
TEXTS, TOKENS, LONGEST, MOST_CHARACTERS = 4, 32, 512, 20_000
_MASK_EACH = 7


@dataclass(frozen=True)
class Agreement:
    """How near two models are: over every token of the texts, padding not counted."""

    positions: int
    same: int
    """Positions where both have the same five likeliest tokens, to within TOLERANCE for the order of near ties."""
    worst: float
    """The largest difference of two log-probabilities."""

    @property
    def holds(self) -> bool:
        return self.same == self.positions and self.worst <= TOLERANCE


def save_tokenizer(llm: CausalLM | MaskedLM, folder: Path) -> list[Path]:
    """Saves the tokenizer as it is in the run; returns its files."""
    forget_loading(llm.tokenizer)
    return [Path(path) for path in llm.tokenizer.save_pretrained(folder)]


def real_texts(name: str) -> list[str]:
    """A few texts of the files of a run; builtin ones where it is no run, has none, or they cannot be read (said).

    A data set of the Hub is not asked for: of a run that was copied here it might have to be downloaded whole.
    """
    recipe_file = Path(name).expanduser() / "recipe.yaml"
    texts: Iterable[str] = ()
    if recipe_file.is_file():
        try:
            data = load_recipe(recipe_file).data
            local = [each for each in training_sources(data) if not (each[1].tokens or each[1].hub)]
            sources = open_sources(local[:1], on_bad_rows=data.on_bad_rows)
            texts = [document.text for source in sources for document in islice(source.documents(), TEXTS)]
        except HFPretrainError as error:
            log.info("the run's data cannot be read, so the check takes other texts (%s)", error.message)
    return [text[:MOST_CHARACTERS] for text in islice(chain(texts, everyday.documents()), TEXTS)]


def batches_of(llm: CausalLM | MaskedLM, texts: list[str]) -> list[Batch]:
    """Two batches of other shapes: the texts beside each other, cut and padded, and a single long row of them all.

    For a masked model every seventh token is a mask.
    """
    longest = min(positions_of(llm.model) or LONGEST, LONGEST)
    rows = [llm.tokenizer(text, verbose=False)["input_ids"] for text in texts]
    cut = [row[: min(TOKENS - 3 * number, longest)] for number, row in enumerate(rows)]
    batches = []
    for group in (cut, [[token for row in rows for token in row][:longest]]):
        width = max(map(len, group))
        ids = torch.full((len(group), width), llm.tokenizer.pad_token_id or 0)
        real = torch.zeros_like(ids)
        for number, row in enumerate(group):
            ids[number, : len(row)], real[number, : len(row)] = torch.tensor(row), 1
        if isinstance(llm, MaskedLM):
            ids[:, _MASK_EACH - 1 :: _MASK_EACH] = llm.tokenizer.mask_token_id
        batches.append({"input_ids": ids, "attention_mask": real})
    return batches


def agreement(llm: CausalLM | MaskedLM, batches: list[Batch], outputs: Iterable[Tensor]) -> Agreement:
    """Compares logits, float [texts, tokens, vocabulary] of each batch, with those of the model."""
    positions = same = 0
    worst = torch.zeros(())
    for batch, output in zip(batches, outputs, strict=True):
        with torch.no_grad():
            expected = llm.model(**batch).logits
        if output.shape != expected.shape:
            raise HFPretrainError(f"the export gives logits of shape {[*output.shape]}, not {[*expected.shape]}")
        real = batch["attention_mask"].bool()
        own, others = (logits[real].float().log_softmax(-1) for logits in (expected, output))
        best = own.topk(min(5, own.shape[-1])).indices
        # The model's five best have to be the export's five best; two that are as good may change places.
        behind = (others.topk(best.shape[-1]).values - others.gather(-1, best)).abs().amax(-1)
        worst = torch.maximum(worst, (own - others).abs().max())  # NaN where one of them is
        positions, same = positions + len(own), same + int((behind <= TOLERANCE).sum())
    return Agreement(positions, same, worst.item())
