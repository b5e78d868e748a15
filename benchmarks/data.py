"""Preparing text, side by side with run_clm.py's way: MB/s and peak memory; and how fast batches come from the store.

Both sides read the same text file, a document a line, and tokenise it with the same tokenizer. The other side is
`load_dataset("text")`, `map` of the tokenizer and `map` of `group_texts` over 1,000 rows at a time, as run_clm.py does
it: as it is, with two processes (`num_proc=2`), and with both sides kept to one core. Each side runs in a process of
its own; sides alternate, and medians are reported with the range of the ratios. Time is that from the text to the
finished store, without imports. Memory is the peak of the proportional set sizes of the process and its children,
imports included. No network.

    python benchmarks/data.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 1024
CASES = {"as it is": (2, 1), "2 processes": (2, 2), "one core": (1, 1)}
"""Cores for both sides, and processes of the other one."""


def make_text(folder: Path, size: int) -> None:
    """Text of `size` bytes with a line per document, and a tokenizer of each objective that was trained on it."""
    from hfpretrain.data import everyday
    from hfpretrain.modeling.tokenizer_training import train_tokenizer
    from hfpretrain.recipe import Tokenizer

    lines = [text.replace("\n", " ") for text in everyday.documents(size, seed=0)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_tokenizer(Tokenizer(algorithm="bpe", vocab_size=8000), "clm", lines[:20000]).save_pretrained(folder / "clm")
    train_tokenizer(Tokenizer(algorithm="wordpiece", vocab_size=8000), "mlm", lines[:20000]).save_pretrained(
        folder / "mlm"
    )


def ours(folder: Path) -> dict[str, float]:
    from hfpretrain.data.sources import open_source
    from hfpretrain.data.tokens import prepare
    from hfpretrain.modeling.tokenizer import load_tokenizer
    from hfpretrain.recipe import Source

    tokenizer = load_tokenizer(str(folder / "clm"), "clm")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        began = time.perf_counter()
        source = open_source(Source(files=str(folder / "text.txt"), documents="line"))
        store = prepare(source, tokenizer, end_id=None, cache=Path(cache))
        return {"seconds": time.perf_counter() - began, "tokens": len(store.tokens)}


def theirs(folder: Path, processes: int) -> dict[str, float]:
    """run_clm.py's preprocessing, with its defaults."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        from datasets import disable_progress_bars, load_dataset
        from transformers import AutoTokenizer

        disable_progress_bars()
        tokenizer = AutoTokenizer.from_pretrained(folder / "clm")
        num_proc = processes if processes > 1 else None

        def tokenize(examples: dict[str, Any]) -> Any:
            return tokenizer(examples["text"])

        def group_texts(examples: dict[str, Any]) -> dict[str, Any]:
            joined = {key: [number for row in rows for number in row] for key, rows in examples.items()}
            total = len(joined["input_ids"]) // BLOCK * BLOCK
            result = {
                key: [values[start : start + BLOCK] for start in range(0, total, BLOCK)]
                for key, values in joined.items()
            }
            result["labels"] = result["input_ids"].copy()
            return result

        began = time.perf_counter()
        dataset = load_dataset("text", data_files=str(folder / "text.txt"), split="train")
        dataset = dataset.map(tokenize, batched=True, num_proc=num_proc, remove_columns=["text"])
        dataset = dataset.map(group_texts, batched=True, num_proc=num_proc)
        return {"seconds": time.perf_counter() - began, "tokens": len(dataset) * BLOCK}


