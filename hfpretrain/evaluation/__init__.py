"""Evaluation: what a model makes of text that it did not learn from, whatever the number of processes."""

from hfpretrain.evaluation.evaluator import Evaluator, prepare_evaluator
from hfpretrain.evaluation.models import evaluate_model
from hfpretrain.evaluation.results import Evaluated

__all__ = ["Evaluated", "Evaluator", "evaluate_model", "prepare_evaluator"]
