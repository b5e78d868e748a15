"""The command line as users meet it: results on stdout, a sentence and an exit status for what is wrong."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Command
from tiny import BERT, GPT2, tiny_run, write_corpus

from hfpretrain.cli import main
from hfpretrain.run import Run, newest_finished


@dataclass(frozen=True)
class Done:
    status: int | str | None
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The entry point in this process (importing torch anew for every case would take minutes)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["hfpretrain", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return Done(stopped.value.code, out, err)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("models")
    return {objective: tiny_run(folder, objective, name=objective) for objective in ("mlm", "clm")}


def base(objective: str = "clm") -> dict[str, object]:
    architecture, config = ("gpt2", GPT2) if objective == "clm" else ("bert", BERT)
    return {
        "objective": objective,
        "model": {"architecture": architecture, "config": config},
        "tokenizer": {"vocab_size": 320},
        "data": {"sources": [{"files": "corpus.jsonl"}], "validation": "10%", "block_size": 16},
        "train": {"duration": 2, "batch_size": 4},
    }


def text_file(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "text.txt").write_bytes(content)

    return write


def nothing(folder: Path) -> None:
    """No file is needed."""


TEXT = "data.sources=[{files: text.txt, documents: line}]"
WRONG: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "unknown key": (nothing, ["train.batch_sice=3"], ["train.batch_sice", "batch_size"]),
    "wrong type": (nothing, ["train.batch_size=many"], ["train.batch_size", "many"]),
    "out of range": (nothing, ["optimizer.lr=-1"], ["optimizer.lr", "-1"]),
    "missing file": (nothing, ["data.sources=[{files: corpsu.jsonl}]"], ["corpsu.jsonl", "corpus.jsonl"]),
    "unknown architecture": (nothing, ["model.architecture=lama"], ["lama", "llama"]),
    "architecture of the other objective": (nothing, ["model={architecture: distilbert}"], ["distilbert", "mlm"]),
    "key that the architecture lacks": (nothing, ["model.config.n_heads=2"], ["model.config.n_heads", "n_head"]),
    "heads that do not divide": (nothing, ["model.config.n_head=5"], ["32", "5"]),
    "no such model": (nothing, ["model={from: ./no/such/model}", "tokenizer=null"], ["./no/such/model"]),
    "empty corpus": (text_file(b"\n \n"), [TEXT], ["no text", "data.sources"]),
    "not UTF-8": (text_file(b"one\ntwo\nthr\xffee\n"), [TEXT], ["text.txt:3", "UTF-8", "0xff"]),
    "smaller than a block": (
        text_file(b"few words\n"),
        [TEXT, "data.block_size=512", "tokenizer={algorithm: byte}"],
        ["less than one block of 512", "data.block_size"],
    ),
    "unknown tracker": (nothing, ["trackers=[tensorbord]"], ["trackers", "tensorbord", "tensorboard"]),
    "override without a value": (nothing, ["train.batch_size"], ["train.batch_size", "KEY=VALUE"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_sentence(tmp_path: Path, call: Call, case: str) -> None:
    prepare, overrides, said = WRONG[case]
    write_corpus(tmp_path / "corpus.jsonl")
    prepare(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base()))
    done = call("train", "recipe.yaml", *overrides)
    assert done.status == 2, done.err
    assert done.out == ""
    message = done.err[done.err.index("error: ") :]
    for words in said:
        assert words in message
    assert "Traceback" not in done.err
    assert len(message.splitlines()) <= 3


def test_every_error_of_a_recipe_with_its_line(tmp_path: Path, hfpretrain: Command) -> None:
    (tmp_path / "recipe.yaml").write_text("objective: clm\nsead: 1\ntrain:\n  batch_size: 0\n")
    done = hfpretrain("train", "recipe.yaml")
    assert done.returncode == 2
    assert "recipe.yaml:2: sead: unknown key; did you mean seed?" in done.stderr
    assert "recipe.yaml:4: train.batch_size" in done.stderr
    assert "data" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_does_not_parse(tmp_path: Path, hfpretrain: Command) -> None:
    (tmp_path / "recipe.yaml").write_text("objective: clm\n  data: [\n")
    done = hfpretrain("check", "recipe.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe.yaml:2")
    assert len(done.stderr.splitlines()) <= 2


def test_fill_and_generate(call: Call, runs: dict[str, Run]) -> None:
    done = call("fill", "the quick [MASK] fox", "--model", runs["mlm"].path, "--top-k", "3", "--json")
    assert done.status == 0
    ((first, *others),) = json.loads(done.out)
    assert len(others) == 2
    assert first["sentence"].startswith("the quick")
    plain = call("fill", "the quick <mask> fox", "--model", runs["mlm"].path, "--top-k", "3")
    assert plain.out.splitlines()[0].split()[0] == first["token"]
    said = call("generate", "the quick", "--model", runs["clm"].path, "--max-new-tokens", "5")
    assert said.status == 0
    assert said.out.endswith("\n")
    table = call("generate", "the quick", "--model", runs["clm"].path, "--top-k-next", "3", "--json")
    assert len(json.loads(table.out)) == 3


def test_the_newest_finished_run_is_the_default_and_is_named(tmp_path: Path, call: Call) -> None:
    tiny_run(tmp_path, "mlm", "train.duration=2", name="older")
    newer = tiny_run(tmp_path, "mlm", "train.duration=2", name="newer")
    tiny_run(tmp_path, "clm", "train.duration=2", name="other")
    done = call("fill", "the [MASK] fox")
    assert done.status == 0
    assert f"model: {newer.path.relative_to(tmp_path)}" in done.err
    listed = json.loads(call("runs", "--json").out)
    assert [line["objective"] for line in listed] == ["clm", "mlm", "mlm"]


@pytest.mark.parametrize(
    ("report", "known"),
    [
        (b"", "damaged"),
        (b"\xff{}", "damaged"),
        (b"[[1, 2]]", "damaged"),
        (b"{" * 100_000, "damaged"),
        (b'{"tokens": ' + b"9" * 5_000 + b"}", "damaged"),
        (None, "damaged"),
        (b"{}", "finished"),
        (b'{"objective": "mlm", "tokens": 5}', "finished   mlm  5 tokens"),
        (b'{"objective": ["mlm"], "tokens": "x", "loss": {}}', "finished"),
        (b'{"objective": "mlm\\u001b[2J", "tokens": true, "validation_loss": NaN}', "finished"),
        (b'{"objective": "mlm", "tokens": [], "loss": 2.5, "validation_loss": null}', "finished   mlm    loss 2.5000"),
    ],
)
def test_a_run_with_an_odd_report_is_listed_with_what_is_known(
    tmp_path: Path, call: Call, runs: dict[str, Run], report: bytes | None, known: str
) -> None:
    whole, odd = tmp_path / "runs" / "whole", tmp_path / "runs" / "odd"
    for folder in (whole, odd):
        folder.mkdir(parents=True)
        shutil.copy(runs["clm"].report_file, folder)
        shutil.copy(runs["clm"].recipe_file, folder)
    (odd / "report.json").unlink()
    if report is None:
        (odd / "report.json").mkdir()
    else:
        (odd / "report.json").write_bytes(report)
    done = call("runs")
    assert done.status == 0, done.err
    lines = {line.split()[0]: " ".join(line.split()[1:]).removesuffix(" just now") for line in done.out.splitlines()}
    assert lines["runs/odd"] == " ".join(known.split())
    assert lines["runs/whole"].startswith("finished clm 768 tokens loss ")
    listed = {line["run"]: line for line in json.loads(call("runs", "--json").out)}
    assert listed["runs/odd"]["state"] == known.split()[0]
    assert newest_finished(Path("runs"), "clm") == Run(Path("runs/whole"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fill", "the [MASK] fox", "--model", "clm"), "generate"),
        (("generate", "the quick", "--model", "mlm"), "fill"),
        (("fill", "the quick fox", "--model", "mlm"), "[MASK]"),
        (("fill", "a [MASK]", "--model", "./no/such/run"), "./no/such/run"),
        (("evaluate", "./no/such/run", "--data", "x.txt"), "./no/such/run"),
    ],
)
def test_a_wrong_use_of_a_model(call: Call, runs: dict[str, Run], arguments: tuple[str, ...], said: str) -> None:
    done = call(*[str(runs[word].path) if word in runs else word for word in arguments])
    assert done.status == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_model_path_that_is_not_there_fails_at_once(call: Call) -> None:
    """The libraries alone would ask the Hub for half a minute; a name with one slash may be either."""
    done = call("fill", "a [MASK]", "--model", "runs/nothing-here")
    assert done.status in (1, 2)
    assert "runs/nothing-here" in done.err
    assert "Traceback" not in done.err


def test_a_run_that_is_there_is_not_trained_over(tmp_path: Path, call: Call) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base("mlm")))
    done = call("train", "recipe.yaml")
    assert done.status == 0, done.err
    assert done.out.startswith("run         runs/recipe\n")
    assert "perplexity" in done.out
    again = call("train", "recipe.yaml")
    assert again.status == 2
    assert "--resume" in again.err
    assert call("train", "recipe.yaml", "--resume").status == 0


def test_check_shows_the_plan_and_trains_nothing(tmp_path: Path, call: Call) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    for objective, shown in (("mlm", "[MASK]: "), ("clm", "|")):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base(objective)))
        done = call("check", "recipe.yaml")
        assert done.status == 0, done.err
        assert "2 steps" in done.out
        assert "documents, proven" in done.out
        assert shown in done.out
    assert not (tmp_path / "runs").exists()


def test_evaluate_on_a_file(tmp_path: Path, call: Call, runs: dict[str, Run]) -> None:
    own = json.loads(call("evaluate", runs["clm"].path, "--json").out)
    assert own["loss"] == pytest.approx(runs["clm"].report()["validation_loss"], abs=1e-5)
    text = tmp_path / "new.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 3)
    done = call("evaluate", runs["clm"].path, "--data", text, "--json")
    assert "training data" not in done.err, "the file is not held against itself"
    other = json.loads(done.out)
    assert other["bits_per_byte"] > 0
    assert other["targets"] > 20


def test_recipes_are_listed_and_copied(tmp_path: Path, call: Call) -> None:
    listed = call("recipes").out
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert path.stem in listed
    assert call("recipes", "quickstart-mlm").out.strip() == "quickstart-mlm.yaml"
    assert (tmp_path / "quickstart-mlm.yaml").read_text() == (ROOT / "recipes" / "quickstart-mlm.yaml").read_text()
    assert call("recipes", "quickstart-mlm").status == 2
    assert call("recipes", "next-word-pairs").status == 0
    assert call("train", "next-word-pairs.yaml", "train.duration=1").status == 0
    assert "quickstart-clm" in call("recipes", "quickstart-clmm").err


def test_the_shipped_schema_is_the_one_printed(call: Call) -> None:
    assert call("schema").out == (ROOT / "hfpretrain" / "recipe.schema.json").read_text()


def test_env_names_versions_and_hardware(call: Call) -> None:
    facts = json.loads(call("env", "--json").out)
    assert facts["torch"].startswith("2.")
    assert facts["device"]
