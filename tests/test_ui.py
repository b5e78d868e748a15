"""The page to try models on: what it answers, and every control of it in a real browser where there is one."""

import html
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from tiny import tiny_run

from hfpretrain import ui
from hfpretrain.inference import CausalLM, MaskedLM, load

CHROMIUM = Path("/usr/bin/chromium")
NO_SETTINGS = (5, 8, 0, 1, None)
"""Words shown, new tokens, temperature, top p, seed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With runs/next and runs/masked, of 12 steps with checkpoints."""
    folder = tmp_path_factory.mktemp("ui")
    tiny_run(folder, "clm", name="next")
    tiny_run(folder, "mlm", name="masked")
    return folder


def shown(name: Path, text: str, *settings: Any) -> list[str]:
    return list(ui.answer(str(name), text, *(settings or NO_SETTINGS)))


def test_the_masked_model_shows_what_fill_gives(folder: Path) -> None:
    masked = load(folder / "runs" / "masked")
    assert isinstance(masked, MaskedLM)
    (answer,) = shown(folder / "runs" / "masked", "the [MASK] fox [MASK]")
    for predictions in masked.fill("the [MASK] fox [MASK]", top_k=5):
        for each in predictions:
            assert f"<td>{html.escape(each.token)}</td><td>{each.probability:.1%}</td>" in answer


def test_the_next_word_model_shows_each_word_with_its_probability(folder: Path) -> None:
    model = load(folder / "runs" / "next")
    assert isinstance(model, CausalLM)
    continuation = model.generate("the quick", max_new_tokens=8)
    *pieces, answer = shown(folder / "runs" / "next", "the quick")
    assert html.escape(continuation) in pieces[-1]
    words = re.findall(r'title="([^"]+)">(.*?)<small>', answer)
    assert html.unescape("".join(word for _, word in words)).split() == continuation.split()
    product = math.prod(float(share) for share, _ in words)
    ways = (model.word_probabilities(between + continuation, prompt="the quick") for between in ("", " "))
    best = max(math.prod(each.probability for each in way) for way in ways)
    assert product == pytest.approx(best, rel=0.01, abs=1e-9)
    for each in model.next_words("the quick", top_k=5):
        assert f"<td>{html.escape(each.token)}</td><td>{each.probability:.1%}</td>" in answer


def test_what_is_wrong_is_said_on_the_page(folder: Path) -> None:
    (answer,) = shown(folder / "runs" / "masked", "no <b>mask</b> here")
    assert "there is no mask in" in answer and "role='alert'" in answer and "<b>mask" not in answer
    (answer,) = shown(folder / "runs" / "nowhere", "the")
    assert "nowhere" in answer and "role='alert'" in answer


def test_runs_and_checkpoints_are_offered_newest_first(folder: Path) -> None:
    found = ui.models_here(folder / "runs")
    assert [Path(name).name for name in found if "checkpoints" not in name] == ["masked", "next"]
    steps = [Path(name).name for name in found if "masked" in name and "checkpoints" in name]
    assert steps == ["step-00000012", "step-00000010"]


def test_a_curve_has_the_numbers_of_the_metrics(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "runs" / "next" / "metrics.jsonl").read_text().splitlines()]
    found = ui.points([str(folder / "runs" / "next")], "validation_loss")
    expected = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    assert [(each["step"], each["value"]) for each in found] == expected


def test_a_long_curve_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "lr": 1.0}}\n' for step in range(1, 10_001)))
    steps = [each["step"] for each in ui.points([str(tmp_path)], "lr")]
    assert len(steps) <= ui.POINTS and steps[-1] == 10_000 and steps == sorted(steps)


def test_a_model_that_is_not_there_is_a_sentence(hfpretrain: Command) -> None:
    done = hfpretrain("ui", "runs/nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: runs/nothing: there is no such folder")


@pytest.mark.skipif(bool(importlib.util.find_spec("gradio")), reason="Gradio is there")
def test_without_gradio_it_says_what_to_install(hfpretrain: Command) -> None:
    done = hfpretrain("ui", "--no-open")
    assert done.returncode == 2 and "pip install 'hfpretrain[ui]'" in done.stderr


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "hfpretrain", "ui", "--no-open"]
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "cwd": folder, "env": os.environ}
    with subprocess.Popen(command, **settings) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=[*quiet, "--disable-sync"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.outside = []
        page.on("request", lambda request: page.outside.append(request.url))
        page.goto(address)
        page.wait_for_selector("#go")
        yield page
        browser.close()


def test_every_control_in_a_browser(page: Any, folder: Path, address: str) -> None:
    assert address.startswith("http://127.0.0.1:")

    def choose(place: str, name: str) -> None:
        page.fill(f"{place} input", name)
        page.keyboard.press("Enter")

    def rows(number: int) -> list[str]:
        found: list[str] = page.locator(f"#answer-{number} .hf-bars td:first-child").all_inner_texts()
        return found

    def slide(place: str, value: str) -> None:
        page.fill(f"{place} input[type=number]", value)
        page.keyboard.press("Tab")

    masked, following = load(folder / "runs" / "masked"), load(folder / "runs" / "next")
    assert isinstance(masked, MaskedLM) and isinstance(following, CausalLM)
    page.fill("#text textarea", "the [MASK] fox")
    page.click("#go")  # with the newest run, which is chosen
    page.wait_for_selector("#answer-0 .hf-bars")
    assert rows(0) == [each.token for each in masked.fill("the [MASK] fox", top_k=5)[0]]

    # Two side by side, fewer words, fewer tokens, sampled with a seed.
    page.get_by_text("Settings").click()
    slide("#top-k", "3")
    slide("#max-new-tokens", "4")
    slide("#temperature", "1.5")
    slide("#top-p", "0.9")
    page.fill("#seed input", "7")
    page.keyboard.press("Tab")
    choose("#model-1", "runs/next")
    page.click("#go")
    page.wait_for_selector("#answer-1 .hf-word")
    page.wait_for_function("document.querySelectorAll('#answer-0 .hf-bars tr').length == 3")
    assert rows(1) == [each.token for each in following.next_words("the [MASK] fox", top_k=3)]
    sampled = following.generate("the [MASK] fox", max_new_tokens=4, temperature=1.5, top_p=0.9, seed=7)
    words = page.locator("#answer-1 .hf-word").evaluate_all("all => all.map(e => e.firstChild.textContent)")
    assert "".join(words).strip() == sampled.strip()

    # A checkpoint instead, asked by Enter; stopped; an error on the page.
    choose("#model-0", "runs/next/checkpoints/step-00000010")
    page.fill("#text textarea", "the dog")
    page.press("#text textarea", "Enter")
    page.wait_for_function("document.querySelector('#answer-0').innerText.includes('the dog')")
    page.click("#stop")
    choose("#model-0", "runs/masked")
    page.click("#go")
    page.wait_for_selector("#answer-0 [role=alert]")

    # Curves: another run, another curve, a new line of a run that goes on.
    page.get_by_role("tab", name="Curves").click()
    page.wait_for_selector("#plot canvas, #plot svg.marks")
    page.fill("#runs input", "runs/next")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#plot').innerHTML.includes('next')")
    page.click("#curve input")
    page.get_by_role("option", name="learning rate").click()
    with (folder / "runs" / "next" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5000, "lr": 1.0}\n')
    page.wait_for_function("document.querySelector('#plot').innerHTML.includes('5,000')")
    outside = [url for url in page.outside if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
