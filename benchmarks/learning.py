"""What is learnt from the same text: against published numbers, against transformers.Trainer, and by optimizer.

Needs tinyshakespeare.txt (1,115,394 characters, char-rnn's input.txt); no network. Cases:

    shakespeare   the recipe shakespeare-char: loss on the whole last tenth, and the time to come to nanoGPT's 1.88
    mlm           a small masked model against Trainer with run_mlm.py's defaults, at equal time and at equal tokens
    optimizers    AdamW and Muon, each at four learning rates, on the quickstart recipes and shakespeare-char

    python benchmarks/learning.py tinyshakespeare.txt [--case NAME] [--minutes 1]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
NANOGPT = 1.88
"""The loss that nanoGPT publishes for a GPT of this size after as many characters."""
RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "muon": (2.5e-3, 5e-3, 1e-2, 2e-2)}
MLM: dict[str, Any] = {
    "objective": "mlm",
    "model": {
        "architecture": "modernbert",
        "config": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "global_attn_every_n_layers": 1,
        },
    },
    "tokenizer": {"algorithm": "wordpiece", "vocab_size": 2000},
    "data": {"validation": "10%", "block_size": 128},
    "train": {"batch_size": 16, "precision": "fp32"},
    "optimizer": {"name": "muon", "lr": 5e-3},
    "evaluation": {"every": "100%"},
    "checkpoints": {"every": "100%"},
}
"""Ours; optimizer, rate and batch are what did best among a few that were tried."""
TRAINERS_BATCH = 8
"""Trainer trains the same model on the same blocks and masking; batch size and the rest are run_mlm.py's defaults."""