def batches(folder: Path, objective: str, block_size: int) -> float:
    """Tokens per second that come from the store on one core, collated, masks included."""
    import torch

    from hfpretrain.data.batches import open_batches
    from hfpretrain.modeling.objective import Collator
    from hfpretrain.modeling.tokenizer import load_tokenizer
    from hfpretrain.recipe import from_mapping

    torch.set_num_threads(1)
    size = max(1, 16384 // block_size)
    recipe = from_mapping(
        {
            "objective": objective,
            "tokenizer": {"from": str(folder / objective)},
            "data": {
                "sources": [{"files": str(folder / "text.txt"), "documents": "line"}],
                "block_size": block_size,
            },
            "train": {"batch_size": size},
        }
    )
    tokenizer = load_tokenizer(str(folder / objective), recipe.objective)
    opened = open_batches(recipe, tokenizer)
    collator = Collator(recipe, tokenizer, isolated=True)
    speeds = []
    for step in range(40):
        began = time.perf_counter()
        collator(opened.rows(step))
        speeds.append(size * block_size / (time.perf_counter() - began))
    return statistics.median(speeds[10:])


def order_seconds(blocks: int, batch_size: int) -> float:
    """To find which block comes at each place of a step, far into a run of three weighted sources: the median."""
    from fractions import Fraction

    from hfpretrain.amounts import Amount
    from hfpretrain.data.mixing import Mix, lay_out
    from hfpretrain.data.order import derived, permuted

    sizes = [blocks, blocks // 2, blocks // 100]
    words = (Fraction(1),) * 3
    mix = Mix(parts=(0, 1, 2), weights=(85, 10, 5), repeat=(True,) * 3, block_size=BLOCK, words_per_token=words)
    order = lay_out([mix], sizes, batch_size=batch_size, duration=Amount.steps(10**9))
    taken = []
    for step in range(10**8, 10**8 + 200):
        began = time.perf_counter()
        for position in range(step * batch_size, (step + 1) * batch_size):
            part, index = order.place(position) or (0, 0)
            epoch, rest = divmod(index, sizes[part])
            permuted(rest, sizes[part], derived(0, "order", part, epoch))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def peak_memory(process: int, ended: Callable[[], bool]) -> int:
    """The largest sum, seen every 20 ms, of the proportional set sizes of a process and those it started."""
    peak = 0
    while not ended():
        total, waiting = 0, [process]
        while waiting:
            number = waiting.pop()
            try:
                for task in Path(f"/proc/{number}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
                lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has just ended
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        peak = max(peak, total)
        time.sleep(0.02)
    return peak * 1024


def measured(side: str, folder: Path, case: str, *, watched: bool) -> float:
    """One side of a case in a process of its own: its seconds or, watched, which slows it, its peak memory in bytes."""
    cores, _ = CASES[case]
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--case", case]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true" if cores > 1 else "false"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    over = threading.Event()
    peaks: list[int] = []
    watcher = threading.Thread(target=lambda: peaks.append(peak_memory(process.pid, over.is_set)))
    if watched:
        watcher.start()
    out, error = process.communicate()
    over.set()
    if process.returncode:
        sys.exit(f"{side}:\n{error}")
    if watched:
        watcher.join()
        return float(peaks[0])
    return float(json.loads(out.splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        cores, processes = CASES[given.case]
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        print(json.dumps(ours(given.folder) if given.side == "ours" else theirs(given.folder, processes)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HFPRETRAIN_CACHE"] = str(folder / "cache")
        make_text(folder, given.megabytes * 10**6)
        size = (folder / "text.txt").stat().st_size / 1e6
        head = ["run_clm.py", "hfpretrain MB/s", "run_clm.py MB/s", "ratio", "peak memory", "ratio"]
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
        for case in CASES:
            runs = [
                {side: measured(side, folder, case, watched=False) for side in ("ours", "theirs")}
                for _ in range(given.repeats)
            ]
            seconds = {side: statistics.median(run[side] for run in runs) for side in ("ours", "theirs")}
            memory = {side: measured(side, folder, case, watched=True) for side in ("ours", "theirs")}
            ratios = [run["theirs"] / run["ours"] for run in runs]
            row = [
                case,
                f"{size / seconds['ours']:.2f}",
                f"{size / seconds['theirs']:.2f}",
                f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{memory['ours'] / 1e6:.0f} / {memory['theirs'] / 1e6:.0f} MB",
                f"**{memory['ours'] / memory['theirs']:.2f}**",
            ]
            print("| " + " | ".join(row) + " |", flush=True)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        milliseconds = 1000 * order_seconds(10**9, 64)
        print(f"\nthe order of a step of 64 blocks, among a billion: {milliseconds:.2f} ms")
        for objective in ("clm", "mlm"):
            for block_size in (128, 1024):
                speed = batches(folder, objective, block_size)
                print(f"{objective}, blocks of {block_size}: {speed:,.0f} tokens/s from the store on one core")


if __name__ == "__main__":
    main()
