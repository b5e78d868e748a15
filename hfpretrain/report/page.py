"""The page of one run."""

from collections.abc import Iterator
from typing import Any

from hfpretrain.amounts import count, span
from hfpretrain.data.filters import in_words
from hfpretrain.files import size_in_words
from hfpretrain.recipe_stages import batch_sizes, stages_of
from hfpretrain.report import html
from hfpretrain.report.plots import percent, plain, plots_of, rough_percent
from hfpretrain.report.told import Told

KINDS = {"clm": "next-word model (causal)", "mlm": "masked language model"}
STATES = {"running": "in training", "stopped": "stopped", "finished": "finished"}
ROWS = 12
"""Evaluations that the table shows."""
COLUMNS = {
    "validation_loss": ("loss", plain),
    "validation_perplexity": ("perplexity", "{:,.2f}".format),
    "validation_bits_per_byte": ("bits per byte", plain),
    "validation_accuracy": ("accuracy", percent),
    "validation_top5_accuracy": ("top 5", percent),
    "validation_pseudo_perplexity": ("pseudo-perplexity", "{:,.2f}".format),
    "validation_pseudo_bits_per_byte": ("pseudo bits per byte", plain),
    "pairs_accuracy": ("pairs", percent),
}


def page(run: Told) -> str:
    """The whole page of a run, as a text."""
    running = run.state == "running"
    body = [
        _header(run),
        html.tiles(_tiles(run)),
        *plots_of(run),
        html.card("Evaluations", _evaluations(run)),
        html.card("Samples", _samples(run)),
        '<div class="two">',
        html.card("Training", html.facts(_training(run))),
        "<div>",
        html.card("Data", _data(run)),
        "</div></div>",
        html.folded("Recipe", f"<pre>{html.shown(run.recipe_text())}</pre>" if run.recipe else ""),
        html.card("Environment", html.facts(_environment(run))),
        "" if run.state == "finished" else run.kept(),
    ]
    return html.document(f"{run.name}: {STATES[run.state]}", body, running=running)


def _header(run: Told) -> str:
    done, seconds = run.facts.get("done"), run.number("seconds")
    parts = [KINDS.get(run.text("objective") or (run.recipe.objective if run.recipe else ""), "")]
    parts += [run.text("architecture")]
    if parameters := run.number("parameters"):
        parts.append(f"{count(parameters)} parameters")
    parts.append(run.text("device"))
    line = " · ".join(filter(None, parts))
    bar = ""
    if run.state != "finished" and done is not None:
        done = min(1.0, max(0.0, done))
        planned = run.facts.get("planned_steps")
        told = f"step {run.curves.last_step:,.0f}" + (f" of {planned:,.0f}" if planned else "") + f", {done:.0%}"
        if run.state == "running" and seconds and done > 0:
            told += f", about {span(seconds / done * (1 - done))} left"
        bar = f'<div class="progress"><i style="width:{100 * done:.1f}%"></i></div><p class="soft">{told}</p>'
    problems = "".join(f'<p class="soft">{html.shown(each)}</p>' for each in run.problems)
    return (
        f'<header><div class="title"><h1>{html.shown(run.name)}</h1>'
        f'<span class="state {run.state}">{STATES[run.state]}</span></div>'
        f'<p class="soft">{html.shown(line)}</p>{bar}{problems}</header>'
    )


def _tiles(run: Told) -> Iterator[tuple[str, str, str]]:
    loss, perplexity = run.number("validation_loss"), run.number("validation_perplexity")
    floor = run.number("validation_floor")
    if loss is not None:
        more = [f"perplexity {perplexity:,.2f}" if perplexity is not None else ""]
        more += [f"floor {floor:.4f}" if floor is not None else ""]
        yield "held-out loss", plain(loss), ", ".join(filter(None, more))
    if (training := run.number("loss")) is not None:
        yield "training loss", plain(training), "of the last logged steps"
    if (bits := run.number("validation_bits_per_byte")) is not None:
        yield "bits per byte", plain(bits), "of held-out text"
    if (accuracy := run.number("validation_accuracy")) is not None:
        five = run.number("validation_top5_accuracy")
        yield "accuracy", percent(accuracy), f"top 5: {percent(five)}" if five is not None else ""
    if (pairs := run.number("pairs_accuracy")) is not None:
        of = run.number("pairs")
        yield "minimal pairs", percent(pairs), f"of {of:,.0f}" if of is not None else ""
    if (tokens := run.number("tokens")) is not None:
        epochs = run.number("epochs")
        steps = run.curves.last_step or run.number("steps") or 0
        more = [f"{steps:,.0f} step{'' if steps == 1 else 's'}"]
        more += [f"{epochs:.2f} epochs" if epochs is not None else ""]
        yield "tokens seen", count(tokens), ", ".join(filter(None, more))
    if (speed := run.number("tokens_per_second")) is not None:
        mfu = run.number("mfu")
        yield "tokens per second", count(speed), f"{rough_percent(mfu)} of the hardware" if mfu is not None else ""
    if (seconds := run.number("seconds")) is not None:
        yield "time", span(seconds), "" if run.state == "finished" else "so far"


