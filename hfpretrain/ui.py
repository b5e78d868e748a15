"""A page to try models on: fill masks, continue texts, two models side by side, and watch the curves of runs.

Made with Gradio, and served on this machine alone unless told otherwise. Models are loaded when they are first asked
for, a few are kept.
"""

import contextlib
import functools
import html
import logging
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfpretrain.errors import HFPretrainError, UserError
from hfpretrain.inference import CausalLM, MaskedLM, Prediction, load
from hfpretrain.report import Curves
from hfpretrain.run import Run, list_checkpoints, runs

log = logging.getLogger(__name__)

KEPT_MODELS, KEPT_CURVES = 4, 32
"""How many loaded models are kept at once, and of how many runs the curves."""
POINTS = 400
"""Of a curve, at most: more than a screen shows."""
SECONDS = 5
"""Until the curves are read again."""
CURVES = {
    "loss": "loss (training)",
    "validation_loss": "loss (validation)",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
STYLE = """
.hf-word {border-radius: 4px; padding: 0 2px; white-space: pre-wrap; display: inline-block; text-align: center;
  vertical-align: top}
.hf-word small {display: block; font-size: 10px; opacity: .7}
.hf-bars {border-collapse: collapse; width: 100%; margin: 4px 0 12px}
.hf-bars, .hf-bars tr, .hf-bars td {border: 0 !important}
.hf-bars td {padding: 2px 8px 2px 0} .hf-bars td:nth-child(2) {text-align: right; width: 5em}
.hf-bars td:last-child {width: 45%} .hf-bars i {display: block; height: 10px; border-radius: 3px; background: #4f8cc9}
"""


def models_here(folder: Path, first: str | None = None) -> list[str]:
    """The runs in `folder` and their checkpoints, newest runs first, `first` before all."""
    found = [first] if first else []
    for run in runs(folder):
        found += [str(run.path)] if run.summary().state == "finished" else []
        found += map(str, list_checkpoints(run.checkpoints))
    return list(dict.fromkeys(found))


_loading = threading.Lock()


def opened(name: str) -> CausalLM | MaskedLM:
    """The model of that name, loaded once."""
    with _loading:  # two requests for the same model wait for one loading
        return _opened(name)


@functools.lru_cache(KEPT_MODELS)
def _opened(name: str) -> CausalLM | MaskedLM:
    return load(name)


def answer(
    name: str | None,
    text: str,
    top_k: float,
    max_new_tokens: float,
    temperature: float,
    top_p: float,
    seed: float | None,
) -> Iterator[str]:
    """What a model makes of the text, as HTML: fills for each mask, or a continuation as it comes and then its words
    with their probabilities. What is wrong with the input is said in place of it.
    """
    if not name:
        yield ""
        return
    try:
        llm = opened(name)
        if isinstance(llm, MaskedLM):
            yield _fills(llm, text, int(top_k))
            return
        so_far = ""
        for piece in llm.stream(
            text,
            max_new_tokens=int(max_new_tokens),
            temperature=temperature,
            top_p=top_p,
            seed=None if seed is None else int(seed),
        ):
            so_far += piece
            yield f"<p>{html.escape(text)} <b>{html.escape(so_far)}</b></p>"
        yield _continuation(llm, text, so_far, int(top_k))
    except HFPretrainError as error:
        yield f"<p role='alert'>{html.escape(str(error))}</p>"


def _fills(llm: MaskedLM, text: str, top_k: int) -> str:
    masks = llm.fill(text, top_k=top_k)
    several = len(masks) > 1
    parts = [f"<p><b>{html.escape(masks[0][0].sentence)}</b></p>"]  # in which the others are filled as well
    for number, predictions in enumerate(masks, start=1):
        parts.append((f"<p>mask {number}</p>" if several else "") + _bars(predictions))
    return "".join(parts)


def _continuation(llm: CausalLM, text: str, continuation: str, top_k: int) -> str:
    """Each word of it on a ground that is the darker the less probable it was; below, what might have come first."""
    between = "" if not continuation or not text or text[-1:].isspace() else " "
    candidates = (continuation, between + continuation)
    words: list[Prediction] = []
    if continuation:
        # The space that stands before a continuation is not part of it, and some tokenizers know none.
        scored = (llm.word_probabilities(each, prompt=text) for each in dict.fromkeys(candidates))
        words = max(scored, key=lambda found: sum(math.log(max(each.probability, 1e-30)) for each in found))
    shown = "".join(_word(each) for each in words) or "<i>the text ends here</i>"
    return f"<p>{html.escape(text)}{shown}</p><p>the next word</p>{_bars(llm.next_words(text, top_k=top_k))}"


def _word(word: Prediction) -> str:
    share = f"{word.probability:.0%}"
    colour = f"background: rgba(224, 122, 47, {0.6 * (1 - word.probability):.2f})"
    shown = f"{html.escape(word.token)}<small>{share}</small>"
    return f'<span class="hf-word" style="{colour}" title="{word.probability:.4g}">{shown}</span>'


def _bars(predictions: list[Prediction]) -> str:
    rows = (
        f"<tr><td>{html.escape(each.token)}</td><td>{each.probability:.1%}</td>"
        f'<td><i style="width: {100 * each.probability:.1f}%"></i></td></tr>'
        for each in predictions
    )
    return f'<table class="hf-bars">{"".join(rows)}</table>'


_reading = threading.Lock()
_curves = functools.lru_cache(KEPT_CURVES)(lambda name: Curves())


def points(names: list[str], curve: str) -> list[dict[str, Any]]:
    """The points of a curve of each run: run, step and value; where there are many, means of neighbours and the last.

    What was added to metrics.jsonl since the last time is all that is read.
    """
    found: list[tuple[str, float, float]] = []
    for name in names:
        with _reading, contextlib.suppress(OSError):
            curves = _curves(name)
            curves.read(Run(Path(name)).metrics_file)
            if series := curves.series.get(curve):
                buckets = series.at_most(POINTS - 1)
                found += [(Path(name).name, each.at, each.mean) for each in buckets]
                found += [(Path(name).name, buckets[-1].last, series.newest)] if buckets[-1].count > 1 else []
    return [{"run": run, "step": step, "value": value} for run, step, value in found]


def build_page(folder: Path, model: str | None = None) -> Any:
    """The page, as gradio.Blocks: `folder` is where runs are looked for, `model` the one that is chosen at first."""
    gradio = _gradio()
    from pandas import DataFrame

    here = models_here(folder, model)
    watched = [str(run.path) for run in runs(folder)]
    if model and (Path(model) / "metrics.jsonl").is_file() and model not in watched:
        watched.insert(0, model)

    def curve_of(names: list[str], curve: str) -> Any:
        return DataFrame(points(names, curve), columns=["run", "step", "value"])

    with gradio.Blocks(title="hfpretrain", analytics_enabled=False) as page:
        gradio.Markdown("# hfpretrain")
        with gradio.Tab("Try"):
            text = gradio.Textbox(
                label="Text",
                info="With [MASK] where a word is missing for a masked model; a beginning for the others.",
                lines=1,  # with more, Enter would begin another line
                max_lines=8,
                elem_id="text",
            )
            with gradio.Row():
                names = [
                    gradio.Dropdown(
                        choices=here,
                        value=here[0] if here and not number else None,
                        label=label,
                        info=info,
                        allow_custom_value=True,
                        min_width=240,
                        elem_id=f"model-{number}",
                    )
                    for number, (label, info) in enumerate(
                        (("Model", "A run, a checkpoint, a folder or org/name."), ("Beside it", "Another, or none."))
                    )
                ]
            with gradio.Accordion("Settings", open=False):
                settings = [
                    gradio.Slider(1, 20, value=5, step=1, label="Words with their probabilities", elem_id="top-k"),
                    gradio.Slider(1, 256, value=24, step=1, label="New tokens", elem_id="max-new-tokens"),
                    gradio.Slider(0, 2, value=0, label="Temperature (0: the best each time)", elem_id="temperature"),
                    gradio.Slider(0.05, 1, value=1, step=0.05, label="Top p", elem_id="top-p"),
                    gradio.Number(value=None, precision=0, label="Seed (empty: another each time)", elem_id="seed"),
                ]
            with gradio.Row():
                go = gradio.Button("Go", variant="primary", elem_id="go")
                stop = gradio.Button("Stop", elem_id="stop")
            with gradio.Row():
                shown = [
                    gradio.HTML(elem_id=f"answer-{number}", min_width=240, visible=not number) for number in range(2)
                ]
            names[1].change(lambda name: gradio.HTML("", visible=bool(name)), names[1], shown[1], api_name=False)
            running = [
                event
                for name, place in zip(names, shown, strict=True)
                for event in (
                    go.click(answer, [name, text, *settings], place, api_name=False),
                    text.submit(answer, [name, text, *settings], place, api_name=False),
                )
            ]
            stop.click(None, cancels=running, api_name=False)
        with gradio.Tab("Curves"):
            with gradio.Row():
                which = gradio.Dropdown(
                    choices=watched, value=watched[:1], multiselect=True, label="Runs", elem_id="runs"
                )
                choices = [(label, key) for key, label in CURVES.items()]
                curve = gradio.Dropdown(choices=choices, value="loss", label="Curve", elem_id="curve")
            plot = gradio.LinePlot(
                curve_of(watched[:1], "loss"), x="step", y="value", color="run", height=420, elem_id="plot"
            )
            timer = gradio.Timer(SECONDS)
            for event in (which.change, curve.change, timer.tick):
                event(curve_of, [which, curve], plot, api_name=False, show_progress="hidden")
    return page


def serve(page: Any, *, host: str, port: int | None, open_browser: bool) -> str:
    """Serves the page from a thread; returns its address. Raises UserError where the port is taken."""
    gradio = _gradio()
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.queue().launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            css=STYLE,
        )
    except OSError as error:
        raise UserError(f"the page cannot be served on {host}: {error}", hint="choose another --port") from error
    return str(address)


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio", hint="install it: pip install 'hfpretrain[ui]'") from error
    return gradio
