"""How often a model finds the good sentence of a pair likelier than the bad one (Warstadt et al. 2020, BLiMP)."""

from typing import Any

import datasets
import evaluate


class MinimalPairs(evaluate.Metric):  # type: ignore[misc]
    """Takes the log-likelihoods of both sentences of each pair, in nats; a tie counts as wrong."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="The share of pairs whose good sentence is likelier than the bad one.",
            citation="",
            inputs_description="The log-likelihoods of the good and the bad sentence of each pair.",
            features=datasets.Features({name: datasets.Value("float64") for name in ("good", "bad")}),
        )

    def _build_data_dir(self) -> str:
        # In memory nothing is written, so no folder is made, which a full or read-only disk would not let be. Here, and
        # not in a class that both have: evaluate.load takes the first metric that it meets in a script.
        return str(self._data_dir_root if self.keep_in_memory else super()._build_data_dir())

    def _compute(self, *, good: list[float], bad: list[float]) -> dict[str, float]:
        right = sum(one > other for one, other in zip(good, bad, strict=True))
        return {"accuracy": right / max(1, len(good)), "pairs": len(good)}