def _evaluations(run: Told) -> str:
    moments = run.curves.chosen_moments(ROWS)
    columns = [key for key in COLUMNS if any(_is_number(line.get(key)) for line in moments)]
    if not columns:
        return ""
    rows = [
        [f"{line['step']:,.0f}"] + [COLUMNS[key][1](line[key]) if _is_number(line.get(key)) else "–" for key in columns]
        for line in moments
    ]
    averaged = run.facts.get("averaged") or {}
    if any(_is_number(averaged.get(key)) for key in columns):
        rows.append(
            ["averaged"] + [COLUMNS[key][1](averaged[key]) if _is_number(averaged.get(key)) else "–" for key in columns]
        )
    return html.numbers(["step", *(COLUMNS[key][0] for key in columns)], rows)


def _samples(run: Told) -> str:
    """Each text with what the model made of it, over time."""
    samples, hidden = run.samples()
    note = "Samples of local texts are not shown here, as a page may be handed on; prompts that a recipe names are."
    return (f'<p class="soft">{note}</p>' if hidden else "") + "".join(
        f'<section class="sample"><h3>{html.shown(text)}</h3><ol>'
        + "".join(f"<li><span>step {step:,.0f}</span>{_sample(sample)}</li>" for step, sample in over_time)
        + "</ol></section>"
        for text, over_time in samples.items()
    )


def _sample(sample: dict[str, Any]) -> str:
    if "continuation" in sample:
        return f"<bdi>{html.shown(sample['continuation'])}</bdi>"
    fills = "".join(
        f'<bdi class="fill" style="--p:{100 * min(1, max(0, share)):.1f}%">{html.shown(token)}'
        f"<small>{share:.1%}</small></bdi>"
        for token, share in sample["fills"]
    )
    return f'<span class="fills">{fills}</span>'


def _training(run: Told) -> Iterator[tuple[str, str]]:
    facts, recipe = run.facts, run.recipe
    if architecture := run.text("architecture"):
        yield "model", ", ".join([architecture, *_shape(facts.get("shape", {}))])
    if (parameters := run.number("parameters")) is not None:
        inner = run.number("parameters_without_embeddings")
        yield "parameters", f"{parameters:,}" + (f", {inner:,} without embeddings" if inner is not None else "")
    if base := run.text("base_model"):
        yield "started from", base
    for each in facts.get("lineage", []):
        if isinstance(each, dict):
            yield "started from", f"the run {each.get('run')}, step {each.get('step')}"
    if recipe:
        first, last = batch_sizes(recipe.train)
        yield "planned", str(recipe.train.duration)
        yield (
            "batch",
            (f"{first}" if first == last else f"{first} to {last}")
            + " blocks of "
            + ", then ".join(str(stage.block_size) for stage in stages_of(recipe.data))
            + " tokens",
        )
        rate = run.number("learning_rate")
        rate_told = str(recipe.optimizer.lr) if rate is None else f"{rate:g}"
        yield "optimizer", f"{recipe.optimizer.name}, learning rate {rate_told}, {recipe.schedule.name}"
    if packing := run.text("packing"):
        yield "attention", "within documents" if packing == "documents" else "across documents"
    if shortcuts := run.text("shortcuts"):
        yield "shortcuts", shortcuts
    if (flops := run.number("flops")) is not None:
        yield "compute", f"{flops:.3g} FLOPs"
    for change in facts.get("changes", []):
        yield f"changed after step {change['after_step']:,}", ", ".join(change["changed"])
    for key, what in (("loss_spikes", "loss spikes"), ("nonfinite_steps", "steps passed over")):
        if number := run.curves.troubles.get(key) or facts.get(key):
            yield what, f"{number:,}"


def _shape(shape: dict[str, Any]) -> list[str]:
    return [f"{str(key).replace('_', ' ')} {value}" for key, value in shape.items()]


def _data(run: Told) -> str:
    facts = run.facts
    sources = facts["sources"]
    rows = [
        [
            each["name"],
            *(_counted(each.get(key)) for key in ("documents", "words", "tokens")),
            f"{count(each['text_bytes'])}B" if each.get("text_bytes") is not None else "–",
        ]
        for each in sources
    ]
    table = html.numbers(["source", "documents", "words", "tokens", "text"], rows)
    lines = []
    if "training_tokens" in facts:
        lines.append(("for training", f"{facts['training_tokens']:,} tokens"))
    if facts.get("validation_tokens"):
        lines.append(("held out", f"{facts['validation_tokens']:,} tokens"))
    lines += [("in turn and shares", str(line)) for line in facts.get("mixing", [])]
    for each in sources:
        left_out = each.get("left_out")
        if isinstance(left_out, dict) and (told := in_words({k: v for k, v in left_out.items() if type(v) is int})):
            lines.append((f"left out of {each['name']}", told))
    if fingerprint := run.text("data_fingerprint"):
        lines.append(("fingerprint", fingerprint))
    return table + html.facts(lines)


def _counted(value: int | None) -> str:
    return "streamed" if value is None else count(value)


def _environment(run: Told) -> Iterator[tuple[str, str]]:
    facts = run.facts
    if device := run.text("device"):
        yield "hardware", device
    if processes := facts.get("processes"):
        yield "processes", str(processes)
    if precision := run.text("precision"):
        yield "precision", precision
    if rate := facts.get("hardware_flops_per_second"):
        yield "matrix rate", f"{rate / 1e12:.3g} TFLOP/s, each"
    if memory := facts.get("peak_memory_bytes"):
        yield "peak memory", size_in_words(memory)
    if versions := facts.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e300 < value < 1e300
