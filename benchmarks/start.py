"""How long it takes until something happens: `fill` with a local model, and the first step of a training.

Beside each stands what importing torch and transformers and loading the weights take by themselves.

    python benchmarks/start.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
RECIPE = """
objective: mlm
model:
  architecture: bert
  config: {hidden_size: 256, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 1024}
tokenizer: {vocab_size: 4096}
data: {sources: [{builtin: everyday, size: 300kB}], block_size: 128}
train: {duration: 2 steps, batch_size: 16, log_every: 1}
"""
ALONE = """
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
AutoModelForMaskedLM.from_pretrained("runs/recipe")
AutoTokenizer.from_pretrained("runs/recipe")
"""


def seconds(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


def first_step(folder: Path, number: int) -> float:
    """Seconds from the line that says that the data is ready to the line of the first step."""
    command = [sys.executable, "-u", "-m", "hfpretrain", "train", "recipe.yaml", f"output_dir=runs/{number}"]
    ready = float("nan")
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("data.sources.0"):
                ready = time.perf_counter()
            if line.startswith("step 1"):
                return time.perf_counter() - ready
    raise SystemExit("the training made no step")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HFPRETRAIN_CACHE"] = str(folder / "cache")
        (folder / "recipe.yaml").write_text(RECIPE)
        hfpretrain = [sys.executable, "-m", "hfpretrain"]
        seconds([*hfpretrain, "train", "recipe.yaml"], folder)
        fill = [*hfpretrain, "fill", "the [MASK] fox", "--model", "runs/recipe"]
        alone = [sys.executable, "-c", ALONE]
        pairs = [(seconds(fill, folder), seconds(alone, folder)) for _ in range(REPEATS)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        more = statistics.median(one - other for one, other in pairs)
        print(f"fill: {ours:.2f} s; importing and loading alone: {theirs:.2f} s; {more:+.2f} s")
        steps = [first_step(folder, number) for number in range(REPEATS)]
        print(f"first step: {statistics.median(steps):.2f} s after the data is ready")


if __name__ == "__main__":
    main()
