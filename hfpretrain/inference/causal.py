"""Continuing a text with a causal language model, and the probabilities of its next words."""

import functools
import heapq
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfpretrain.errors import UserError
from hfpretrain.inference.words import (
    WORD,
    WORD_END,
    Prediction,
    TokenText,
    check_at_least_one,
    ends_a_word,
    first_word,
    positions_of,
    rows_of,
    shape_of,
)

log = logging.getLogger(__name__)

# Spellings of a word that are less probable than this are not followed.
_NEGLIGIBLE = 1e-6

_Start = Callable[[Callable[[str], None], threading.Event], None]


class CausalLM:
    """A model that continues a text. `model` and `tokenizer` are those of transformers, `name` is what was loaded.

    Sampling settings that a model brings along (its generation_config) are dropped: only what is asked for is done.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        text = TokenText(tokenizer, rows_of(model))
        own = model.generation_config.eos_token_id
        # A config made without the tokenizer may name any id as the end; a real one is a special token.
        self._ends = sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} & set(text.special))
        text.never = [token for token in text.never if token not in self._ends]
        self._text = text
        self._limit = positions_of(model)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (self._ends or [0])[0]
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=self._ends or None, pad_token_id=pad
        )

    def generate(
        self,
        prompt: str,
        *,
        words: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """The continuation of `prompt`, without the prompt and without the space between the two.

        Stops at the end of the text, after `max_new_tokens` (64, or 16 a word, unless given), where the model's
        context ends, or with `words` after so many whole words, at least one; then what stands around them is left
        out. Spaces at
        the end of a prompt are dropped where tokens carry the space before a word, as nearly all do.

        `temperature` 0 takes the most probable token each time; above 0 it samples, from the `top_k` best tokens and
        the smallest set that holds `top_p` of the probability, if given. A `seed` makes that repeatable; the global
        random state is neither used nor changed. Raises UserError for values out of range, a prompt that leaves no
        room in the context, and an empty prompt if the model has no token to start from.
        """
        pieces: list[str] = []
        start = self._prepared(prompt, words, max_new_tokens, temperature, top_k, top_p, seed)
        start(pieces.append, threading.Event())
        return "".join(pieces)

    def stream(
        self,
        prompt: str,
        *,
        words: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """What `generate` returns, in pieces as they come. Leaving the loop early stops the model."""
        return _pump(self._prepared(prompt, words, max_new_tokens, temperature, top_k, top_p, seed))

    def next_words(self, prompt: str, *, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable next words (or punctuation marks) after `prompt`, the best first.

        A probability is that of the whole word: of all its tokens and of something after them that ends it, summed
        over the ways to spell it. Found by best-first search over tokens in a bounded number of passes, so each is
        a lower bound, exact but for the least probable spellings; together they are at most 1. Raises UserError as
        `generate` does.
        """
        check_at_least_one(top_k=top_k)
        prompt, ids = self._encode(prompt)
        found: dict[str, float] = {}
        sentences: dict[str, str] = {}
        # What may become a word: its probability (negative, for the heap) and its tokens.
        waiting: list[tuple[float, list[int]]] = [(-1.0, [])]
        width = max(1, min(16, 4096 // len(ids)))
        for _ in range(32):
            enough = sorted(found.values())[-top_k] if len(found) >= top_k else _NEGLIGIBLE
            paths: list[tuple[float, list[int]]] = []
            while waiting and -waiting[0][0] > enough and len(paths) < width:
                paths.append(heapq.heappop(waiting))
            if not paths:
                break
            distributions = self._next_tokens([ids + path for _, path in paths])
            for (negative, path), distribution in zip(paths, distributions, strict=True):
                for share, longer, text, word in self._extended(ids, path, distribution):
                    probability = -negative * share
                    if probability <= _NEGLIGIBLE:
                        continue
                    if not word:
                        heapq.heappush(waiting, (-probability, longer))
                        continue
                    found[word] = found.get(word, 0.0) + probability
                    between = text[: len(text) - len(text.lstrip())] if prompt else ""
                    sentences.setdefault(word, prompt + between + word)
        ranked = sorted(found.items(), key=lambda item: -item[1])[:top_k]
        return [Prediction(word, probability, sentences[word]) for word, probability in ranked]

    def word_probabilities(self, text: str, *, prompt: str = "") -> list[Prediction]:
        """The words of `text`, which goes on from `prompt`, each with its probability given all that stands before it.

        A word is a word, a mark or a space with what is next to it in a token; joined they are `text`. Its probability
        is the product of those of its tokens, as the tokenizer spells it. Without a prompt, and where nothing is put in
        front of a text, the first token has none and is left out. Raises UserError as `generate` does.
        """
        prompt, before = self._encode(prompt) if prompt else (prompt, [])
        _, ids = self._encode(prompt + text, room=0)
        # The prompt's last tokens may be others with the text behind them, which are looked at then.
        pairs = enumerate(zip(before, ids, strict=False))
        start = max(1, next((at for at, (one, other) in pairs if one != other), len(before)))
        rows = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=rows, use_cache=False).logits[0, start - 1 : -1].float().cpu()
        logits[:, self._text.never] = -torch.inf
        found: list[Prediction] = []
        known = 0
        shares = torch.softmax(logits, -1)[torch.arange(len(ids) - start), torch.tensor(ids[start:])].tolist()
        for end, share in enumerate(shares, start=start + 1):
            # The bytes of a character may be spread over tokens; until the last has come they decode to this.
            so_far = self._text.after(ids[:start], ids[start:end])
            so_far = so_far.rstrip("\N{REPLACEMENT CHARACTER}") if end < len(ids) else so_far
            piece, known = so_far[known:], max(known, len(so_far))
            last = found[-1] if found else None
            if last and (not piece or (shape_of(last.token[-1:]) in "wj?" and shape_of(piece[:1]) in "wj?")):
                found[-1] = Prediction(last.token + piece, last.probability * share, prompt + so_far)
            else:
                found.append(Prediction(piece, share, prompt + so_far))
        return found

    def _extended(
        self, ids: list[int], path: list[int], distribution: torch.Tensor
    ) -> Iterator[tuple[float, list[int], str, str]]:
        """What the next token can make of `path`: probability, tokens, text, and the word if it is whole, else ""."""
        text = self._text.after(ids, path)
        word, rest = first_word(text)
        if word and not rest:
            yield float(distribution[self._ends_word].sum()), path, text, word
            distribution = distribution.masked_fill(self._ends_word, 0.0)
        best = distribution.topk(min(64, len(distribution)))
        for token, share in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            if token in self._ends:
                continue
            longer = self._text.after(ids, [*path, token])
            word, rest = first_word(longer)
            is_mark = bool(word) and not WORD.match(shape_of(word))
            at_limit = self._limit is not None and len(ids) + len(path) + 1 >= self._limit
            yield share, [*path, token], longer, word if is_mark or at_limit or ends_a_word(rest) else ""

    @functools.cached_property
    def _ends_word(self) -> torch.Tensor:
        """Which tokens end a word that they follow, by their text: a bool for each row of the vocabulary."""
        ends = torch.tensor([ends_a_word(piece) for piece in self._text.pieces])
        ends[self._text.never] = False
        ends[self._ends] = True
        return ends

    def _next_tokens(self, sequences: list[list[int]]) -> torch.Tensor:
        """The probabilities of the token after each sequence: (sequences, rows) on the CPU."""
        longest = max(map(len, sequences))
        # Padding on the right: in a causal model nothing before it can see it.
        rows = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in sequences], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits
        last = torch.tensor([len(ids) - 1 for ids in sequences], device=logits.device)
        logits = logits[torch.arange(len(sequences), device=logits.device), last].float().cpu()
        logits[:, self._text.never] = -torch.inf
        return torch.softmax(logits, -1)

    def _encode(self, prompt: str, room: int = 1) -> tuple[str, list[int]]:
        """The prompt as it is continued, and its ids with the special tokens that belong in front of it.

        There has to be room in the model's context for so many tokens more.
        """
        if prompt.endswith(" ") and any(piece[0] == " " != piece for piece in self._text.pieces if piece):
            prompt = prompt.rstrip(" ")
        encoded = self.tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
        ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
        # What the tokenizer puts behind a text ends it; here it goes on.
        while added and added.pop():
            ids.pop()
        if not ids:
            starts = [id_ for id_ in (self.tokenizer.bos_token_id, *self._ends) if id_ is not None]
            if not starts:
                raise UserError(
                    f"the prompt is empty, and {self.name} has no token to start from", hint="give a first word"
                )
            ids = starts[:1]
        if self._limit is not None and len(ids) + room > self._limit:
            raise UserError(
                f"the prompt is {len(ids):,} tokens long, and {self.name} takes {self._limit:,} with the continuation",
                hint="shorten the prompt",
            )
        self._text.check(ids, self.name)
        return prompt, ids

    def _prepared(
        self,
        prompt: str,
        words: int | None,
        max_new_tokens: int | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> _Start:
        """Checks what is asked for; the result runs it, giving pieces of text until done or told to stop."""
        check_at_least_one(words=words, max_new_tokens=max_new_tokens, top_k=top_k)
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature is {temperature}; it is 0 or more", hint="0 always takes the best token")
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(f"top_p is {top_p}; it is above 0 and at most 1")
        _, ids = self._encode(prompt)
        asked = max_new_tokens or max(64, 16 * (words or 0))
        room = asked if self._limit is None else min(asked, self._limit - len(ids))
        processors: list[Any] = []
        if self._text.never:
            processors.append(SuppressTokensLogitsProcessor(self._text.never, device=self.model.device))
        if words and self._ends:
            # A word was asked for, so the text does not end before there is one.
            begin = SuppressTokensAtBeginLogitsProcessor(self._ends, len(ids), device=str(self.model.device))
            processors.append(begin)
        if temperature > 0:
            # Transformers samples from the global random state; the best of noisy scores is a sample too.
            processors.append(TemperatureLogitsWarper(float(temperature)))
            processors += [TopKLogitsWarper(top_k)] if top_k is not None else []
            processors += [TopPLogitsWarper(float(top_p))] if top_p is not None else []
            processors.append(_gumbel_noise(seed))

        def start(emit: Callable[[str], None], stopped: threading.Event) -> None:
            continuation = _Continuation(self._text, ids, words, emit, stopped)
            prompt_ids = torch.tensor([ids], device=self.model.device)
            output = self.model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                generation_config=GenerationConfig(max_new_tokens=room, do_sample=False),
                logits_processor=processors,
                stopping_criteria=[continuation],
            )
            if stopped.is_set():
                return
            ended = int(output[0, -1]) in self._ends
            whole = continuation.finish(ended=ended)
            why = "the text ends" if ended else f"{room} tokens"
            if room < asked and not ended:
                why = f"the model's context of {self._limit} tokens ends"
            if words is not None and whole < words:
                log.info("%d of %d words are whole: %s", whole, words, why)
            elif words is None and room < asked and not ended:
                log.info("stopped where %s", why)

        return start


