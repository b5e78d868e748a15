"""The report: one file that shows what metrics.jsonl holds, while a run goes on and after, and that stops nothing."""

import getpass
import json
import math
import re
import shutil
import socket
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import Command
from tiny import tiny_recipe, tiny_run

from hfpretrain.errors import Stopped
from hfpretrain.recipe import dump
from hfpretrain.report import Curves, write_comparison, write_page
from hfpretrain.report.curves import MOST, MOST_MOMENTS
from hfpretrain.run import Run
from hfpretrain.training.loop import train
from hfpretrain.verify import verify

HOSTILE = "</script><script>alert('1')</script> <img src=x onerror=alert(2)> &amp; \u202e"

PROMPTS = f"evaluation.prompts={json.dumps(['the quick', HOSTILE])}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    return tiny_run(folder, "clm", PROMPTS)


def parsed(path: Path) -> ElementTree.Element:
    """The page, which is well-formed even as XML."""
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def charts(page: ElementTree.Element) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By title and name: the points of each curve, as the page holds them for its script."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for figure in page.iter("figure"):
        data = json.loads(text(figure.find("script")))
        title = text(figure.find("figcaption/h3"))
        found.setdefault(title, {}).update(
            {each["name"]: list(zip(each["x"], each["y"], strict=True)) for each in data["curves"]}
        )
    return found


def text(element: ElementTree.Element | None) -> str:
    assert element is not None
    return "".join(element.itertext())


def lines(run: Run, key: str) -> list[tuple[float, Any]]:
    return [(line["step"], pytest.approx(line[key], rel=1e-5)) for line in run.metrics() if key in line]


def test_the_curves_are_those_of_the_metrics(run: Run) -> None:
    shown = charts(parsed(run.page_file))
    for title, name, key in (
        ("Loss", "training", "loss"),
        ("Loss", "held out", "validation_loss"),
        ("Learning rate", "learning rate", "lr"),
        ("Gradient norm", "gradient norm", "gradient_norm"),
        ("Speed", "speed", "tokens_per_second"),
        ("Utilisation", "utilisation", "mfu"),
        ("Bits per byte", "bits per byte", "validation_bits_per_byte"),
        ("Accuracy", "top 1", "validation_accuracy"),
    ):
        assert len(lines(run, key)) == (2 if key.startswith("validation") else 12)
        assert shown[title][name] == lines(run, key), key
    shares = [line["time"] for line in run.metrics() if "time" in line]
    for name, points in shown["Time"].items():
        assert [y for _, y in points] == pytest.approx([each[name.replace(" and ", "_")] for each in shares], rel=1e-5)


def test_the_drawing_is_of_the_same_numbers(run: Run) -> None:
    figure = next(iter(parsed(run.page_file).iter("figure")))
    drawn = {(path.get("class") or ""): path.get("d") or "" for path in figure.iter("path")}
    places = [tuple(map(float, each.split())) for each in drawn["line c0"].removeprefix("M").split("L")]
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert [x for x, _ in places] == pytest.approx([1000 * step / 12 for step in range(1, 13)], abs=0.1)
    heights = [-y for _, y in places]
    share = [(each - min(losses)) / (max(losses) - min(losses)) for each in losses]
    assert [(each - min(heights)) / (max(heights) - min(heights)) for each in heights] == pytest.approx(share, abs=0.01)


def test_it_says_what_the_run_was(run: Run) -> None:
    said, report = text(parsed(run.page_file).find("body")), run.report()
    for each in (
        "finished",
        f"{report['validation_loss']:.4f}",
        f"{report['validation_perplexity']:.2f}",
        f"{report['parameters']:,}",
        report["data_fingerprint"],
        report["versions"]["transformers"],
        report["device"],
        "vocab_size: 320",
        "local files",
        f"{report['training_tokens']:,} tokens",
    ):
        assert each in said, each
    shown = [line["samples"][0]["continuation"] for line in run.metrics() if "samples" in line]
    assert all(each in said for each in shown)


