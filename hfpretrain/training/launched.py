"""What `accelerate config` has chosen, which `accelerate launch` tells the processes that it starts."""

import logging
import os
from dataclasses import replace

from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Parallel, Recipe
from hfpretrain.training.zero_library import require_installed

log = logging.getLogger(__name__)

CONFIGURED = "HFPRETRAIN_ACCELERATE"
"""In the environment, fsdp or deepspeed, where `accelerate config` has chosen it."""
OFFLOADS_TO = ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE")


def as_launched(recipe: Recipe) -> Recipe:
    """The recipe, with the strategy that `accelerate config` chose where it says none of its own.

    RecipeError for one that is not there.
    """
    if _told("ACCELERATE_USE_MEGATRON_LM"):
        raise RecipeError(
            "accelerate's configuration asks for Megatron-LM, which is not there",
            hint="choose FSDP, DeepSpeed or plain data parallelism in `accelerate config`",
        )
    for strategy in ("fsdp", "deepspeed"):
        variable = f"ACCELERATE_USE_{strategy.upper()}"
        if _told(variable):
            os.environ[CONFIGURED] = strategy
        os.environ.pop(variable, None)  # or Accelerate would wrap the model itself
    if recipe.parallel.strategy == "auto" and (parallel := _configured(recipe.parallel)) is not None:
        recipe = replace(recipe, parallel=parallel)
    if recipe.parallel.strategy == "deepspeed" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        require_installed()
    return recipe


def _told(variable: str, default: str = "false") -> bool:
    return os.environ.get(variable, default).lower() == "true"


def _configured(given: Parallel) -> Parallel | None:
    """The recipe's block with what was chosen, which is said by the first process; None where nothing was."""
    if (strategy := os.environ.get(CONFIGURED)) is None:
        return None
    if strategy == "fsdp":
        parallel = replace(given, strategy="fsdp", reshard_after_forward=_told("FSDP_RESHARD_AFTER_FORWARD", "true"))
        called, offloads = "FSDP: parallel.strategy is fsdp (FSDP2)", _told("FSDP_OFFLOAD_PARAMS")
    else:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() != "none":
            raise RecipeError(
                "accelerate's configuration names a file of DeepSpeed's settings, which is not read",
                hint="remove it there, and set parallel: {strategy: deepspeed, zero_stage: ...} in the recipe",
            )
        if stage not in ("1", "2", "3"):
            parallel, called = replace(given, strategy="ddp"), f"DeepSpeed's stage {stage}: parallel.strategy is ddp"
        else:
            parallel = replace(given, strategy="deepspeed", zero_stage=int(stage))
            if given.tensor > 1:
                raise RecipeError(
                    "accelerate's configuration asks for DeepSpeed, which does not go with parallel.tensor",
                    hint="choose FSDP there, or set parallel.strategy in the recipe",
                )
            called = f"DeepSpeed: parallel.strategy is deepspeed, zero_stage {stage}"
        offloads = any(os.environ.get(each, "none").lower() != "none" for each in OFFLOADS_TO)
    if int(os.environ.get("RANK", "0")) == 0:
        if offloads:
            log.warning("accelerate's configuration asks for offloading, which is not there: all stays on the devices")
        log.info("accelerate's configuration asks for %s", called)
    return parallel