class _Continuation:
    """Turns new tokens into pieces of text. Given to `generate` as its stopping criterion: it sees each token first."""

    def __init__(
        self,
        text: TokenText,
        ids: list[int],
        words: int | None,
        emit: Callable[[str], None],
        stopped: threading.Event,
    ) -> None:
        self.text, self.ids, self.words, self.emit, self.stopped = text, ids, words, emit, stopped
        self.new: list[int] = []
        self.emitted = 0
        self.done = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not self.done and not self.stopped.is_set():
            self.new = input_ids[0, len(self.ids) :].tolist()
            # The bytes of a character may be spread over tokens; until the last has come they decode to this.
            text = self.text.after(self.ids, self.new).rstrip("\N{REPLACEMENT CHARACTER}")
            self.done = self._emit_new(text) == self.words
        return torch.tensor([self.done or self.stopped.is_set()], device=input_ids.device)

    def finish(self, *, ended: bool) -> int:
        """Emits what was held back; returns how many words are known to be whole (0 if none were asked for)."""
        text = self.text.after(self.ids, self.new)
        whole = self._emit_new(text, ended=ended)
        if self.words is not None and not self.done:
            # The tokens ran out inside a word: what there is of it is still shown.
            self._emit_new(text, ended=True)
        return whole

    def _emit_new(self, text: str, *, ended: bool = False) -> int:
        text = text.lstrip(" ")
        whole: list[tuple[int, int]] = []
        if self.words is not None:
            shape = shape_of(text)
            whole = [word.span() for word in WORD.finditer(shape) if ended or WORD_END.match(shape, word.end())]
            whole = whole[: self.words]
            text = text[whole[0][0] : whole[-1][1]] if whole else ""
        if len(text) > self.emitted:
            self.emit(text[self.emitted :])
            self.emitted = len(text)
        return len(whole)


def _pump(start: _Start) -> Iterator[str]:
    """Runs `start` in a thread and yields its pieces; an error there is raised here."""
    pieces: queue.Queue[str | BaseException | None] = queue.Queue()
    stopped = threading.Event()

    def run() -> None:
        try:
            start(pieces.put, stopped)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopped.set()
        thread.join()


def _gumbel_noise(seed: int | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor after which the best token is a sample of the softmax (Gumbel-max; Maddison et al. 2014)."""
    generator = torch.Generator()
    generator.manual_seed(generator.seed() if seed is None else seed)

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Drawn on the CPU, so that a seed means the same on every device.
        waits = torch.empty(scores.shape).exponential_(generator=generator).clamp_min(1e-30)
        return scores - waits.log().to(scores.device)

    return add_noise