def test_it_asks_nothing_of_any_network(run: Run) -> None:
    page = run.page_file.read_text()
    assert not re.search(r"(https?:)?//\w|@import|url\(", page.replace("//www", "//www"))
    for element in parsed(run.page_file).iter():
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(element.attrib), element.tag
        assert element.tag not in ("link", "img", "iframe", "object", "base")
    policy = next(each for each in parsed(run.page_file).iter("meta") if "Policy" in each.get("http-equiv", ""))
    assert "default-src 'none'" in policy.get("content", "")


def test_hostile_text_is_text(run: Run) -> None:
    page = parsed(run.page_file)
    titles = [text(each) for each in page.iter("h3")]
    assert HOSTILE in titles
    kinds = [each.get("type") for each in page.iter("script")]
    assert kinds.count(None) == 1, "no script but ours"
    assert all(kind == "application/json" for kind in kinds if kind)
    assert not [each for element in page.iter() for each in element.attrib if each.startswith("on")]


def test_nothing_of_this_machine_or_of_local_texts_is_in_it(tmp_path: Path, run: Run) -> None:
    own = tiny_run(tmp_path, "clm", "evaluation.prompts=null", name="own")
    shown = next(line["samples"][0]["text"] for line in own.metrics() if "samples" in line)
    page = own.page_file.read_text()
    assert shown not in page
    assert "Samples of local texts are not shown here" in page
    for each in (page, run.page_file.read_text()):
        for secret in (str(run.path.parent), str(tmp_path), str(Path.home()), socket.gethostname()):
            assert secret not in each
        assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", each)


def test_it_is_there_while_the_run_goes_on(tmp_path: Path, hfpretrain: Command) -> None:
    recipe = tiny_recipe(tmp_path, "clm", "evaluation.prompts=['the quick']")
    run = Run(Path(recipe.output_dir))
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    page = parsed(run.page_file)
    body = page.find("body")
    assert body is not None
    assert body.get("data-running"), "it loads itself again"
    assert "in training" in text(body)
    assert "step 7 of 12, 58%" in text(body)
    assert charts(page)["Loss"]["held out"] == lines(run, "validation_loss")
    assert [x for x, _ in charts(page)["Loss"]["training"]] == [1, 2, 3, 4, 5, 6, 7]

    done = hfpretrain("report", run.path, "--no-open")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run.page_file}\n", "")
    stopped = text(parsed(run.page_file).find("body"))
    assert "stopped" in stopped
    assert "in training" not in stopped
    assert "parameters68,480" in stopped, "what only the running run knew is kept"

    train(recipe, resume=True)
    finished = parsed(run.page_file)
    assert "finished" in text(finished.find("body"))
    assert charts(finished)["Loss"]["training"] == lines(run, "loss")
    assert [x for x, _ in charts(finished)["Loss"]["training"]] == list(range(1, 13))


def test_a_finished_run_is_whole_with_its_report_and_left_alone(run: Run) -> None:
    before = run.page_file.read_bytes()
    assert all(finding.good for finding in verify(run.path))
    train(tiny_recipe(run.path.parent.parent, "clm", PROMPTS), resume=True)
    assert run.page_file.read_bytes() == before
    write_page(run)
    run.page_file.write_text(run.page_file.read_text() + " ")
    assert all(finding.good for finding in verify(run.path)), "it may be written again at any time"
    write_page(run)


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path, "clm")
    run = Run(Path(recipe.output_dir))
    run.page_file.mkdir(parents=True)
    assert train(recipe, resume=True).state == "finished"
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    said = [each for each in warnings if "report" in each]
    assert len(said) == 1, said
    assert "is a folder" in said[0]


def test_several_runs_are_compared(run: Run, tmp_path: Path, hfpretrain: Command) -> None:
    other = tiny_run(tmp_path, "clm", "optimizer.lr=5e-4", "train.duration=9", name="other")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    done = hfpretrain("report", run.path, other.path, BROWSER=f"{browser} %s")
    assert (done.returncode, done.stdout) == (0, "comparison.html\n")
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "comparison.html").as_uri()
    page = parsed(tmp_path / "comparison.html")
    shown = charts(page)
    for title, key in (("Held-out loss", "validation_loss"), ("Training loss", "loss"), ("Learning rate", "lr")):
        assert shown[title] == {"tiny": lines(run, key), "other": lines(other, key)}, "over steps, which come last"
    over_tokens = [json.loads(text(each.find("script"))) for each in page.iter("figure")][1]
    assert over_tokens["name"] == "token"
    assert over_tokens["curves"][0]["x"] == [line["tokens"] for line in run.metrics() if "tokens" in line]
    numbers, differences = ([[text(cell) for cell in row] for row in table.iter("tr")] for table in page.iter("table"))
    assert [row[0] for row in numbers[1:]] == ["tiny", "other"]
    assert numbers[1][1] == f"{run.report()['validation_loss']:.4f}"
    assert ["optimizer.lr", "0.001", "0.0005"] in differences
    assert ["train.duration", "12 steps", "9 steps"] in differences
    assert not any(row[0] in ("name", "seed", "output_dir") for row in differences)


