"""hfpretrain against transformers.Trainer, side by side: tokens per second, peak memory, share of the hardware's rate.

Both train the same model (config, first weights' sizes, optimizer, precision) on the same tokens in blocks of the same
size. Trainer is fed as run_clm.py and run_mlm.py feed it (texts concatenated and cut into blocks, their data collators)
and has its best public options (fused AdamW; with compile on CUDA). Each side runs in a process of its own, so that
peak memory is its own; sides alternate, and medians are reported. Needs no `datasets` and no network: the text is
random words with the frequencies of Zipf's law.

    python benchmarks/speed.py                     # CPU, fp32
    python benchmarks/speed.py --device cuda       # one GPU, bf16, compile on both sides
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One training to measure."""

    name: str
    objective: str
    architecture: str
    config: dict[str, Any]
    vocabulary: int
    blocks: int
    """Blocks per step."""
    block_size: int
    steps: int
    micro: int | None = None
    """Blocks at once, on both sides; None takes all of a step."""

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_size


def bert(layers: int, width: int, positions: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
    }


def llama(layers: int, width: int, positions: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "intermediate_size": -(-8 * width // 3 // 16) * 16,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
    }


CPU = [
    Case("mlm BERT 4x256", "mlm", "bert", bert(4, 256, 128), 30522, 16, 128, 24),
    Case("clm Llama 4x256", "clm", "llama", llama(4, 256, 128), 16000, 16, 128, 24),
    Case("mlm BERT 12x384", "mlm", "bert", bert(12, 384, 128), 30522, 16, 128, 12),
    Case("clm Llama 12x384", "clm", "llama", llama(12, 384, 128), 16000, 16, 128, 12),
]
CUDA = [
    Case("clm Llama 124M", "clm", "llama", llama(12, 768, 1024), 50304, 64, 1024, 60, 16),
    Case("mlm BERT-base", "mlm", "bert", bert(12, 768, 512), 30522, 256, 512, 60, 64),
    Case("clm Llama 350M", "clm", "llama", llama(24, 1024, 1024), 50304, 64, 1024, 40, 8),
]
SMOKE = [
    Case("mlm smoke", "mlm", "bert", bert(1, 64, 32), 300, 4, 32, 12, 2),
    Case("clm smoke", "clm", "llama", llama(1, 64, 32), 300, 4, 32, 12, 2),
]
WARM_UP = 1 / 3
"""Of the steps: not counted, on both sides."""


def prepare(case: Case, folder: Path) -> None:
    """Text and tokenizer for a case: random words, one token each."""
    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{number}" for number in range(case.vocabulary - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(special + words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": name for role, name in names.items()}
    ).save_pretrained(folder / "tokenizer")
    frequencies = 1 / np.arange(1, len(words) + 1)
    count = min(case.tokens * (case.steps + 2), 4_000_000)
    drawn = np.random.default_rng(0).choice(len(words), size=count, p=frequencies / frequencies.sum())
    lines = [" ".join(words[number] for number in drawn[start : start + 500]) for start in range(0, count, 500)]
    (folder / "text.txt").write_text("\n".join(lines))


