"""The model card: valid, complete, true, runnable, without anything of the machine that made it."""

import getpass
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from loopback_hub import TOKEN
from PIL import Image
from tiny import tiny_recipe, tiny_run

from hfpretrain import recipe as recipes
from hfpretrain.card import BLUE, GREY, NEUTRAL, ORANGE, generated, sample_in_words, write_card
from hfpretrain.recipe import Source
from hfpretrain.run import Run
from hfpretrain.training.session import describe


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("cards")
    settings = ["hub={license: mit, language: [en, de]}", "train.duration=6"]
    return {objective: tiny_run(folder, objective, *settings, name=f"my-{objective}") for objective in ("mlm", "clm")}


@pytest.mark.parametrize(("objective", "task"), [("mlm", "fill-mask"), ("clm", "text-generation")])
def test_the_metadata_is_what_the_hub_reads(runs: dict[str, Run], objective: str, task: str) -> None:
    run = runs[objective]
    report, data = run.report(), ModelCard.load(run.card_file).data
    assert (data.library_name, data.pipeline_tag, data.license, data.language) == (
        "transformers",
        task,
        "mit",
        ["en", "de"],
    )
    assert data.tags == ["hfpretrain", report["architecture"]]
    assert data.datasets is None, "local files have no place on the Hub"
    assert data.base_model is None
    assert data.model_name == run.path.name
    assert data.eval_results
    measured = {result.metric_type: result.metric_value for result in data.eval_results}
    assert measured == {
        name: pytest.approx(report[f"validation_{name}"], abs=1e-5) for name in ("loss", "perplexity", "accuracy")
    }


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_card_says_what_was_done(runs: dict[str, Run], objective: str) -> None:
    run = runs[objective]
    card, report = run.card_file.read_text(), run.report()
    for said in (
        f"{report['tokens']:,}",
        f"{report['sources'][0]['documents']:,} | {report['sources'][0]['tokens']:,}",
        report["data_fingerprint"],
        report["device"],
        f"{report['validation_perplexity']:.2f}",
        report["versions"]["transformers"],
        "FLOPs",
        "![Loss over the tokens seen](training_curve.png)",
        NEUTRAL[objective],
    ):
        assert said in card
    words = corpus_words(run)
    assert not any(word in card for word in words), "nothing of a local text, which may be private"
    assert report["samples"]


def corpus_words(run: Run) -> list[str]:
    """Pairs of words that stand side by side in the data."""
    text = (run.path.parent.parent / "corpus.jsonl").read_text()
    return [pair for pair in ("quick brown", "lazy dog", "the cat", "a fox") if pair in text]


def test_samples_of_public_data_or_of_ones_own(tmp_path: Path) -> None:
    own = tiny_run(tmp_path, "mlm", "hub.examples=['the [MASK] fox', 'a [MASK]']", "train.duration=1", name="own")
    assert [sample["text"] for sample in own.report()["samples"]] == ["the [MASK] fox", "a [MASK]"]
    assert 'fill("the [MASK] fox")' in own.card_file.read_text()
    settings = ["data.sources=[{builtin: everyday, size: 60kB}]", "train.duration=1", "data.block_size=64"]
    public = tiny_run(tmp_path, "clm", *settings, name="public")
    assert len(public.report()["samples"]) == 3
    assert all(len(sample["text"].split()) <= 5 for sample in public.report()["samples"])


def test_nothing_is_shown_of_local_texts_that_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "held-out.jsonl").write_text('{"text": "Zebulon knows a secret of the fox."}\n' * 30)
    settings = [
        "data.sources=[{builtin: everyday, size: 60kB}]",
        f"data.validation=[{{files: {tmp_path / 'held-out.jsonl'}}}]",
        *("train.duration=1", "data.block_size=64"),
    ]
    run = tiny_run(tmp_path, "clm", *settings)
    assert [sample["text"] for sample in run.report()["samples"]] == [NEUTRAL["clm"]]
    assert "Zebulon" not in run.card_file.read_text()


def test_nothing_of_this_machine_is_in_it(runs: dict[str, Run], tmp_path: Path) -> None:
    first = runs["mlm"]
    settings = [f"model={{from: {first.path}}}", f"tokenizer={{from: {first.path}}}", "train.duration=1"]
    continued = tiny_run(tmp_path, "mlm", *settings, f"data.validation=[{{files: {tmp_path}/corpus.jsonl}}]")
    for run in (*runs.values(), continued):
        texts = [run.card_file.read_text()]
        texts += [path.read_text() for path in run.path.glob("*.json") if path.name != "report.json"]
        for text in texts:
            for secret in (str(tmp_path), str(first.path.parent), str(Path.home()), socket.gethostname(), TOKEN):
                assert secret not in text
            assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)
            assert "/tmp" not in text
    card = continued.card_file.read_text()
    assert f"continued from the run {first.report()['name']}" in card
    assert "validation data of its own" in card


