"""The metrics that evaluations report, as `evaluate` modules: they add up, and work without a network."""

from hfpretrain.metrics.language_modeling import LanguageModeling
from hfpretrain.metrics.minimal_pairs import MinimalPairs

__all__ = ["LanguageModeling", "MinimalPairs"]