def ours(case: Case, folder: Path, device: str, precision: str, optimizer: str) -> dict[str, Any]:
    """The real thing: hfpretrain.train on a recipe."""
    from hfpretrain.process import prepare_environment

    prepare_environment()
    os.environ["HFPRETRAIN_CACHE"] = str(folder / "cache")
    from hfpretrain.recipe import from_mapping
    from hfpretrain.training.loop import train

    recipe = from_mapping(
        {
            "name": "ours",
            "objective": case.objective,
            "output_dir": str(folder / f"run-{os.getpid()}"),
            "model": {"architecture": case.architecture, "config": case.config},
            "tokenizer": {"from": str(folder / "tokenizer")},
            "data": {
                "sources": [{"files": str(folder / "text.txt"), "documents": "line"}],
                "validation": "0%",
                "block_size": case.block_size,
                "packing": "concat",  # what run_clm.py does
            },
            "train": {
                "duration": case.steps,
                "batch_size": case.blocks,
                "micro_batch_size": case.micro or case.blocks,
                "precision": precision,
                "log_every": max(1, case.steps // 6),
            },
            "optimizer": {"name": optimizer, "lr": 1e-3},
        }
    )
    run = train(recipe)
    report = run.report()
    return {
        "tokens_per_second": report["tokens_per_second"],
        "peak_memory": report["peak_memory_bytes"],
        "loss": report["loss"],
        "mfu": report.get("mfu"),
        "flops_per_token": report.get("flops_per_token"),
        "rate": report.get("hardware_flops_per_second"),
    }


def trainer(case: Case, folder: Path, device: str, precision: str) -> dict[str, Any]:
    """transformers.Trainer, as the example scripts use it."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    from hfpretrain.hardware import peak_memory

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids: list[int] = []
    for line in (folder / "text.txt").read_text().splitlines():
        ids += tokenizer(line)["input_ids"]
    size = case.block_size
    blocks = [ids[start : start + size] for start in range(0, len(ids) - size, size)]
    masked = case.objective == "mlm"
    examples = [{"input_ids": block} if masked else {"input_ids": block, "labels": block} for block in blocks]
    config = AutoConfig.for_model(case.architecture, vocab_size=len(tokenizer), pad_token_id=0, **case.config)
    model = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    first, times = round(case.steps * WARM_UP), []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When each step ended."""

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    micro = case.micro or case.blocks
    result = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=case.steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=case.blocks // micro,
            learning_rate=1e-3,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            lr_scheduler_type="constant",
            bf16=precision == "bf16",
            torch_compile=device == "cuda",
            use_cpu=device == "cpu",
            dataloader_num_workers=2 if device == "cuda" else 0,
            dataloader_pin_memory=device == "cuda",
            save_strategy="no",
            report_to=[],
            logging_steps=case.steps,
            disable_tqdm=True,
        ),
        train_dataset=examples,
        data_collator=DataCollatorForLanguageModeling(tokenizer) if masked else default_data_collator,
        callbacks=[Clock()],
    ).train()
    seconds = times[-1] - times[first - 1]
    return {
        "tokens_per_second": (case.steps - first) * case.tokens / seconds,
        "peak_memory": peak_memory(torch.device(device)),
        "loss": result.training_loss,
    }


def measured(case: Case, side: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """One side of one case, in a process of its own."""
    command = [sys.executable, __file__, *options, "--case", case.name, "--side", side, "--folder", str(folder)]
    environment = {"GOMP_SPINCOUNT": "2000", "HF_HUB_OFFLINE": "1", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{case.name}, {side}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {case.name}, {side}: {found['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)
    return found


def compare(case: Case, repeats: int, sides: list[str], options: list[str]) -> list[str]:
    """A row of the table: medians over alternating runs."""
    with tempfile.TemporaryDirectory() as name:
        prepare(case, Path(name))
        runs = [{side: measured(case, side, Path(name), options) for side in sides} for _ in range(repeats)]

    def median(side: str, key: str) -> float:
        return statistics.median(run[side][key] or 0.0 for run in runs)

    speed = {side: median(side, "tokens_per_second") for side in sides}
    memory = {side: median(side, "peak_memory") / 1e9 for side in sides}
    row = [case.name, f"{speed['ours']:,.0f}"]
    if "trainer" in sides:
        ratios = [run["ours"]["tokens_per_second"] / run["trainer"]["tokens_per_second"] for run in runs]
        row += [
            f"{speed['trainer']:,.0f}",
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})",
        ]
        row += [f"{memory['ours']:.2f} / {memory['trainer']:.2f} GB", f"**{memory['ours'] / memory['trainer']:.2f}**"]
    return [*row, f"{median('ours', 'mfu'):.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: fp32 on CPU, bf16 on CUDA")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny cases, to see that the benchmark runs")
    parser.add_argument("--alone", action="store_true", help="hfpretrain only")
    parser.add_argument("--optimizer", default="adamw", help="of hfpretrain's side")
    parser.add_argument("--case", help="only this one")
    parser.add_argument("--side", choices=["ours", "trainer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    precision = given.precision or ("bf16" if given.device == "cuda" else "fp32")
    cases = SMOKE if given.smoke else CUDA if given.device == "cuda" else CPU
    cases = [case for case in cases if given.case in (None, case.name)]
    if given.side:
        (case,) = cases
        if given.side == "ours":
            print(json.dumps(ours(case, given.folder, given.device, precision, given.optimizer)))
        else:
            print(json.dumps(trainer(case, given.folder, given.device, precision)))
        return
    options = ["--device", given.device, "--precision", precision, "--optimizer", given.optimizer]
    options += ["--smoke"] if given.smoke else []
    sides = ["ours"] if given.alone else ["ours", "trainer"]
    head = ["case", "hfpretrain tokens/s"]
    head += [] if given.alone else ["Trainer tokens/s", "ratio", "peak memory", "ratio"]
    head += ["share of the hardware's rate"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for case in cases:
        print("| " + " | ".join(compare(case, given.repeats, sides, options)) + " |", flush=True)


if __name__ == "__main__":
    main()
