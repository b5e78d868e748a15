"""The model card: a README.md that says what the model is and how it was made, with nothing left to fill in.

It is made from what the run recorded (report.json, recipe.yaml, metrics.jsonl) and holds no path, host or user name.
Its last line carries a hash of the rest, so that a card that somebody edited is known as such and kept.
"""

import hashlib
import io
import json
import logging
import os
import re
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from hfpretrain import recipe as recipes
from hfpretrain import strict_yaml
from hfpretrain.amounts import count, span
from hfpretrain.data.filters import in_words
from hfpretrain.files import cache_folder, write_whole
from hfpretrain.hub import split_revision
from hfpretrain.recipe_contents import Keys, dotted
from hfpretrain.recipe_stages import batch_sizes, places_of_sources, stages_of
from hfpretrain.run import Run

log = logging.getLogger(__name__)

GREY, BLUE, ORANGE = "#797979", "#3b82f6", "#e0731d"
"""Seen on white as well as on black: each has a contrast of at least 3 to both."""

_MARK = "<!-- Written by hfpretrain, and anew with each push; an edited card is kept. sha256:{} -->\n"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{64})") + r"\Z")
NEUTRAL = {"mlm": "This is a [MASK].", "clm": "This is a"}
"""What the card shows the model on where the data is not for everyone to see."""
LOCAL = "local files"
"""The name of a source that has no place on the Hub."""
_HOME = "https://huggingface.co"
_TASKS = {"mlm": "fill-mask", "clm": "text-generation"}


def write_card(run: Run, repo_id: str | None = None, revision: str | None = None) -> None:
    """Writes README.md and the picture of the training curve into a finished run; an edited card is kept, and said.

    `repo_id` and `revision` are where the model can be loaded from; without them the card's snippet loads the folder
    that it lies in.
    """
    report, recipe = run.report(), recipes.load(run.recipe_file)
    if run.card_file.exists() and not generated(run.card_file.read_text(encoding="utf-8", errors="replace")):
        log.info("%s was edited, and is kept as it is", run.card_file)
        return
    if repo_id is None or not run.curve_file.exists():
        _draw_curve(run, report)
    text = f"---\n{_metadata(report, recipe).to_yaml()}\n---\n\n{_body(report, recipe, repo_id, revision)}\n"
    write_whole(run.card_file, text + _MARK.format(hashlib.sha256(text.encode()).hexdigest()))


def generated(card: str) -> bool:
    """Whether a card is as `write_card` wrote it."""
    card = card.replace("\r\n", "\n")
    mark = _MARKED.search(card)
    return mark is not None and mark[1] == hashlib.sha256(card[: mark.start()].encode()).hexdigest()


def _metadata(report: dict[str, Any], recipe: recipes.Recipe) -> ModelCardData:
    datasets = sorted({source["dataset"] for source in report["sources"] if source["dataset"]})
    language = recipe.hub.language
    return ModelCardData(
        language=list(language) if isinstance(language, tuple) else language,
        license=recipe.hub.license,
        library_name="transformers",
        pipeline_tag=_TASKS[report["objective"]],
        tags=["hfpretrain", report["architecture"]],
        datasets=datasets or None,
        base_model=split_revision(_base_on_hub(report) or "")[0] or None,
        model_name=report["name"],
        eval_results=[
            EvalResult(
                task_type=_TASKS[report["objective"]],
                dataset_type=datasets[0] if len(datasets) == len(report["sources"]) == 1 else "custom",
                dataset_name=_held_out(recipe),
                metric_type=name,
                metric_name=name,
                metric_value=round(report[f"validation_{name}"], 6),
            )
            for name in ("loss", "perplexity", "accuracy")
            if f"validation_{name}" in report
        ]
        or None,
    )


def _base_on_hub(report: dict[str, Any]) -> str | None:
    """The model on the Hub that it was made from, itself or by the runs before it."""
    found = [report["base_model"], *(each["base_model"] for each in reversed(report.get("lineage") or []))]
    return next(filter(None, found), None)


def _held_out(recipe: recipes.Recipe) -> str:
    own = not isinstance(recipe.data.validation, recipes.Amount)
    return "validation data of its own" if own else "held-out part of the training data"


