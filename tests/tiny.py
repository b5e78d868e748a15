"""Tiny corpora, recipes and models: two layers, 32 wide, made on the spot."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hfpretrain.recipe import Recipe, from_mapping
from hfpretrain.run import Run
from hfpretrain.training.loop import train

WORDS = [
    *("the", "a", "quick", "brown", "lazy", "small", "fox", "dog", "cat", "bird"),
    *("jumps", "runs", "sleeps", "sings", "over", "under", "near", "with", "river", "tree"),
]

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}
"""Its dropouts are 0.1 by default."""
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def write_corpus(path: Path, documents: int = 120, seed: int = 0) -> Path:
    """A .jsonl of short texts of odd lengths."""
    state = seed
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            words = []
            for _ in range(3 + 7 * number % 23):
                state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
                words.append(WORDS[(state >> 33) % len(WORDS)])
            file.write(json.dumps({"text": " ".join(words) + "."}) + "\n")
    return path


def tiny_recipe(folder: Path, objective: str = "clm", *overrides: str, name: str = "tiny") -> Recipe:
    """A recipe on a corpus in `folder`: a tiny GPT-2 or BERT with dropout, 12 steps of 4 blocks of 16."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus)
    architecture, config = ("gpt2", GPT2) if objective == "clm" else ("bert", BERT)
    mapping: dict[str, Any] = {
        "objective": objective,
        "name": name,
        "output_dir": str(folder / "runs" / name),
        "model": {"architecture": architecture, "config": config},
        "tokenizer": {"vocab_size": 320},
        "data": {"sources": [{"files": str(corpus)}], "validation": "10%", "block_size": 16},
        "train": {"duration": 12, "batch_size": 4, "log_every": 1, "precision": "fp32"},
        "optimizer": {"lr": 1e-3},
        "evaluation": {"every": 6, "prompts": []},
        "checkpoints": {"every": 5},
    }
    return from_mapping(mapping, overrides)


def tiny_run(folder: Path, objective: str = "clm", *overrides: str, name: str = "tiny", resume: bool = False) -> Run:
    return train(tiny_recipe(folder, objective, *overrides, name=name), resume=resume)


def weights(run: Run | Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file((run.path if isinstance(run, Run) else run) / "model.safetensors")
    return loaded


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in run.metrics_file.read_text(encoding="utf-8").splitlines()]
    clock = ("tokens_per_second", "mfu", "time")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]
