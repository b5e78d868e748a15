"""Tasks go to lm-evaluation-harness where it is installed; where it is not, a sentence says how to get it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LLAMA, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

HARNESS = importlib.util.find_spec("lm_eval") is not None
QUESTIONS = [
    ("the quick brown", ["fox", "river"]),
    ("a lazy", ["dog", "under"]),
    ("the bird", ["sings", "the"]),
    ("over the", ["tree", "runs"]),
]
TASK = """
task: which_word
dataset_path: json
dataset_kwargs: {data_files: {test: "FOLDER/questions.jsonl"}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.skipif(not HARNESS, reason="lm-evaluation-harness (lm-eval) is not installed")
def test_a_task_of_ones_own(tmp_path: Path, hfpretrain: Any) -> None:
    """Which of two words goes on with a text, against a plain loop."""
    run = tiny_run(tmp_path, "clm", f"model={{architecture: llama, config: {LLAMA}}}", "train.duration=30")
    lines = [{"question": text, "choices": words, "answer": 0} for text, words in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "which_word.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    done = hfpretrain("evaluate", run.path, "--tasks", "which_word", "--include-path", "tasks", "--json")
    assert done.returncode == 0, done.stderr
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
    right = 0
    for text, words in QUESTIONS:
        found = []
        for word in words:
            ids, asked = (torch.tensor(tokenizer(each)["input_ids"]) for each in (f"{text} {word}", text))
            with torch.no_grad():
                logs = model(ids[None]).logits[0].log_softmax(-1)
            found.append(sum(logs[place - 1, ids[place]].item() for place in range(len(asked), len(ids))))
        right += found[0] > found[1]
    assert json.loads(done.stdout)["tasks"]["which_word"]["acc"] == right / len(QUESTIONS)
    wrong = hfpretrain("evaluate", run.path, "--tasks", "which_wrd", "--include-path", "tasks")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().endswith("there is no task which_wrd\n  hint: did you mean which_word?")


@pytest.mark.skipif(HARNESS, reason="lm-evaluation-harness (lm-eval) is installed")
def test_without_the_harness(tmp_path: Path, hfpretrain: Any) -> None:
    done = hfpretrain("evaluate", "any", "--tasks", "blimp")
    assert done.returncode == 2
    said = "error: --tasks needs lm-evaluation-harness\n  hint: install it: pip install 'hfpretrain[eval]'\n"
    assert done.stderr.endswith(said)


@pytest.mark.skipif(not HARNESS, reason="lm-evaluation-harness (lm-eval) is not installed")
def test_masked_models_have_no_tasks(tmp_path: Path, hfpretrain: Any) -> None:
    done = hfpretrain("evaluate", tiny_run(tmp_path, "mlm").path, "--tasks", "blimp")
    assert done.returncode == 2
    assert "is a masked language model" in done.stderr