def _body(report: dict[str, Any], recipe: recipes.Recipe, repo_id: str | None, revision: str | None) -> str:
    masked = report["objective"] == "mlm"
    what = (
        "masked language model, which fills in missing words"
        if masked
        else "causal language model, which continues text"
    )
    base, at = split_revision(report["base_model"] or "")
    link = f"{_HOME}/{base}" + (f"/tree/{at}" if at else "")
    started = f", continued from [{report['base_model']}]({link})" if base else ", trained from scratch"
    started = ", continued from other weights" if recipe.model.from_ and not base else started
    if lineage := report.get("lineage"):
        started = f", continued from the run {lineage[-1]['run']}"
    where = "" if repo_id else " Run it in the folder of this model, or put the model's name in place of the dot."
    sections = [
        f"# {report['name']}",
        f"A {what}: {report['architecture']} with {count(report['parameters'])} parameters{started}.",
        "## Use",
        f"With Transformers alone.{where}",
        _fenced(_snippet(report, repo_id or ".", revision), "python"),
        *_evaluation(report, recipe),
        *_samples(report),
        "## Training",
        "![Loss over the tokens seen](training_curve.png)",
        _table(["training", ""], _facts(report, recipe)),
        "### Data",
        _table(["source", "documents", "tokens", "words"], _data_rows(report)),
        _left_out(report),
        f"{_number(report['training_tokens'])} tokens for training, {report['validation_tokens']:,} for validation. "
        f"Fingerprint of the data: `{report['data_fingerprint']}`.",
        "## Reproduce",
        f"With hfpretrain {report['versions']['hfpretrain']}: save the recipe as `recipe.yaml` and train. The order of "
        "the data, the masks and the first weights follow from the seed; equal data has the fingerprint above.",
        _fenced(strict_yaml.write(shareable(report, recipe)), "yaml"),
        _fenced(_command(report, recipe), "sh"),
        _table(["library", "version"], [[name, version] for name, version in report["versions"].items()]),
    ]
    return "\n\n".join(section for section in sections if section)


def _snippet(report: dict[str, Any], place: str, revision: str | None) -> str:
    example = report["samples"][0]["text"] if report["samples"] else NEUTRAL[report["objective"]]
    model = f'model="{place}"' + (f', revision="{revision}"' if revision else "")
    if report["objective"] == "mlm":
        text = json.dumps(example.replace("[MASK]", report["mask_token"]), ensure_ascii=False)
        return (
            "from transformers import pipeline\n\n"
            f'fill = pipeline("fill-mask", {model})\n'
            f"for guess in fill({text}):\n"
            '    print(guess["token_str"], guess["score"])'
        )
    return (
        "from transformers import pipeline\n\n"
        f'generate = pipeline("text-generation", {model})\n'
        f"answer = generate({json.dumps(example, ensure_ascii=False)}, max_new_tokens=20, do_sample=False)\n"
        'print(answer[0]["generated_text"])'
    )


def _evaluation(report: dict[str, Any], recipe: recipes.Recipe) -> list[str]:
    sections = []
    if "validation_loss" in report:
        targets = "masked tokens" if report["objective"] == "mlm" else "next tokens"
        measures = {
            "loss": ("loss (nats per token)", ".4f"),
            "perplexity": ("perplexity", ".2f"),
            "bits_per_byte": ("bits per byte", ".4f"),
            "accuracy": ("accuracy", ".1%"),
            "top5_accuracy": ("accuracy, of the five likeliest", ".1%"),
            "pseudo_perplexity": ("pseudo-perplexity", ".2f"),
            "pseudo_bits_per_byte": ("bits per byte, each token masked by itself", ".4f"),
        }
        found = {key: report[f"validation_{key}"] for key in measures if f"validation_{key}" in report}
        rows = [[measures[key][0], format(value, measures[key][1])] for key, value in found.items()]
        intro = f"On {report['validation_targets']:,} {targets} ({_held_out(recipe)}), after training."
        sections = [intro, _table(["measure", "value"], rows)]
    if "pairs_accuracy" in report:
        said = "in which the good sentence has to be likelier than the bad one"
        sections += [f"On {report['pairs']:,} minimal pairs, {said}: {report['pairs_accuracy']:.1%}."]
    return ["## Evaluation", *sections] if sections else []


def made_of(sample: dict[str, Any]) -> str:
    """The continuation of a sample's text, or the words for its first mask, the likeliest first."""
    if "continuation" in sample:
        told: str = sample["continuation"]
        return told.replace("\n", "⏎")  # else nothing but line breaks looks like nothing
    return ", ".join(f"{token} {probability:.1%}" for token, probability in sample["fills"])


def sample_in_words(sample: dict[str, Any]) -> str:
    """A text, and what the model makes of it."""
    return f"{sample['text']} → {made_of(sample)}"


def _samples(report: dict[str, Any]) -> list[str]:
    if not report["samples"]:
        return []
    lines = map(sample_in_words, report["samples"])
    intro = "The likeliest words for a mask." if report["objective"] == "mlm" else "The likeliest continuation."
    return [
        "## Samples",
        f"{intro}",
        _fenced("\n\n".join(lines), "text"),
    ]


def _facts(report: dict[str, Any], recipe: recipes.Recipe) -> list[list[str]]:
    train, rate = recipe.train, report.get("learning_rate", recipe.optimizer.lr)
    first, last = batch_sizes(train)
    blocks = f"{first}" if first == last else f"{first} to {last}"
    return [
        *_lineage(report),
        ["steps", f"{report['steps']:,} of {blocks} blocks of {_block_sizes(recipe)} tokens"],
        *(["data, in turn and shares", line] for line in report.get("mixing", [])),
        *(
            [
                f"changed after step {change['after_step']:,}",
                ", ".join(each.split(":")[0] for each in change["changed"]),
            ]
            for change in report.get("changes", [])
        ),
        ["tokens seen", f"{report['tokens']:,}"],
        ["words seen", f"{report['words']:,}"],
        ["attention", "within documents" if report["packing"] == "documents" else "across documents"],
        ["optimizer", f"{recipe.optimizer.name}, learning rate {rate:g}, {recipe.schedule.name}"],
        ["precision", report["precision"]],
        ["hardware", report["device"] + (f", {report['processes']} processes" if report["processes"] > 1 else "")],
        ["time", span(report["seconds"])],
        ["speed", f"{report['tokens_per_second']:,.0f} tokens/s, {report['mfu']:.0%} of the hardware's matrix rate"],
        ["compute", f"{report['flops']:.2g} FLOPs"],
    ]


