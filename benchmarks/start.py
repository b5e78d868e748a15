"""How long it takes until something happens: `--help`, `fill` with a local model, the first step of a training.

Beside them stands what Typer, and importing torch and transformers and loading the weights, take by themselves.

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
TYPER = """
import typer
app = typer.Typer()
app.command("one")(lambda: None)
app.command("two")(lambda: None)
app(["--help"])
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


def side_by_side(name: str, ours: list[str], other: str, theirs: list[str], folder: Path) -> None:
    pairs = [(seconds(ours, folder), seconds(theirs, folder)) for _ in range(REPEATS)]
    own, its = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = statistics.median(one - two for one, two in pairs)
    print(f"{name}: {own:.2f} s; {other} alone: {its:.2f} s; {more:+.2f} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HFPRETRAIN_CACHE"] = str(folder / "cache")
        (folder / "recipe.yaml").write_text(RECIPE)
        hfpretrain = [sys.executable, "-m", "hfpretrain"]
        seconds([*hfpretrain, "train", "recipe.yaml"], folder)
        side_by_side("--help", [*hfpretrain, "--help"], "Typer", [sys.executable, "-c", TYPER], folder)
        fill = [*hfpretrain, "fill", "the [MASK] fox", "--model", "runs/recipe"]
        side_by_side("fill", fill, "importing and loading", [sys.executable, "-c", ALONE], folder)
        steps = [first_step(folder, number) for number in range(REPEATS)]
        print(f"first step: {statistics.median(steps):.2f} s after the data is ready")


if __name__ == "__main__":
    main()
