"""What `accelerate config` has chosen, as `accelerate launch` tells it: taken over, or refused in a sentence."""

from pathlib import Path

import pytest
from tiny import tiny_recipe

from hfpretrain.errors import RecipeError
from hfpretrain.recipe import Parallel
from hfpretrain.training.launched import CONFIGURED, SIZES, as_launched


@pytest.fixture(autouse=True)
def told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and afterwards: what was told is kept in the environment, for the next run of the process."""
    for name in (CONFIGURED, SIZES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def tell(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("stage", "parallel"), [("0", Parallel(strategy="ddp")), ("1", Parallel(strategy="deepspeed", zero_stage=1))]
)
def test_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, parallel: Parallel) -> None:
    recipe = tiny_recipe(tmp_path, "clm")
    tell(monkeypatch, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=stage)
    assert as_launched(recipe).parallel == parallel
    assert as_launched(recipe).parallel == parallel, "as told before"
    asked = tiny_recipe(tmp_path, "clm", "parallel.strategy=fsdp")
    assert as_launched(asked) == asked, "a recipe that says its own keeps it"


@pytest.mark.parametrize(
    ("variables", "parallel"),
    [
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}, Parallel(strategy="fsdp")),
        (
            {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"},
            Parallel(strategy="fsdp", reshard_after_forward=False),
        ),
        ({"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "full_shard"}, Parallel(strategy="fsdp")),
        (
            {"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "shard_grad_op"},
            Parallel(strategy="fsdp", reshard_after_forward=False),
        ),
        ({"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "no_shard"}, Parallel(strategy="ddp")),
        ({"FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "2"}, Parallel(strategy="fsdp", reshard_after_forward=False)),
    ],
)
def test_fsdp_of_either_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], parallel: Parallel
) -> None:
    tell(monkeypatch, ACCELERATE_USE_FSDP="true", **variables)
    assert as_launched(tiny_recipe(tmp_path, "clm")).parallel == parallel


@pytest.mark.parametrize(
    ("sizes", "parallel"),
    [
        ({"DP_SHARD": "4", "DP_REPLICATE": "2"}, Parallel(strategy="fsdp", shard_within=4)),
        ({"DP_SHARD": "8"}, Parallel(strategy="fsdp")),
        ({"DP_SHARD": "4", "TP": "2"}, Parallel(strategy="fsdp", tensor=2)),
        ({"TP": "2"}, Parallel(tensor=2)),
    ],
)
def test_sizes_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, str], parallel: Parallel
) -> None:
    tell(monkeypatch, ACCELERATE_USE_PARALLELISM_CONFIG="true")
    tell(monkeypatch, **{f"PARALLELISM_CONFIG_{name}_SIZE": size for name, size in sizes.items()})
    for _ in range(2):
        assert as_launched(tiny_recipe(tmp_path, "clm")).parallel == parallel


@pytest.mark.parametrize(
    ("variables", "settings", "said"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], "Megatron-LM, which is not there"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "settings.json"},
            [],
            "names a file of DeepSpeed's settings, which is not read",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            ["train.compile=true"],
            "true does not go with parallel.strategy: deepspeed",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, ["parallel.tensor=2"], "does not go with strategy: deepspeed"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "hybrid_shard"},
            [],
            "FSDP's HYBRID_SHARD, which cannot be taken over",
        ),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"},
            [],
            "context or sequence parallelism, which is not there",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], settings: list[str], said: str
) -> None:
    tell(monkeypatch, **variables)
    with pytest.raises(RecipeError, match=said):
        as_launched(tiny_recipe(tmp_path, "clm", *settings))