def _lineage(report: dict[str, Any]) -> list[list[str]]:
    """A line for each run that the weights come from, the first one first."""
    lines = []
    for each in report.get("lineage") or []:
        seen = "" if each["tokens"] is None else f", {each['tokens']:,} tokens"
        state = ", with its optimizer's state" if each["optimizer"] else ""
        lines.append(
            ["started from", f"{each['run']}, step {each['step']:,}{seen} of {' and '.join(each['data'])}{state}"]
        )
    return lines


def _block_sizes(recipe: recipes.Recipe) -> str:
    return ", then ".join(str(stage.block_size) for stage in stages_of(recipe.data))


def _data_rows(report: dict[str, Any]) -> list[list[str]]:
    return [
        [source["name"], *(_number(source[key]) for key in ("documents", "tokens", "words"))]
        for source in report["sources"]
    ]


def _number(value: int | None) -> str:
    return "streamed" if value is None else f"{value:,}"


def _left_out(report: dict[str, Any]) -> str:
    told = [(source["name"], in_words(source.get("left_out") or {})) for source in report["sources"]]
    return "\n".join(f"Left out of {name}: {left_out}." for name, left_out in told if left_out)


def _command(report: dict[str, Any], recipe: recipes.Recipe) -> str:
    shared = shareable(report, recipe)
    files = "".join(
        f" {dotted(keys)}.{key}=PATH"
        for keys, _, _ in places_of_sources(recipe.data)
        for key, value in _at(shared, keys).items()
        if value == "PATH"
    )
    bases = "".join(f" {key}.from=PATH" for key in ("model", "tokenizer") if shared[key].get("from") == "PATH")
    return f"hfpretrain train recipe.yaml{files}{bases}"


def shareable(report: dict[str, Any], recipe: recipes.Recipe) -> dict[str, Any]:
    """The recipe without what belongs to one machine or account: local paths, where it was written and pushed to."""
    mapping = recipes.to_mapping(recipe)
    for key in ("output_dir", "hub", "trackers"):
        mapping.pop(key)
    for key in ("pairs", "metrics", "prompts"):  # files of that machine, code, and texts of its own
        mapping["evaluation"].pop(key)
    validation = mapping["data"]["validation"]
    sources = [*mapping["data"].get("sources", []), *(validation if isinstance(validation, list) else [])]
    sources += [source for stage in mapping["data"]["stages"] for source in stage["sources"]]
    datasets = {known["dataset"] for known in report["sources"]} | set(report["validation_datasets"])
    for source in sources:
        if source.get("files"):
            source["files"] = "PATH"
        for key in ("tokens", "drop_list"):
            if source.get(key):
                source[key] = "PATH"
        if source.get("hub") and split_revision(source["hub"])[0] not in datasets:
            source["hub"] = "PATH"
    for key, known in (("model", "base_model"), ("tokenizer", "base_tokenizer")):
        if mapping[key].get("from"):
            mapping[key]["from"] = report[known] or "PATH"
    shared: dict[str, Any] = _without_nulls(mapping)
    return shared


def _at(mapping: Any, keys: Keys) -> Any:
    for key in keys:
        mapping = mapping[key]
    return mapping


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item not in (None, {}, [])}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    """A code block, with a fence that the text does not hold."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _draw_curve(run: Run, report: dict[str, Any]) -> None:
    """Training and validation loss over the tokens seen, on no background, in colours for light and dark pages."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # it keeps a list of fonts
    from matplotlib.figure import Figure  # most of a second, and only a finished run needs it

    lines = run.metrics()
    known = {0: 0, **{line["step"]: line["tokens"] for line in lines if "tokens" in line}}
    steps, tokens = list(known), list(known.values())  # a step of another stage may have more
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, colour, style in (
        ("loss", "training", BLUE, {"linewidth": 1.2}),
        ("validation_loss", "held out", ORANGE, {"marker": "o", "markersize": 4, "linewidth": 1.6}),
    ):
        points = [(np.interp(line["step"], steps, tokens), line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=colour, **style)
    axes.set_xlabel("tokens seen", color=GREY)
    axes.set_ylabel("loss (nats per token)", color=GREY)
    axes.xaxis.set_major_formatter(lambda value, place: count(value))
    axes.tick_params(colors=GREY)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=GREY)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", transparent=True)
    write_whole(run.curve_file, picture.getvalue())
