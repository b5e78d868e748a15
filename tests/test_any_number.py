"""The number of processes changes nothing but rounding: of mixed sources, accumulated, and when it changes midway."""

from pathlib import Path

import pytest
from several import cut_back, launched
from tiny import LLAMA, metrics, tiny_recipe, tiny_run, write_corpus

from hfpretrain.recipe import dump
from hfpretrain.run import Run

BERT = LLAMA | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
MODELS = {
    "clm": f"model={{architecture: llama, config: {LLAMA}}}",
    "mlm": f"model={{architecture: bert, config: {BERT}}}",
}


def settings(folder: Path, objective: str) -> list[str]:
    one, other = (write_corpus(folder / f"{name}.jsonl", 120, seed) for seed, name in enumerate(("one", "other")))
    return [
        MODELS[objective],
        f"data.sources=[{{files: {one}, weight: 2}}, {{files: {other}, weight: 1}}]",
        "train={batch_size: 8, micro_batch_size: 1, duration: 50, log_every: 1, precision: fp32}",
        "evaluation.every=25",
        "checkpoints={every: 20, keep: 4}",
    ]


def same(one: Run, other: Run) -> None:
    """Losses within 1e-5 at every step; what evaluations found, counts among it, within a millionth."""
    for single, several in zip(metrics(one), metrics(other), strict=True):
        within = 1e-5 if "loss" in single else 1e-6
        assert single.pop("epochs", None) == several.pop("epochs", None)
        assert single == pytest.approx(several, abs=within, rel=1e-6)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_one_two_and_four_learn_the_same(tmp_path: Path, objective: str) -> None:
    given = settings(tmp_path, objective)
    one = tiny_run(tmp_path, objective, *given, name="one")
    for processes in (2, 4):
        file = tmp_path / f"in-{processes}.yaml"
        file.write_text(dump(tiny_recipe(tmp_path, objective, *given, name=file.stem)))
        done = launched(file, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        run = Run(tmp_path / "runs" / file.stem)
        assert run.report()["processes"] == processes
        assert run.report()["validation_targets"] == one.report()["validation_targets"] > 0
        same(one, run)
    if objective == "mlm":
        return
    # Two until step 20, one until step 40, and four to the end.
    half = cut_back(Run(tmp_path / "runs" / "in-2"), "half", 20)
    tiny_run(tmp_path, objective, *given, name="half", resume=True)
    last = cut_back(half, "last", 40)
    file = tmp_path / "last.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, objective, *given, name="last")))
    done = launched(file, 4, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step-00000040" in done.stderr
    assert "processes 1 before, 4 now" in done.stderr
    same(one, last)
