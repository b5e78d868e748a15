"""Filling masks with a masked language model."""

import functools
import re
from typing import Any

import torch

from hfpretrain.errors import ModelError, UserError
from hfpretrain.inference.words import Prediction, TokenText, check_at_least_one, positions_of, rows_of


class MaskedLM:
    """A model that fills masks. `model` and `tokenizer` are those of transformers, `name` is what was loaded."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        if tokenizer.mask_token is None:
            raise ModelError(f"the tokenizer of {name} has no mask token, so nothing can be filled")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._text = TokenText(tokenizer, rows_of(model))
        self._limit = positions_of(model)
        self._mask = re.compile("|".join(map(re.escape, {"[MASK]", "<mask>", str(tokenizer.mask_token)})))

    def predict_mask(self, text: str) -> str | list[str]:
        """The best token for the mask in `text`, such as "brown"; with several masks a list, one for each.

        Raises UserError as `fill` does.
        """
        best = [predictions[0].token for predictions in self.fill(text, top_k=1)]
        return best[0] if len(best) == 1 else best

    def fill(self, text: str, *, top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` best tokens for each mask in `text`, in one forward pass: a list per mask, the best first.

        `[MASK]`, `<mask>` and the model's own mask token mean the same. Each mask is predicted on its own, with the
        others hidden; in the sentence of a prediction the other masks hold their own best token. Raises UserError
        for a text without a mask, or longer than the model's positions.
        """
        check_at_least_one(top_k=top_k)
        around = self._mask.split(text)
        if len(around) == 1:
            raise UserError(
                f"there is no mask in {_shortened(text)!r}",
                hint='write [MASK] where a word is missing, as in "The quick [MASK] fox"',
            )
        encoded = self.tokenizer(self.tokenizer.mask_token.join(around), return_tensors="pt", verbose=False)
        ids = encoded["input_ids"][0]
        if self._limit is not None and len(ids) > self._limit:
            raise UserError(
                f"the text is {len(ids):,} tokens long, and {self.name} takes {self._limit:,} at most",
                hint="shorten the text around the mask",
            )
        self._text.check(ids.tolist(), self.name)
        at_masks = (ids == self.tokenizer.mask_token_id).nonzero()[:, 0]
        assert len(at_masks) == len(around) - 1, "the tokenizer keeps every mask whole"
        inputs = {name: value.to(self.model.device) for name, value in encoded.items()}
        with torch.no_grad():
            logits = self.model(**inputs).logits[0, at_masks.to(self.model.device)].float().cpu()
        logits[:, self._text.never] = -torch.inf
        top = logits.softmax(-1).topk(min(top_k, logits.shape[1] - len(self._text.never)))
        best = [self._text.piece(tokens[0]) for tokens in top.indices.tolist()]
        filled = []
        for mask, (tokens, probabilities) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
            predictions = []
            for token, probability in zip(tokens, probabilities, strict=True):
                pieces = [*best[:mask], self._text.piece(token), *best[mask + 1 :]]
                predictions.append(Prediction(self._text.name(token), probability, self._put_in(around, pieces)))
            filled.append(predictions)
        return filled

    def _put_in(self, around: list[str], pieces: list[str]) -> str:
        """The text with a piece in place of each mask, spaced as a reader expects."""
        sentence = around[0]
        for piece, after in zip(pieces, around[1:], strict=True):
            if self._mask_hides_space:
                sentence = sentence.rstrip(" ") if not piece.startswith(" ") else sentence
                # A new word after a letter needs its space; after an opening bracket or a hyphen it does not.
                piece = piece if piece.startswith(" ") and sentence[-1:].isalnum() else piece.lstrip(" ")
            elif sentence.endswith(" ") or not sentence:
                piece = piece.removeprefix(" ") or piece
            sentence += piece + after
        return sentence

    @functools.cached_property
    def _mask_hides_space(self) -> bool:
        """Whether the model cannot see a space before a mask, so that the predicted token decides about it."""
        word, mask = self._text.decode(self._text.anchor).strip(), self.tokenizer.mask_token
        return bool(self.tokenizer(f"{word} {mask}")["input_ids"] == self.tokenizer(word + mask)["input_ids"])


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
