"""Minimal pairs: the likelihoods of a plain loop, ties that are wrong, groups, and files that are no pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import BERT, GPT2, LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from hfpretrain.errors import DataError
from hfpretrain.evaluation import evaluate_model
from hfpretrain.evaluation.looking import Looker
from hfpretrain.evaluation.pairs import read_pairs
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.run import Run

PAIRS = [
    ("the quick brown fox jumps over the lazy dog.", "the quick brown fox dog over the lazy jumps.", "order"),
    ("a cat sings.", "sings. a cat", "order"),
    ("the bird sleeps under the tree", "the bird sleeps under the tree", "same"),
    ("a small fox runs near the river", "a small fox xylophone near the river", "words"),
    ("the lazy cat", "the cat lazy", "order"),
    ("tree", "zebra crossing", "words"),
    ("A bird sings.", "a bird sings.", "same"),
]
KINDS = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}


def write_pairs(folder: Path, pairs: list[tuple[str, str, str]] = PAIRS) -> str:
    path = folder / "pairs.jsonl"
    lines = [
        {"sentence_good": good, "sentence_bad": bad, "UID": kind, "pair_id": number, "note": f"line {number}"}
        for number, (good, bad, kind) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def likelihood(model: Any, tokenizer: Any, text: str) -> float:
    """Of one sentence, with transformers alone and no batch."""
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, special = torch.tensor(encoded["input_ids"]), encoded["special_tokens_mask"]
    total = 0.0
    with torch.no_grad():
        if tokenizer.mask_token_id is None:
            logs = model(ids[None]).logits[0].log_softmax(-1)
            return float(sum(logs[place - 1, ids[place]].item() for place in range(1, len(ids))))
        for place in [place for place, each in enumerate(special) if not each]:
            masked = ids.clone()
            masked[place] = tokenizer.mask_token_id
            total += model(masked[None]).logits[0, place].log_softmax(-1)[ids[place]].item()
    return total


def by_hand(run: Run, objective: str, pairs: list[tuple[str, str, str]] = PAIRS) -> list[bool]:
    model, tokenizer = KINDS[objective].from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
    found = []
    for good, bad, _ in pairs:
        same = tokenizer(good)["input_ids"] == tokenizer(bad)["input_ids"]
        found.append(not same and likelihood(model, tokenizer, good) > likelihood(model, tokenizer, bad))
    return found


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("clm", [f"model={{architecture: llama, config: {LLAMA}}}"]),
        ("clm", [f"model={{architecture: gpt2, config: {GPT2}}}", "data.packing=concat"]),
        ("mlm", [f"model={{architecture: bert, config: {BERT}}}", "tokenizer.lowercase=true"]),
        ("mlm", [f"model={{architecture: roberta, config: {BERT}}}", "tokenizer.algorithm=bpe"]),
    ],
)
def test_as_a_plain_loop_finds_them(tmp_path: Path, objective: str, settings: list[str]) -> None:
    """During training, in the report, and afterwards, with and without the shortcuts to the loss."""
    file = write_pairs(tmp_path)
    common = ["train.duration=24", "optimizer.lr=3e-3", "train.micro_batch_size=2", f"evaluation.pairs={file}"]
    run = tiny_run(tmp_path, objective, *common, *settings)
    expected = by_hand(run, objective)
    assert 0 < sum(expected) < len(expected)
    found = evaluate_model(str(run.path), pairs=file)
    assert found["pairs_accuracy"] == pytest.approx(sum(expected) / len(expected))
    assert found["pairs"] == len(PAIRS)
    assert list(found["groups"]) == ["UID"], "numbers, and texts that are all different, make no groups"
    for kind, group in found["groups"]["UID"].items():
        own = [right for right, pair in zip(expected, PAIRS, strict=True) if pair[2] == kind]
        assert group == {"accuracy": pytest.approx(sum(own) / len(own)), "pairs": len(own)}
    assert "loss" not in found, "the held-out text was not asked for"
    evaluations = [line for line in metrics(run) if "pairs_accuracy" in line]
    assert [line["step"] for line in evaluations] == [6, 12, 18, 24]
    for reported in (evaluations[-1], run.report()):
        assert reported["pairs_accuracy"] == found["pairs_accuracy"]
        assert reported["pairs_groups"] == found["groups"]
    if objective == "mlm" and "bert, " in settings[0]:
        assert found["groups"]["UID"]["same"]["accuracy"] == 0, "what is equal to the model is a tie"


def test_likelihoods_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """To six digits, whatever the sizes of batches."""
    file = write_pairs(tmp_path)
    for objective in ("clm", "mlm"):
        run = tiny_run(tmp_path, objective, name=objective)
        model, tokenizer = KINDS[objective].from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
        pairs = read_pairs(file, tokenizer, model, masked=objective == "mlm", begins=False)
        how = prove_document_masking(model, objective)
        looker = Looker(model=model.eval(), loss=Loss(model, how), accelerator=Accelerator())
        for batch_tokens in (1, 48, 1600):
            found = pairs.likelihoods(looker, batch_tokens=batch_tokens)
            for side, place in ((pairs.good, 0), (pairs.bad, 1)):
                expected = [likelihood(model, tokenizer, pair[place]) for pair in PAIRS]
                assert found[side].tolist() == pytest.approx(expected, rel=1e-5)


def test_looking_at_pairs_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    """Even without held-out text."""
    settings = ["data.validation=0%", f"evaluation.pairs={write_pairs(tmp_path)}"]
    looked = tiny_run(tmp_path, "clm", *settings, name="looked")
    plain = tiny_run(tmp_path, "clm", settings[0], name="plain")
    assert same_weights(weights(looked), weights(plain))
    assert "pairs_accuracy" in looked.report()
    assert "validation_loss" not in looked.report()


GOOD = '{"sentence_good": "a cat", "sentence_bad": "cat a"}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "pairs.jsonl holds no pairs"),
        (GOOD.encode() + b"{sentence_good: 1}\n", "pairs.jsonl:2: not JSON"),
        (GOOD.encode() + b"\n[1]\n", "pairs.jsonl:3: not a JSON object"),
        (b'{"sentence_good": "a cat"}\n', "pairs.jsonl:1: sentence_bad is missing"),
        (b'{"sentence_good": "a cat", "sentence_bad": 3}\n', "pairs.jsonl:1: sentence_bad is not a text"),
        (b'{"sentence_good": "", "sentence_bad": "a"}\n', "pairs.jsonl:1: sentence_good is empty"),
        (b'{"sentence_good": "\\ud800", "sentence_bad": "a"}\n', "pairs.jsonl:1: holds half of a surrogate pair"),
        (b'{"sentence_good": "b", "sentence_bad": "a", "UID": "\\udfff"}\n', "pairs.jsonl:1: holds half of a"),
        (GOOD.encode() + b'{"sentence_good": "\xff"}\n', "pairs.jsonl:2: not UTF-8 (byte 0xff)"),
        (
            json.dumps({"sentence_good": "cat" + 39 * " cat", "sentence_bad": "a"}).encode(),
            "pairs.jsonl:1: sentence_good is 41 tokens long, and the model takes 32 at most",
        ),
        (None, "pairs.jsonl cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_none_is_said_before_training(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "pairs.jsonl"
    if content is not None:
        file.write_bytes(content)
    config = json.dumps(GPT2 | {"n_positions": 32})
    with pytest.raises(DataError) as caught:
        tiny_run(tmp_path, "clm", f"evaluation.pairs={file}", f"model={{architecture: gpt2, config: {config}}}")
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "runs" / "tiny" / "metrics.jsonl").exists()


def test_the_command_prints_them(tmp_path: Path, hfpretrain: Any) -> None:
    run = tiny_run(tmp_path, "clm")
    file = write_pairs(tmp_path)
    done = hfpretrain("evaluate", run.path, "--pairs", file)
    assert done.returncode == 0, done.stderr
    lines = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert set(lines) == {"pairs_accuracy", "pairs", "UID order", "UID same", "UID words"}
    both = json.loads(hfpretrain("evaluate", run.path, "--pairs", file, "--data", "corpus.jsonl", "--json").stdout)
    assert both["pairs_accuracy"] == pytest.approx(float(lines["pairs_accuracy"]), abs=1e-4)
    assert both["bits_per_byte"] > 0
    assert both["groups"]["UID"]["order"]["pairs"] == 3
    wrong = hfpretrain("evaluate", run.path, "--pairs", "nowhere.jsonl")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: the pairs nowhere.jsonl cannot be read")


def test_a_run_that_looks_at_pairs_alone_is_whole(tmp_path: Path) -> None:
    from hfpretrain.verify import verify

    run = tiny_run(tmp_path, "clm", f"evaluation.pairs={write_pairs(tmp_path)}", "data.validation=0%")
    assert all(finding.good for finding in verify(run.path)), list(verify(run.path))
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join([*lines[:-1], lines[-1], lines[-1]]))
    assert "metrics.jsonl" in {finding.what for finding in verify(run.path) if not finding.good}


def test_a_recipe_with_pairs_resumes_without_them(tmp_path: Path) -> None:
    """What is looked at changes nothing that is learnt."""
    from hfpretrain.errors import Stopped
    from hfpretrain.training.loop import train

    recipe = tiny_recipe(tmp_path, "clm", f"evaluation.pairs={write_pairs(tmp_path)}")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    (tmp_path / "pairs.jsonl").unlink()
    run = train(tiny_recipe(tmp_path, "clm"), resume=True)
    assert run.report()["state"] == "finished"
