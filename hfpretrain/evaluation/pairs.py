"""Minimal pairs: whether a model finds the good sentence likelier than the bad one that differs in little.

In the format of BLiMP (Warstadt et al. 2020): a line of JSON for each pair, with sentence_good and sentence_bad.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.blocks import PADDING
from hfpretrain.data.encoding import Encoder, Piece
from hfpretrain.errors import DataError
from hfpretrain.evaluation.looking import Looker
from hfpretrain.inference.words import positions_of
from hfpretrain.modeling.objective import IGNORED, MicroBatch, target_places

SENTENCES = ("sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Sentence:
    """A sentence as the model sees it."""

    ids: tuple[int, ...]
    own: range
    """The places of its own tokens, without special ones around them."""


@dataclass(kw_only=True)
class Pairs:
    """Minimal pairs, with each different sentence once: what is equal to the model is a tie, to the last bit."""

    sentences: list[Sentence]
    """By length, so that batches hold little padding."""
    good: list[int]
    """[pairs]: numbers of sentences; so is `bad`."""
    bad: list[int]
    groups: dict[str, list[str | None]]
    """The other keys of the file that group pairs: [pairs] each."""
    mask_id: int | None
    """Of a masked model."""
    padding_id: int

    def look(self, looker: Looker, *, batch_tokens: int) -> dict[str, Any]:
        """Accuracy over all pairs and in each group."""
        found = self.likelihoods(looker, batch_tokens=batch_tokens)
        return self._computed(found[self.good].tolist(), found[self.bad].tolist())

    def likelihoods(self, looker: Looker, *, batch_tokens: int) -> Tensor:
        """The log-likelihood of each sentence, in nats, float64 [sentences].

        It is that of all its tokens or, of a masked model, of each masked by itself (Salazar et al. 2020), summed.
        Processes take turns by batch of about so many tokens.
        """
        likelihoods = torch.zeros(len(self.sentences), dtype=torch.float64)
        group, groups = looker.place.number, looker.place.of
        own = (batch for place, batch in enumerate(self._batches(batch_tokens)) if place % groups == group)
        of = -(-sum(1 for _ in self._batches(batch_tokens)) // groups)
        for batch, scores in looker.scores(map(self._micro_batch, own), of):
            rows = scores.places // batch["labels"].shape[1]
            likelihoods.index_add_(0, batch["sentences"][rows].cpu(), -scores.nats.cpu().double())
        return looker.added(likelihoods)

    def _batches(self, batch_tokens: int) -> Iterator[list[tuple[int, int]]]:
        """(sentence, masked place) of each row; the place means nothing to a next-word model."""
        batch: list[tuple[int, int]] = []
        for number, sentence in enumerate(self.sentences):
            for place in sentence.own if self.mask_id is not None else (0,):
                if batch and (len(batch) + 1) * len(sentence.ids) > batch_tokens:
                    yield batch
                    batch = []
                batch.append((number, place))
        if batch:
            yield batch

    def _micro_batch(self, batch: list[tuple[int, int]]) -> MicroBatch:
        length = len(self.sentences[batch[-1][0]].ids)
        input_ids = torch.full((len(batch), length), self.padding_id)
        labels = torch.full((len(batch), length), IGNORED)
        document_ids = torch.full((len(batch), length), PADDING)
        for row, (number, place) in enumerate(batch):
            sentence = self.sentences[number]
            ids = torch.tensor(sentence.ids)
            input_ids[row, : len(ids)] = ids
            document_ids[row, : len(ids)] = 0
            if self.mask_id is None:
                predicted = slice(max(1, sentence.own.start), sentence.own.stop)
                labels[row, predicted.start - 1 : predicted.stop - 1] = ids[predicted]
            else:
                labels[row, place] = ids[place]
                input_ids[row, place] = self.mask_id
        found: dict[str, Tensor] = {"input_ids": input_ids, "labels": labels, "document_ids": document_ids}
        return found | {"targets": target_places(labels), "sentences": torch.tensor([number for number, _ in batch])}

    def _computed(self, good: list[float], bad: list[float]) -> dict[str, Any]:
        from hfpretrain.metrics import MinimalPairs  # with datasets and evaluate, half a second: not before training

        metric = MinimalPairs(keep_in_memory=True)
        found: dict[str, Any] = metric.compute(good=good, bad=bad)
        found["groups"] = {
            key: {
                value: metric.compute(
                    good=[one for one, own in zip(good, values, strict=True) if own == value],
                    bad=[one for one, own in zip(bad, values, strict=True) if own == value],
                )
                for value in sorted({value for value in values if value is not None})
            }
            for key, values in self.groups.items()
        }
        return found


def read_pairs(path: str, tokenizer: PreTrainedTokenizerBase, model: Any, *, masked: bool, begins: bool) -> Pairs:
    """The minimal pairs of a .jsonl file. DataError, with file and line, for what is none.

    A text begins with the special tokens that the tokenizer puts there, if it does so; with `begins`, otherwise with
    its beginning-of-text token, if it has one. The end of the text is not among what a next-word model is asked for.
    """
    lines = list(_lines(path))
    if not lines:
        raise DataError(f"{path} holds no pairs", hint="a line of JSON for each, with sentence_good and sentence_bad")
    limit, sentence_of = positions_of(model), _Encoding(tokenizer, masked=masked, begins=begins)
    known: dict[Sentence, int] = {}
    pairs: list[tuple[int, int]] = []
    for number, line in lines:
        pair = []
        for key in SENTENCES:
            sentence = sentence_of(line[key])
            if not sentence.own:
                raise DataError(f"{path}:{number}: {key} is empty", hint="give a sentence, or remove the line")
            if limit and len(sentence.ids) > limit:
                said = f"{key} is {len(sentence.ids):,} tokens long, and the model takes {limit:,} at most"
                raise DataError(f"{path}:{number}: {said}")
            pair.append(known.setdefault(sentence, len(known)))
        pairs.append((pair[0], pair[1]))
    sentences = list(known)
    order = sorted(range(len(sentences)), key=lambda each: len(sentences[each].ids))
    place = np.argsort(order).tolist()
    return Pairs(
        sentences=[sentences[each] for each in order],
        good=[place[one] for one, _ in pairs],
        bad=[place[other] for _, other in pairs],
        groups=_groups([line for _, line in lines]),
        mask_id=tokenizer.mask_token_id if masked else None,
        padding_id=tokenizer.pad_token_id or 0,
    )


def _lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The pairs with their line numbers. DataError where a line is no pair."""
    hint = "a line of JSON for each pair, with sentence_good and sentence_bad"
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"the pairs {path} cannot be read: {error.strerror or error}", hint=hint) from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x})", hint=hint) from None
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number}: not JSON", hint=hint) from None
        if not isinstance(pair, dict):
            raise DataError(f"{path}:{number}: not a JSON object", hint=hint)
        if not _is_encodable(pair):
            raise DataError(f"{path}:{number}: holds half of a surrogate pair (\\ud800 to \\udfff)", hint=hint)
        for key in SENTENCES:
            if key not in pair or not isinstance(pair[key], str):
                raise DataError(
                    f"{path}:{number}: {key} is {'missing' if key not in pair else 'not a text'}", hint=hint
                )
        yield number, pair


