"""What is reported of held-out text is right: against plain loops, byte by byte, and by any metric that is named."""

import json
import math
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from several import launched
from tiny import LLAMA, metrics, tiny_recipe, tiny_run
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from hfpretrain.data.batches import open_batches
from hfpretrain.errors import RecipeError
from hfpretrain.evaluation import evaluate_model
from hfpretrain.metrics import LanguageModeling
from hfpretrain.metrics import language_modeling as language_modeling_script
from hfpretrain.modeling.loss import Loss, Shortcuts
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import IGNORED, Collator, target_places
from hfpretrain.modeling.proof import prove_shortcuts
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import dump
from hfpretrain.run import Run
from hfpretrain.training.loop import train

COUNTS = """
import datasets
import evaluate


class Counts(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("int32") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        right = sum(one == other for one, other in zip(predictions, references))
        weighed = sum(place * each for place, each in enumerate(predictions)) % 1000003
        return {"share": right / len(references), "count": len(references), "order": weighed, "text": "left out"}
"""
"""A metric in a script: a share, a count, and a number that the order of predictions changes."""


def metric_script(folder: Path, name: str = "counts", text: str = COUNTS) -> Path:
    path = folder / name / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def clm_by_hand(run: Run, texts: list[str]) -> dict[str, float]:
    """Each document by itself, with transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
    nats = right = in_5 = targets = 0.0
    for text in texts:
        ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        best = logits.topk(5).indices == ids[1:, None]
        right, in_5 = right + best[:, 0].sum().item(), in_5 + best.any(1).sum().item()
        targets += len(ids) - 1
    return {
        "loss": nats / targets,
        "perplexity": math.exp(nats / targets),
        "accuracy": right / targets,
        "top5_accuracy": in_5 / targets,
        "targets": targets,
        "bits_per_byte": nats / math.log(2) / sum(len(text.encode()) for text in texts),
    }


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "byte"])
def test_next_word_numbers_are_those_of_a_plain_loop(tmp_path: Path, algorithm: str) -> None:
    """Over documents that no block cuts; what a wordpiece decodes to is not the very text."""
    settings = [f"tokenizer.algorithm={algorithm}", "data.block_size=256", "train.duration=30", "optimizer.lr=1e-2"]
    run = tiny_run(tmp_path, "clm", *settings, f"model={{architecture: llama, config: {LLAMA}}}")
    texts = ["The  quick brown\tfox, naïve: 火.", "a lazy dog sleeps under the tree. " * 3, "birds"]
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = evaluate_model(str(run.path), str(file))
    assert found == pytest.approx(clm_by_hand(run, texts), rel=1e-5)
    assert 0 < found["accuracy"] < found["top5_accuracy"] < 1


@pytest.mark.parametrize("packing", ["documents", "concat"])
@pytest.mark.parametrize("documents", ["line", "file"])
def test_bits_per_byte_of_what_is_held_out(tmp_path: Path, packing: str, documents: str) -> None:
    """Of whole documents and of a document's tail. A token is a byte, so that the bytes can be counted from tokens."""
    lines = [f"{number} naïve foxes see {number * 7} trees\n" for number in range(99)]
    (tmp_path / "text.txt").write_text("".join(lines))
    source = f"data.sources=[{{files: {tmp_path / 'text.txt'}, documents: {documents}}}]"
    settings = ["tokenizer.algorithm=byte", source, f"data.packing={packing}", "evaluation.max_tokens=100"]
    recipe = tiny_recipe(tmp_path, "clm", *settings)
    run = train(recipe)
    held_out = open_batches(recipe, AutoTokenizer.from_pretrained(run.path)).validation
    assert held_out is not None
    borders = 2 * sum(len(held_out.documents(index)) for index in ([] if documents == "file" else range(len(held_out))))
    found = run.report()
    targets, bits = found["validation_targets"], found["validation_bits_per_byte"]
    if documents == "line":  # each has <s> and </s>
        blocks = [held_out[index] for index in range(len(held_out))]
        covered = sum(int((block.token_ids[:-1][block.targets[:-1]] >= 3).sum()) for block in blocks)
        assert 0 < covered < held_out.tokens < covered + borders
    else:  # its first byte is predicted from nothing, its last token is </s>
        covered = held_out.tokens - 2
    assert bits == pytest.approx(found["validation_loss"] * targets / math.log(2) / covered, rel=1e-9)
    again = evaluate_model(str(run.path))
    assert again["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    first, last = (line for line in run.metrics() if "validation_loss" in line)
    assert first["validation_targets"] < last["validation_targets"] == targets
    # Of a part, the bytes are those of its share of the tokens.
    share = first["validation_bits_per_byte"] / first["validation_loss"]
    assert share == pytest.approx(last["validation_bits_per_byte"] / last["validation_loss"], rel=0.1)


def test_pairs_of_prompt_and_completion_have_no_bits_per_byte(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"p": f"{number} the quick", "c": "brown fox"}) + "\n" for number in range(60)))
    source = f"data.sources=[{{files: {file}, prompt_column: p, completion_column: c}}]"
    run = tiny_run(tmp_path, "clm", source)
    assert "validation_top5_accuracy" in run.report()
    assert "validation_bits_per_byte" not in run.report()


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_the_best_tokens_are_the_same_in_every_way_to_the_loss(tmp_path: Path, objective: str) -> None:
    """And where all are equally likely, or no numbers, the right one is hardly ever among them."""
    recipe = tiny_recipe(tmp_path, objective, "data.packing=concat")
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer).eval()
    batches = open_batches(recipe, tokenizer)
    batch = Collator(recipe, tokenizer, isolated=True)(batches.validation_rows(range(4)))
    batch.setdefault("targets", target_places(batch["labels"]))
    ways = prove_shortcuts(model, None, on_targets=objective == "mlm")
    assert ways.fused
    labels = batch["labels"].flatten()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=(batch["document_ids"] >= 0).long()).logits
        order = logits.flatten(0, 1).sort(dim=-1, descending=True, stable=True).indices
    places = (labels != IGNORED).nonzero()[:, 0]
    for shortcuts in (Shortcuts(), ways):
        loss = Loss(model, None, shortcuts)
        scores = loss.scores(model, batch)
        kept = scores.labels != IGNORED
        assert torch.equal(scores.places[kept], places)
        assert torch.equal(scores.labels[kept], labels[places])
        assert torch.equal(scores.best[kept], order[places, :5])
        with torch.no_grad():
            assert scores.nats.sum().item() == pytest.approx(loss(model, batch).item(), rel=1e-6)
        loss.close()
    for value in (0.0, float("nan")):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, value)
        scores = Loss(model, None).scores(model, batch)
        assert (scores.best == scores.labels[:, None]).any(1).float().mean() < 0.3


