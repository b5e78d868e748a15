"""What follows from the size of the model: how many tokens a budget is, and a learning rate for the run."""

import dataclasses
import logging
import math

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfpretrain.amounts import OF_THE_MODEL
from hfpretrain.data.mixing import exact
from hfpretrain.modeling.architecture import MODEL_NAMES
from hfpretrain.modeling.flops import attention_flops_per_token, estimated_flops_per_token
from hfpretrain.modeling.model import outline_model
from hfpretrain.modeling.parameters import count_parameters, count_without_embeddings
from hfpretrain.recipe import Amount, Ramp, Recipe
from hfpretrain.recipe_stages import longest_block
from hfpretrain.training.schedule import Plan

log = logging.getLogger(__name__)

TOKENS_PER_PARAMETER = 20
"""What is about the best for a budget (Hoffmann et al. 2022)."""
RATES = (1e-5, 5e-3)
"""The lowest and the highest learning rate that is chosen."""
CONTINUED = 0.1
"""Share of it for a model that is trained already."""
POST_NORM = 1 / 3
"""Share of Kaplan's rate for networks that normalise after each layer, as BERT: with too high a rate they stall."""


def in_tokens(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """The recipe with a duration in tokens where it gives one per parameter or in FLOPs.

    All parameters count, embeddings included, as in Hoffmann et al. 2022. FLOPs are `estimated_flops_per_token` at the
    largest block of the run: they follow from the sizes alone, so that no shortcut changes what is learnt.
    """
    duration = recipe.train.duration
    if duration.unit not in OF_THE_MODEL:
        return recipe
    model = outline_model(recipe, tokenizer)
    if duration.unit == "FLOPs":
        tokens = duration.value / estimated_flops_per_token(model, block_size=longest_block(recipe.data)[1])
    else:
        tokens = float(exact(duration) * count_parameters(model))
    amount = Amount(max(1, math.floor(tokens)), "tokens")
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, duration=amount))


def learning_rate(recipe: Recipe, model: PreTrainedModel, plan: Plan) -> float:
    """The recipe's peak learning rate; for auto, one by the compute of the run and the targets of a step.

    For compute C, without embeddings and head, 0.3118 C^-0.125 is the best rate at the best batch, of 0.2920 C^0.3271
    tokens (DeepSeek-AI 2024, arXiv 2401.02954). A smaller step has the square root of its share of that (Malladi et al.
    2022), a larger one no more. Of a step counts what the loss counts: of masked language modeling the masked tokens.
    That was found on Llama's kind of network; older kinds have no more than `highest_rate`. Where the duration is a
    time, the run is taken for one of 20 tokens per parameter. Two digits, so that it is the same everywhere.
    """
    if recipe.optimizer.lr != "auto":
        return recipe.optimizer.lr
    usual = TOKENS_PER_PARAMETER * count_parameters(model)
    steps = plan.steps or 1
    tokens, each = float(usual if plan.steps is None else plan.tokens(steps)), plan.tokens(steps) / steps
    lowest, highest, share = RATES[0], highest_rate(model), 1.0
    if recipe.model.from_ is not None:
        tokens, share = max(tokens, usual), CONTINUED
    attention = attention_flops_per_token(model, block_size=longest_block(recipe.data)[1])
    compute = (6 * count_without_embeddings(model) + attention) * tokens
    best = 0.3118 * compute**-0.125
    smaller = min(1.0, math.sqrt(each * targets(recipe) / (0.2920 * compute**0.3271)))
    return float(f"{share * max(lowest, min(highest, best * smaller)):.2g}")


def highest_rate(model: PreTrainedModel) -> float:
    """What the kind of network bears, N being its parameters without embeddings.

    Networks in the manner of GPT-2, 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, arXiv 2001.08361), and those in
    the manner of BERT a third of it; Llama's kind, with RMSNorm, and ModernBERT have no such bound.
    """
    config = model.config.get_text_config()
    if hasattr(config, "rms_norm_eps") or config.model_type in ("modernbert", "modernbert-decoder"):
        return RATES[1]
    kaplan = 0.003239 - 0.0001395 * math.log(max(1, count_without_embeddings(model)))
    return kaplan * (POST_NORM if config.model_type in MODEL_NAMES["mlm"] else 1.0)


def targets(recipe: Recipe) -> float:
    """The share of the tokens that the loss counts, about."""
    if recipe.objective == "clm":
        return 1.0
    rate = recipe.masking.rate
    return (rate.from_ + rate.to) / 2 if isinstance(rate, Ramp) else rate