def test_its_recipe_trains_the_same_again(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["clm"]
    yaml = re.search(r"```yaml\n(.*?)```", run.card_file.read_text(), re.DOTALL)
    assert yaml
    (tmp_path / "recipe.yaml").write_text(yaml[1])
    corpus = run.path.parent.parent / "corpus.jsonl"
    again = recipes.load(tmp_path / "recipe.yaml", [f"data.sources.0.files={corpus}"])
    first = recipes.load(run.recipe_file)
    assert (again.model, again.tokenizer, again.data, again.train, again.optimizer, again.schedule) == (
        first.model,
        first.tokenizer,
        first.data,
        first.train,
        first.optimizer,
        first.schedule,
    )


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_its_snippet_runs_as_it_stands(runs: dict[str, Run], objective: str) -> None:
    """In the folder of the model, in a process without hfpretrain."""
    run = runs[objective]
    snippet = re.search(r"```python\n(.*?)```", run.card_file.read_text(), re.DOTALL)
    assert snippet
    code = f"import sys\nsys.modules['hfpretrain'] = None\n{snippet[1]}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "no_network")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run.path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if objective == "mlm":
        assert len(done.stdout.splitlines()) == 5
        assert done.stdout.split()[0] == run.report()["samples"][0]["fills"][0][0]
    else:
        assert done.stdout.startswith(NEUTRAL["clm"])


def test_a_run_that_is_pushed_is_loaded_by_its_name(runs: dict[str, Run]) -> None:
    run = runs["mlm"]
    assert 'model="."' in run.card_file.read_text()
    write_card(run, "org/name")
    assert 'model="org/name"' in run.card_file.read_text()
    assert generated(run.card_file.read_text())
    write_card(run)


def test_an_edited_card_is_kept(runs: dict[str, Run], caplog: pytest.LogCaptureFixture) -> None:
    run = runs["clm"]
    card = run.card_file.read_text()
    assert generated(card)
    assert generated(card.replace("\n", "\r\n")), "as some tools save it"
    for edited in (card + "\n", card.replace("causal", "clever", 1), card.rsplit("\n", 2)[0]):
        assert not generated(edited)
        run.card_file.write_text(edited)
        with caplog.at_level("INFO", logger="hfpretrain"):
            write_card(run, "org/name")
        assert run.card_file.read_text() == edited
        assert "was edited, and is kept" in caplog.text
    run.card_file.unlink()
    write_card(run)
    assert run.card_file.read_text() == card


def test_data_sets_of_the_hub_are_named_and_local_ones_are_not(tmp_path: Path) -> None:
    assert describe(Source(hub="org/data", subset="small")) == {"name": "org/data, small, train", "dataset": "org/data"}
    (tmp_path / "data").mkdir()
    for source in (Source(files="/home/me/secret.txt"), Source(hub=str(tmp_path / "data"))):
        assert describe(source) == {"name": "local files", "dataset": None}


def test_the_picture_is_seen_on_light_and_on_dark(runs: dict[str, Run]) -> None:
    def luminance(colour: str) -> float:
        """Of WCAG 2."""
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (GREY, BLUE, ORANGE):
        for page in ("#ffffff", "#0b0f19"):
            lighter, darker = sorted((luminance(colour), luminance(page)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 3, f"{colour} on {page}"
    with Image.open(runs["mlm"].curve_file) as picture:
        assert picture.mode == "RGBA"
        assert picture.getpixel((0, 0))[3] == 0, "no background of its own"  # type: ignore[index]
        colours = {pixel[:3] for _, pixel in picture.getcolors(maxcolors=2**24) if pixel[3] == 255}  # type: ignore[index,union-attr]
    for colour in (BLUE, ORANGE):
        assert tuple(bytes.fromhex(colour[1:])) in colours, "both curves are drawn"


def test_a_card_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path, "clm", "train.duration=1")
    run = Run(Path(recipe.output_dir))
    run.card_file.mkdir(parents=True)  # in the card's place
    assert tiny_run(tmp_path, "clm", "train.duration=1", resume=True).state == "finished"
    assert "the model card could not be written" in caplog.text


def test_line_breaks_of_a_sample_are_seen() -> None:
    """A young model's continuation may be nothing else."""
    assert sample_in_words({"text": "ROMEO:", "continuation": "\n\nOh"}) == "ROMEO: → ⏎⏎Oh"