def train(recipe: Path, folder: Path, *settings: str) -> dict[str, Any]:
    """Trains in a process of its own; what it came to, with its lines of metrics."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "hfpretrain", "train", str(recipe), f"output_dir={folder}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    report["metrics"] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return report


def seconds_to(report: dict[str, Any], loss: float) -> float | None:
    """Seconds of training, evaluations left out, until an evaluation came to that loss."""
    seconds, tokens = 0.0, 0
    for line in report["metrics"]:
        if "tokens_per_second" in line:
            seconds += (line["tokens"] - tokens) / line["tokens_per_second"]
            tokens = line["tokens"]
        elif line["validation_loss"] <= loss:
            return seconds
    return None


def shakespeare(text: Path, folder: Path) -> list[str]:
    settings = [f"data.sources.0.files={text}", "evaluation.every=100 steps", "train.log_every=20"]
    report = train(RECIPES / "shakespeare-char.yaml", folder / "shakespeare", *settings)
    reached = seconds_to(report, NANOGPT)
    time = "not reached" if reached is None else f"{reached:.0f} s"
    loss = report["validation_loss"]
    return [
        "| parameters | tokens | loss on the last tenth | time | time to 1.88 |",
        "|---|---|---|---|---|",
        f"| {report['parameters']:,} | {report['tokens']:,} | {loss:.4f} | {report['seconds']:.0f} s | {time} |",
    ]


def trainer(recipe_file: Path, target: Path, steps: int) -> float:
    """Trainer on the recipe's tokenizer, model and training blocks; returns its seconds."""
    from transformers import (
        AutoConfig,
        AutoModelForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    from hfpretrain.data.batches import StoredPart, open_batches
    from hfpretrain.modeling.tokenizer import load_tokenizer
    from hfpretrain.recipe import load

    recipe = load(recipe_file)
    tokenizer = load_tokenizer(str(target.parent / "ours"), "mlm")
    part = open_batches(recipe, tokenizer).parts[0]
    assert isinstance(part, StoredPart)
    blocks = [{"input_ids": part.blocks[number].token_ids[:-1].tolist()} for number in range(len(part.blocks) - 1)]
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(target.parent / "ours"))
    arguments = TrainingArguments(
        output_dir=str(target / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=TRAINERS_BATCH,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
        use_cpu=True,
    )
    fed = Trainer(
        model=model,
        args=arguments,
        train_dataset=blocks,  # type: ignore[arg-type]
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
    )
    result = fed.train()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return float(result.metrics["train_runtime"])


def held_out_loss(model: Path, recipe_file: Path) -> float:
    """Masked cross-entropy on what the recipe holds out, with the masks that hfpretrain keeps fixed."""
    from hfpretrain.evaluation import evaluate_model

    shutil.copy(recipe_file, model / "recipe.yaml")
    return float(evaluate_model(str(model))["loss"])


def in_a_process(*arguments: str) -> float:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


def mlm(text: Path, folder: Path, minutes: float) -> list[str]:
    from hfpretrain.recipe import dump, from_mapping

    def written(duration: str) -> Path:
        data = MLM["data"] | {"sources": [{"files": str(text)}]}
        file = folder / "mlm.yaml"
        recipe = from_mapping(MLM | {"data": data, "train": MLM["train"] | {"duration": duration}})
        file.write_text(dump(recipe))
        return file

    ours = train(written(f"{round(minutes * 60)} seconds"), folder / "ours")
    recipe_file = folder / "ours" / "recipe.yaml"
    shutil.copy(recipe_file, folder / "held-out.yaml")
    recipe_file = folder / "held-out.yaml"
    rows = []
    steps = ours["steps"] * MLM["train"]["batch_size"] // TRAINERS_BATCH
    for name in ("equal tokens", "equal time"):
        target = folder / name.replace(" ", "-")
        seconds = in_a_process(str(recipe_file), "--trainer", str(steps), "--target", str(target))
        losses = held_out_loss(folder / "ours", recipe_file), held_out_loss(target, recipe_file)
        rows.append(
            f"| {name} | {ours['seconds']:.0f} s, {ours['steps']} steps, {losses[0]:.3f} "
            f"| {seconds:.0f} s, {steps} steps, {losses[1]:.3f} | {losses[1] - losses[0]:.3f} |"
        )
        steps = round(steps * ours["seconds"] / seconds)
    head = ["| | hfpretrain: time, steps, masked cross-entropy | Trainer: the same | difference |", "|---|---|---|---|"]
    return [*head, *rows]


def optimizers(text: Path, folder: Path) -> list[str]:
    lines = ["| recipe | optimizer | " + " | ".join(f"rate {place}" for place in "1234") + " |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in ("quickstart-mlm", "quickstart-clm", "shakespeare-char"):
        for optimizer, rates in RATES.items():
            found = []
            for rate in rates:
                settings = [f"optimizer.name={optimizer}", f"optimizer.lr={rate}", "evaluation.every=100%"]
                settings += [f"data.sources.0.files={text}"] if name == "shakespeare-char" else []
                report = train(RECIPES / f"{name}.yaml", folder / "optimizers", *settings)
                found.append(f"{rate:g}: {report['validation_loss']:.4f} in {report['seconds']:.0f} s")
                print(name, optimizer, found[-1], file=sys.stderr)
            lines.append(f"| {name} | {optimizer} | {' | '.join(found)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--case", choices=["shakespeare", "mlm", "optimizers"])
    parser.add_argument("--minutes", type=float, default=1.0, help="of each side of the case mlm")
    parser.add_argument("--trainer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.trainer:
        print(trainer(given.text, given.target, given.trainer))
        return
    text = given.text.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.case in (None, "shakespeare"):
            print("\n".join(["", "shakespeare-char", "", *shakespeare(text, folder)]))
        if given.case in (None, "mlm"):
            print("\n".join(["", "mlm against Trainer", "", *mlm(text, folder, given.minutes)]))
        if given.case in (None, "optimizers"):
            print("\n".join(["", "optimizers: validation loss and time", "", *optimizers(text, folder)]))


if __name__ == "__main__":
    main()