def test_masked_models_are_measured_at_one_rate(tmp_path: Path) -> None:
    """Whatever they are trained with, on the same masks; another rate is another measure."""
    found = {}
    for name, settings in {
        "usual": [],
        "more": ["masking.rate=0.4"],
        "moving": ["masking.rate={from: 0.5, to: 0.3}"],
        "asked": ["evaluation.masking_rate=0.4"],
    }.items():
        recipe = tiny_recipe(tmp_path, "mlm", *settings)
        tokenizer = build_tokenizer(recipe)
        rows = open_batches(recipe, tokenizer).validation_rows(range(10))
        found[name] = Collator(recipe, tokenizer, isolated=True, steps=12)(rows)["labels"]
    assert torch.equal(found["usual"], found["more"])
    assert torch.equal(found["usual"], found["moving"])
    shares = [(found[name] != IGNORED).float().mean().item() for name in ("usual", "asked")]
    assert 0.05 < shares[0] < 0.2 < 0.25 < shares[1] < 0.45


def test_pseudo_perplexity_is_that_of_a_plain_loop(tmp_path: Path, hfpretrain: Any) -> None:
    """Each token masked by itself, in the report and by the command."""
    config = {"max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = [f"model.config={json.dumps(config)}", "data.block_size=48", "evaluation.pseudo_perplexity=true"]
    run = tiny_run(tmp_path, "mlm", *settings, "train.duration=30", "optimizer.lr=1e-2", "tokenizer.algorithm=bpe")
    texts = ["the quick brown fox jumps over a lazy dog.", "a bird  sings: a tree", "small river"]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
    nats = tokens = 0.0
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        for place in range(len(ids)):
            if int(ids[place]) in tokenizer.all_special_ids:
                continue
            masked = ids.clone()
            masked[place] = tokenizer.mask_token_id
            with torch.no_grad():
                nats -= model(masked[None]).logits[0, place].log_softmax(-1)[ids[place]].item()
            tokens += 1
    done = hfpretrain("evaluate", run.path, "--data", "new.jsonl", "--pseudo-perplexity", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pseudo_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    size = sum(len(text.encode()) for text in texts)
    assert found["pseudo_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert "bits_per_byte" not in found, "of a few masked tokens there is none"
    assert "pseudo_loss" not in json.loads(hfpretrain("evaluate", run.path, "--data", "new.jsonl", "--json").stdout)
    for line in run.metrics():
        assert ("validation_loss" in line) == ("validation_pseudo_perplexity" in line)


def test_a_model_is_shown_no_more_than_it_has_positions(tmp_path: Path) -> None:
    """RoBERTa's kind counts them from behind its padding row; a checkpoint is a model that is no run."""
    config = json.dumps(LLAMA | {"max_position_embeddings": 66})
    run = tiny_run(tmp_path, "mlm", f"model={{architecture: roberta, config: {config}}}", "train.duration=2")
    (tmp_path / "long.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    found = evaluate_model(str(run.checkpoints / "step-00000002"), str(tmp_path / "long.txt"))
    assert found["targets"] > 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pairs", "p.jsonl", "--metric", "m"], "--metric is about text"),
        (["--tasks", "blimp", "--pseudo-perplexity"], "--pseudo-perplexity is about text"),
        (["--include-path", "tasks"], "--include-path is where tasks are, and none is named"),
        (["--tasks", " ,"], "--tasks names no task"),
    ],
)
def test_options_that_would_do_nothing_are_errors(hfpretrain: Any, options: list[str], said: str) -> None:
    done = hfpretrain("evaluate", "any", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")


def test_of_several_processes_one_prints(tmp_path: Path, hfpretrain: Any) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=2")
    first, second = (hfpretrain("evaluate", run.path, "--json", RANK=rank, WORLD_SIZE="1") for rank in "01")
    assert "loss" in json.loads(first.stdout)
    assert (second.returncode, second.stdout) == (0, "")


def test_without_a_target_there_is_no_loss(tmp_path: Path, hfpretrain: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of so little text none is masked: 0 would be the best loss there is."""
    (tmp_path / "little.txt").write_text("a cat")
    folder, little = metric_script(tmp_path).parent, f"data.validation=[{{files: {tmp_path / 'little.txt'}}}]"
    with caplog.at_level("INFO"):
        run = tiny_run(tmp_path, "mlm", little, f"evaluation.metrics=[{folder}]")
    assert "step 12: no held-out token is a target" in caplog.text
    for found in (run.report(), *(line for line in run.metrics() if "validation_targets" in line)):
        assert found["validation_targets"] == 0
        assert not {"validation_loss", "validation_perplexity", "validation_counts.share"} & found.keys()
    assert run.summary().loss == run.report()["loss"], "of training, as there is no other"
    done = hfpretrain("evaluate", run.path, "--data", "little.txt", "--pseudo-perplexity", "--metric", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert "there is no loss: give more text" in done.stderr
    assert set(json.loads(done.stdout)) == {"targets", "pseudo_loss", "pseudo_perplexity", "pseudo_bits_per_byte"}


def test_the_metrics_are_evaluate_modules(tmp_path: Path) -> None:
    """Of parts, in whatever number, the same as of the whole; and `evaluate.load` takes their script."""
    parts = [(10.5, 7, 3, 5), (2.25, 1, 0, 1), (0.5, 4, 4, 4)]
    names = ("nats", "targets", "right", "right_in_5")
    ours = LanguageModeling(keep_in_memory=True, cache_dir=str(tmp_path / "cache"))
    assert isinstance(ours, evaluate.Metric)
    assert not list(tmp_path.iterdir()), "nothing is written"
    for part in parts:
        ours.add_batch(**{name: [value] for name, value in zip(names, part, strict=True)})
    found = ours.compute(text_bytes=100)
    loaded = evaluate.load(str(Path(language_modeling_script.__file__)), keep_in_memory=True)
    whole = [[sum(each)] for each in zip(*parts, strict=True)]
    assert loaded.compute(**dict(zip(names, whole, strict=True)), text_bytes=100) == pytest.approx(found)
    assert found["loss"] == pytest.approx(13.25 / 12)
    assert found["bits_per_byte"] == pytest.approx(13.25 / math.log(2) / 100)
    assert (found["accuracy"], found["top5_accuracy"], found["targets"]) == (7 / 12, 10 / 12, 12)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_any_metric_of_evaluate(tmp_path: Path, objective: str, hfpretrain: Any) -> None:
    """By the folder of its script, at each evaluation: it sees all targets, so that its accuracy is ours."""
    folder = metric_script(tmp_path).parent
    run = tiny_run(tmp_path, objective, f"evaluation.metrics=[{folder}]", "train.duration=30", "optimizer.lr=1e-2")
    evaluations = [line for line in run.metrics() if "validation_loss" in line]
    assert len(evaluations) == 5
    for found in (*evaluations, run.report()):
        assert found["validation_counts.share"] == pytest.approx(found["validation_accuracy"])
        assert found["validation_counts.count"] == found["validation_targets"]
        assert "validation_counts.text" not in found
    done = hfpretrain("evaluate", run.path, "--metric", folder / "counts.py", "--json")
    assert json.loads(done.stdout)["counts.order"] == run.report()["validation_counts.order"]
    assert "counts.order" not in json.loads(hfpretrain("evaluate", run.path, "--json").stdout), "it is code"
    assert str(folder) not in (run.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nowhere", None, "nowhere cannot be loaded"),
        ("counts", "import no_such_library\n" + COUNTS, "cannot be loaded"),
        ("counts", COUNTS.replace('"predictions", "ref', '"scores", "ref'), "wants scores and references"),
        ("counts", COUNTS.replace("len(references),", "1 / 0,"), "cannot be computed of token ids (ZeroDivisionError"),
        ("counts", COUNTS.replace("return {", "return {} and {"), "gives no numbers"),
    ],
)
def test_a_metric_of_no_use_is_said_before_training(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    path = tmp_path / name if text is None else metric_script(tmp_path, name, text)
    with pytest.raises(RecipeError) as caught:
        tiny_run(tmp_path, "clm", f"evaluation.metrics=[{path}]")
    assert caught.value.message.startswith("evaluation.metrics: ")
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "runs" / "tiny" / "metrics.jsonl").exists()


def test_a_metric_sees_the_first_targets_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many that memory is bounded, and the same ones whatever is looked at at once."""
    from hfpretrain.evaluation import other_metrics

    run = tiny_run(tmp_path, "clm")
    script = str(metric_script(tmp_path))
    whole = evaluate_model(str(run.path), metrics=(script,))
    monkeypatch.setattr(other_metrics, "MOST_TARGETS", 6 * 16)
    first, *others = (evaluate_model(str(run.path), metrics=(script,), micro_batch_size=size) for size in (1, 4, 5))
    assert 60 < first["counts.count"] <= 96 < whole["counts.count"]
    assert all(other["counts.order"] == first["counts.order"] for other in others)
    assert first["targets"] == whole["targets"]


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_two_processes_report_what_one_does(tmp_path: Path, objective: str) -> None:
    """Every number, of pairs and of another metric too, where blocks and batches do not divide."""
    pairs = [
        {"sentence_good": "the quick " + "fox " * count, "sentence_bad": "fox the " * count, "UID": str(count % 3)}
        for count in range(1, 8)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = LLAMA if objective == "clm" else LLAMA | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    settings = [
        f"model={{architecture: {'llama' if objective == 'clm' else 'bert'}, config: {json.dumps(config)}}}",
        *(f"evaluation.pairs={tmp_path / 'pairs.jsonl'}", f"evaluation.metrics=[{metric_script(tmp_path)}]"),
        *("train.micro_batch_size=2", "train.shortcuts=none", "evaluation.max_tokens=200"),
        *(["evaluation.pseudo_perplexity=true"] if objective == "mlm" else []),
    ]
    one = tiny_run(tmp_path, objective, *settings, name="one")
    file = tmp_path / "two.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, objective, *settings, name="two")))
    done = launched(file, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    two = Run(tmp_path / "runs" / "two")
    assert two.report()["processes"] == 2
    evaluations = [[line for line in metrics(run) if "validation_loss" in line] for run in (one, two)]
    assert len(evaluations[0]) == 2
    for single, double in zip(*evaluations, strict=True):
        assert single.pop("pairs_groups") == double.pop("pairs_groups")
        assert {"pairs_accuracy", "validation_counts.order", "validation_top5_accuracy"} < set(single)
        assert single == pytest.approx(double, rel=1e-6, abs=1e-6)
