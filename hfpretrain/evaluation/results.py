"""What an evaluation came to, as metrics, report and command line tell it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation came to; None, or nothing, of what it did not look at, or where nothing was a target."""

    loss: float | None = None
    """Nats per target."""
    perplexity: float | None = None
    accuracy: float | None = None
    """Of how many targets the token was the likeliest, as a share; below, among the five likeliest."""
    top5_accuracy: float | None = None
    targets: int | None = None
    bits_per_byte: float | None = None
    """Of a next-word model: bits of all targets for each UTF-8 byte of the text that they cover."""
    pseudo_loss: float | None = None
    """Of a masked model: nats per token, each masked by itself (Salazar et al. 2020)."""
    pseudo_perplexity: float | None = None
    pseudo_bits_per_byte: float | None = None
    others: dict[str, float] = field(default_factory=dict)
    """What other metrics of the evaluate library came to, as metric.value."""
    pairs: dict[str, Any] | None = None
    """Of minimal pairs: accuracy, how many, and groups: {key: {value: {accuracy, pairs}}}."""

    def values(self) -> dict[str, Any]:
        """Everything of it that is there, by name, but for groups of pairs."""
        own = {key: value for key, value in vars(self).items() if key not in ("others", "pairs") and value is not None}
        return own | self.others | ({"pairs_accuracy": self.pairs["accuracy"]} if self.pairs else {})

    def as_dict(self) -> dict[str, Any]:
        """As metrics.jsonl and report.json have it."""
        found = {f"validation_{key}": value for key, value in self.values().items() if key != "pairs_accuracy"}
        if self.pairs:
            found |= {"pairs": self.pairs["pairs"], "pairs_accuracy": self.pairs["accuracy"]}
            found |= {"pairs_groups": self.pairs["groups"]} if self.pairs["groups"] else {}
        return found

    def __str__(self) -> str:
        parts = ["no held-out token is a target"] if self.targets == 0 else []
        if self.loss is not None:
            parts += [f"validation loss {self.loss:.4f}", f"perplexity {self.perplexity:.2f}"]
            parts += [f"accuracy {self.accuracy:.1%}"]
        if self.bits_per_byte is not None:
            parts += [f"{self.bits_per_byte:.4f} bits per byte"]
        if self.pseudo_perplexity is not None:
            parts += [f"pseudo-perplexity {self.pseudo_perplexity:.2f}"]
        parts += [f"{name} {value:.4g}" for name, value in self.others.items()]
        return ", ".join(parts + ([f"pairs {self.pairs['accuracy']:.1%}"] if self.pairs else []))