def _is_encodable(pair: dict[str, Any]) -> bool:
    """Whether all keys and texts are characters: JSON may hold halves of some, which no tokenizer or terminal takes."""
    try:
        json.dumps(pair, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _groups(lines: list[dict[str, Any]]) -> dict[str, list[str | None]]:
    """The keys whose values are texts of which some stand for several pairs, as UID and linguistics_term do."""
    keys = {key: None for line in lines for key, value in line.items() if isinstance(value, str)}
    found = {}
    for key in keys:
        values = [line.get(key) if isinstance(line.get(key), str) else None for line in lines]
        there = [value for value in values if value is not None]
        if key not in SENTENCES and len(set(there)) < len(there):
            found[key] = values
    return found


class _Encoding:
    """Text to a sentence, as training prepares documents, but for their end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, masked: bool, begins: bool) -> None:
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer, None)
        if self.encoder.texts is None:  # written in Python: it says so only with a text
            whole, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
            at = next((at for at in range(len(whole)) if whole[at : at + len(inner)] == inner), 0)
            self.before, self.after = whole[:at], whole[at + len(inner) :]
        else:
            self.before, self.after = self.encoder.before, self.encoder.after
        if not masked:
            self.after = []
            if begins and not self.before and tokenizer.bos_token_id is not None:
                self.before = [tokenizer.bos_token_id]

    def __call__(self, text: str) -> Sentence:
        if self.encoder.texts is None:
            own = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        else:
            own = self.encoder.encode([Piece(text, None, last=True)]).tokens
        ids = (*self.before, *map(int, own), *self.after)
        return Sentence(ids, range(len(self.before), len(ids) - len(self.after)))