def test_the_best_is_marked_where_it_can_be_told(tmp_path: Path) -> None:
    line = {"step": 1, "lr": 0.001}
    runs = [
        odd_run(tmp_path, json.dumps(line | {"loss": 2.0 + number // 2}) + "\n", name=f"odd-{number}")
        for number in range(9)  # more than there are colours
    ]
    page = parsed(write_comparison(runs, tmp_path / "comparison.html"))
    rows = list(next(page.iter("table")).iter("tr"))
    assert [text(cell) for cell in rows[0]] == ["run", "training loss"]
    best = [text(row[0]) for row in rows[1:] if row[1].get("class") == "best"]
    assert best == ["odd-0", "odd-1"], "all that are equally good"


def test_what_cannot_be_compared_is_said(run: Run, tmp_path: Path, hfpretrain: Command) -> None:
    other = tiny_run(tmp_path, "clm", "tokenizer.vocab_size=300", "train.duration=2", name="tiny")
    assert hfpretrain("report", run.path, other.path, "--no-open", "--output", "both.html").returncode == 0
    said = text(parsed(tmp_path / "both.html").find("body"))
    assert "do not say which is better" in said
    assert "tiny (2)" in said, "two of one name are told apart"


def test_bad_input_is_a_sentence(run: Run, tmp_path: Path, hfpretrain: Command) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "linked").mkdir()
    shutil.copy(run.recipe_file, tmp_path / "linked")
    (tmp_path / "linked" / "metrics.jsonl").symlink_to(run.metrics_file)
    shutil.copytree(run.path, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    (tmp_path / "damaged" / "report.json").write_text("[")
    for arguments, said in (
        (["nowhere"], "nowhere is not there"),
        (["empty"], "empty is not a run"),
        (["linked"], "cannot be read (it is a link)"),
        (["damaged"], "report.json cannot be read"),
        ([run.path, run.path], "a run is named twice"),
        ([run.path, "--output", "empty"], "empty is a folder"),
        ([run.path, "--output", "notes.txt"], "notes.txt is there already, and no report"),
        ([run.path, "--output", "nowhere/page.html"], "nowhere/page.html cannot be written"),
    ):
        done = hfpretrain("report", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


def odd_run(folder: Path, metrics: str, report: Any = None, name: str = "odd") -> Run:
    """A run directory that nobody trained."""
    recipe = tiny_recipe(folder, "clm", "evaluation.prompts=['the fox']", name=name)
    run = Run(Path(recipe.output_dir))
    run.path.mkdir(parents=True)
    run.recipe_file.write_text(dump(recipe))
    run.metrics_file.write_text(metrics)
    if report is not None:
        run.report_file.write_text(json.dumps(report))
    return run


def test_lines_of_any_kind_do_no_harm(tmp_path: Path) -> None:
    run = odd_run(
        tmp_path,
        '{"step": 1, "loss": NaN, "lr": null, "gradient_norm": Infinity, "tokens": 64}\n'
        '{"step": 2, "loss": 3.5, "loss_spikes": 2, "time": 7, "mfu": true}\n'
        '{"step": 3, "loss": "high", "time": {"data": null, "other": 1.0}, "tokens": 1' + "0" * 400 + "}\n"
        '[]\n"step"\n{"step": "4"}\n{"loss": 1.0}\n{"step": 1e999}\n\n'
        '{"step": 4, "validation_loss": 2.5, "samples": [{"text": "the"}, 3, {"text": "a", "fills": [[1, 2]]}, '
        '{"text": "the fox", "continuation": "\\u0007 \\ud800"}]}\n'
        '{"step": 5, "validation_loss": null, "validation_my.metric": 0.5, "samples": {}, "validation_\\ud800": 1}\n'
        '{"step": 6, "loss": 1.25, "tok',
        {"samples": 3, "sources": [{"name": 1}, None], "changes": [{"changed": 3}], "versions": [], "tokens": "many"}
        | {"shape": {"layers": None}, "lineage": [None, {}], "epochs": math.nan, "validation_loss": True},
    )
    page = parsed(write_page(run))
    shown = charts(page)
    assert "\ufffd \ufffd" in text(page)
    assert shown["Loss"] == {"training": [(2, 3.5)], "held out": [(4, 2.5)]}
    assert shown["\ufffd"]["\ud800"] == [(5, 1)]
    assert shown["my.metric"] == {"my.metric": [(5, 0.5)]}
    assert "loss spikes: 2" in text(page)
    assert "lines of metrics.jsonl that cannot be read: 5" in text(page)
    with run.metrics_file.open("a") as file:
        file.write('ens": 9}\n')
    assert charts(parsed(write_page(run)))["Loss"]["training"] == [(2, 3.5), (6, 1.25)]


def test_a_run_without_anything_has_a_page(tmp_path: Path) -> None:
    run = odd_run(tmp_path, "")
    assert "odd" in text(parsed(write_page(run)))
    run.metrics_file.unlink()
    run.recipe_file.write_text("objective: dance\n")
    assert "cannot be read by this version" in text(parsed(write_page(run)))


def test_one_step_without_validation(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "mlm", "train.duration=1", "data.validation=0%")
    shown = charts(parsed(run.page_file))
    assert shown["Loss"] == {"training": lines(run, "loss")}
    assert all(len(points) == 1 for curves in shown.values() for points in curves.values())


def test_the_longest_runs_are_thinned_and_keep_their_extremes(tmp_path: Path) -> None:
    file, steps = tmp_path / "metrics.jsonl", 20_001
    losses = [5 + math.sin(step) + 3 * (step == 7_777) - 4.5 * (step == 9_001) for step in range(steps)]
    whole, growing = Curves(), Curves()
    with file.open("w") as opened:
        for step, loss in enumerate(losses):
            opened.write(json.dumps({"step": step, "loss": loss}) + "\n")
            if step % 100 == 0:
                opened.write(json.dumps({"step": step, "validation_loss": loss}) + "\n")
            if step % 997 == 0:
                opened.flush()
                assert growing.read(file)
    assert growing.read(file)
    assert not growing.read(file), "nothing was added"
    assert whole.read(file)
    for curves in (whole, growing):
        buckets = curves.series["loss"].buckets
        assert MOST / 2 - 1 <= len(buckets) <= MOST
        assert sum(each.count for each in buckets) == steps
        assert sum(each.total for each in buckets) == pytest.approx(sum(losses))
        assert max(each.high for each in buckets) == max(losses)
        assert min(each.low for each in buckets) == min(losses)
        assert [each.last + 1 for each in buckets[:-1]] == [each.first for each in buckets[1:]]
        assert curves.series["loss"].newest == losses[-1]
        moments = [line["step"] for line in curves.moments]
        assert len(moments) <= MOST_MOMENTS + 1
        assert (moments[0], moments[-1]) == (0, steps - 1)
        assert all(later > earlier for earlier, later in pairwise(moments))
    assert [vars_of(each) for each in whole.series["loss"].buckets] == [
        vars_of(each) for each in growing.series["loss"].buckets
    ]
    file.write_text('{"step": 1, "loss": 2.0}\n')
    assert growing.read(file)
    assert [each.mean for each in growing.series["loss"].buckets] == [2.0], "a file that is shorter is another one"


def vars_of(bucket: Any) -> list[float]:
    values = [bucket.first, bucket.last, bucket.low, bucket.high, bucket.count]
    return [*values, pytest.approx(bucket.total)]


def test_it_is_not_pushed(run: Run) -> None:
    """The Hub shows a page as its source, and prompts of a recipe are nobody else's: the card says what there is."""
    from hfpretrain.publish import CARD_FILES, model_files

    assert run.page_file.name not in {*CARD_FILES, *(path.name for path in model_files(run.path))}
