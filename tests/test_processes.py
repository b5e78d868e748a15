"""Two processes learn what one learns, and evaluate what there is even if it is less than one block for each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import LLAMA, metrics, tiny_recipe, tiny_run

from hfpretrain.recipe import dump
from hfpretrain.run import Run


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, objective: str) -> None:
    config = LLAMA if objective == "clm" else LLAMA | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    settings = [
        f"model={{architecture: {'llama' if objective == 'clm' else 'bert'}, config: {config}}}",
        "train.micro_batch_size=1",
        "data.validation=1%",
        "train.duration=50",
    ]
    one = tiny_run(tmp_path, objective, *settings, name="one")
    file = tmp_path / "two.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, objective, *settings, name="two")))
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "hfpretrain", "train", str(file)],
        cwd=tmp_path,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = Run(tmp_path / "runs" / "two")
    assert two.report()["processes"] == 2
    assert two.report()["validation_targets"] == one.report()["validation_targets"] > 0
    for single, double in zip(metrics(one), metrics(two), strict=True):
        # Losses within 1e-5 over all 50 steps; perplexities, which are large, within a millionth.
        assert single == pytest.approx(double, abs=1e-5, rel=1e-6)


ALONE = """
import sys
from datetime import timedelta
from hfpretrain.recipe import load
from hfpretrain.training import session
assert session.PATIENCE >= timedelta(hours=1)
session.PATIENCE = timedelta(seconds=1)
session.open_accelerator(load(sys.argv[1]))
"""


def test_processes_wait_long_for_each_other(tmp_path: Path) -> None:
    """While one prepares data or writes: a second here, for a process that never comes; torch's own is 10 minutes."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path)))
    of_two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(file)],
        env=os.environ | of_two | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert re.search(r"Timed out after \d seconds waiting", done.stderr.splitlines()[-1]), done.stderr
