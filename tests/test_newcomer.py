"""The way of a newcomer, by the command line alone: init, check, train, fill or generate, report, push."""

import json
from pathlib import Path

import pytest
from conftest import Command
from loopback_hub import LoopbackHub
from tiny import write_corpus


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_no_step_fails(objective: str, tmp_path: Path, hfpretrain: Command) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=400)

    def step(*arguments: str, **environment: str) -> str:
        done = hfpretrain(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    written = step("init", "--objective", objective, "--data", "corpus.jsonl", "--size", "100k", "--name", "mine")
    assert "mine.yaml" in written
    assert "mine: valid" in step("check", "mine.yaml")
    trained = step("train", "mine.yaml", "train.duration=12", "evaluation.every=6")
    assert "runs/mine" in trained and "validation" in trained
    if objective == "clm":
        # Without --model it is the newest run of the right objective.
        assert json.loads(step("generate", "the quick", "--words", "2", "--json"))["continuation"].strip()
    else:
        assert "%" in step("fill", "the [MASK] fox")
    assert Path(step("report", "runs/mine", "--no-open").strip()).name == "report.html"
    assert "runs/mine" in step("runs") and "finished" in step("runs")
    with LoopbackHub() as hub:
        assert "tester/mine" in step("push", "runs/mine", "tester/mine", **hub.environment())
        files = hub.repositories["tester/mine"].files("main")
        assert files and {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
