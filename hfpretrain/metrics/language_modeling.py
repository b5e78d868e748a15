"""Loss, perplexity, accuracy and bits per byte of a language model, from sums over the tokens that it predicted."""

import math
from typing import Any

import datasets
import evaluate

LARGEST = 700.0
"""Nats whose exponential is still a number."""


class LanguageModeling(evaluate.Metric):  # type: ignore[misc]
    """Takes sums over any number of parts of a text, and gives what the whole came to.

    Each part is a row: `nats`, the summed negative log-likelihood of its targets; `targets`, how many there are;
    `right` and `right_in_5`, of how many the token was the likeliest, or among the five likeliest. `text_bytes`, to
    `compute`, are the UTF-8 bytes that all targets cover: with it there are bits per byte, which compare models
    whatever their tokenizers. Where nothing is a target there is no loss, of 0 or anything else.
    """

    def _info(self) -> Any:
        features = {"nats": "float64", "targets": "int64", "right": "int64", "right_in_5": "int64"}
        return evaluate.MetricInfo(
            description="Loss, perplexity, accuracy and bits per byte of a language model.",
            citation="",
            inputs_description="Sums over the targets of each part of a text.",
            features=datasets.Features({name: datasets.Value(kind) for name, kind in features.items()}),
        )

    def _build_data_dir(self) -> str:
        # In memory nothing is written, so no folder is made, which a full or read-only disk would not let be. Here, and
        # not in a class that both have: evaluate.load takes the first metric that it meets in a script.
        return str(self._data_dir_root if self.keep_in_memory else super()._build_data_dir())

    def _compute(
        self,
        *,
        nats: list[float],
        targets: list[int],
        right: list[int],
        right_in_5: list[int],
        text_bytes: float | None = None,
    ) -> dict[str, float]:
        count, total = sum(targets), math.fsum(nats)
        if not count:
            return {"targets": 0}
        loss = total / count
        found = {
            "loss": loss,
            "perplexity": math.exp(min(loss, LARGEST)),
            "accuracy": sum(right) / count,
            "top5_accuracy": sum(right_in_5) / count,
            "targets": count,
        }
        if text_bytes:
            found["bits_per_byte"] = total / math.log(2) / text_bytes
        return found
