"""What `accelerate config` has chosen, which `accelerate launch` tells the processes that it starts."""

import logging
import os
from dataclasses import replace

from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Parallel, Recipe, from_mapping, to_mapping
from hfpretrain.training.zero_library import require_installed

log = logging.getLogger(__name__)

CONFIGURED = "HFPRETRAIN_ACCELERATE"
"""In the environment, fsdp or deepspeed, where `accelerate config` has chosen it."""
SIZES = "HFPRETRAIN_ACCELERATE_SIZES"
"""In the environment where it has named sizes of groups, which are in `PARALLELISM_CONFIG_<name>_SIZE`."""
RESHARDS = {"true": True, "full_shard": True, "1": True, "false": False, "shard_grad_op": False, "2": False}
"""By what `accelerate config` calls it, or FSDP 1 its strategy, by name or number."""
WHOLE = ("no_shard", "3")
"""How FSDP 1 says that nothing is shared out."""
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
    if _told("ACCELERATE_USE_PARALLELISM_CONFIG"):
        os.environ[SIZES] = "true"
    os.environ.pop("ACCELERATE_USE_PARALLELISM_CONFIG", None)
    if recipe.parallel.strategy == "auto" and (parallel := _configured(recipe.parallel)) is not None:
        mapping = to_mapping(replace(recipe, parallel=parallel))
        recipe = from_mapping(mapping)  # which says what does not go together
        if int(os.environ.get("RANK", "0")) == 0:
            said = ", ".join(f"{key}: {value}" for key, value in mapping["parallel"].items())
            log.info("accelerate's configuration is heeded: parallel: {%s}", said)
    if recipe.parallel.strategy == "deepspeed" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        require_installed()
    return recipe


def _told(variable: str, default: str = "false") -> bool:
    return os.environ.get(variable, default).lower() == "true"


def _configured(given: Parallel) -> Parallel | None:
    """The recipe's block with what was chosen; None where nothing was."""
    sized = _sized(given) if SIZES in os.environ else None
    if (strategy := os.environ.get(CONFIGURED)) is None:
        return sized
    given = sized or given
    if strategy == "fsdp":
        parallel, offloads = _fsdp(given), _told("FSDP_OFFLOAD_PARAMS")
    else:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() != "none":
            raise RecipeError(
                "accelerate's configuration names a file of DeepSpeed's settings, which is not read",
                hint="remove it there, and set parallel: {strategy: deepspeed, zero_stage: ...} in the recipe",
            )
        if stage not in ("1", "2", "3"):
            parallel = replace(given, strategy="ddp")
        else:
            parallel = replace(given, strategy="deepspeed", zero_stage=int(stage))
        offloads = any(os.environ.get(each, "none").lower() != "none" for each in OFFLOADS_TO)
    if offloads and int(os.environ.get("RANK", "0")) == 0:
        log.warning("accelerate's configuration asks for offloading, which is not there: all stays on the devices")
    return parallel


def _fsdp(given: Parallel) -> Parallel:
    """What it says of FSDP, of whatever version. RecipeError for what cannot be taken over."""
    resharding = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if os.environ.get("FSDP_VERSION", "2") == "1" and resharding == "true":  # older files know only its strategy
        resharding = os.environ.get("FSDP_SHARDING_STRATEGY", resharding).lower()
    if resharding in WHOLE:
        return replace(given, strategy="ddp")
    if resharding not in RESHARDS:
        raise RecipeError(
            f"accelerate's configuration asks for FSDP's {resharding.upper()}, which cannot be taken over",
            hint="set parallel: {strategy: fsdp, shard_within: ...} in the recipe, or FULL_SHARD there",
        )
    return replace(given, strategy="fsdp", reshard_after_forward=RESHARDS[resharding])


def _sized(given: Parallel) -> Parallel:
    """What it says of groups (Accelerate's ParallelismConfig). RecipeError for those that are not there."""
    names = ("DP_REPLICATE", "DP_SHARD", "TP", "CP", "SP")
    replicate, shard, tensor, *others = (int(os.environ.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1")) for name in names)
    if max(others) > 1:
        raise RecipeError(
            "accelerate's configuration asks for context or sequence parallelism, which is not there",
            hint="set its sizes to 1, and take parallel.tensor or train.activation_checkpointing for long blocks",
        )
    if shard > 1:
        given = replace(given, strategy="fsdp", shard_within=shard if replicate > 1 else None)
    return replace(given, tensor=max(tensor, given.tensor))
