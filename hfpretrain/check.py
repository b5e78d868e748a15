"""`hfpretrain check`: everything that a run would do before its first step, shown instead of trained."""

import tempfile
from pathlib import Path

from rich.text import Text

from hfpretrain.amounts import count, span
from hfpretrain.check_data import data_facts, legend, sample_row
from hfpretrain.data.hub_sets import at_commits
from hfpretrain.files import size_in_words
from hfpretrain.recipe import Recipe
from hfpretrain.recipe_stages import batch_sizes
from hfpretrain.run import Run
from hfpretrain.training.begin import rate_in_words, sizes_in_words
from hfpretrain.training.estimate import Estimate, estimate
from hfpretrain.training.session import open_accelerator, prepare_session, utilisation
from hfpretrain.training.trackers import check_trackers

SAMPLES = 2


def check(recipe: Recipe) -> Text:
    """The plan of a run: model, data, compute, memory, time, proofs, what usually goes wrong with the data, and sample
    rows as the model sees them. Its styles are colours for a terminal; `plain` says the same."""
    check_trackers(recipe.trackers)
    recipe = at_commits(recipe)
    with tempfile.TemporaryDirectory() as folder:
        session = prepare_session(recipe, Run(Path(folder)), open_accelerator(recipe))
        data = data_facts(session)
        samples = [Text(f"\nrow {number}: ").append_text(sample_row(session, number)) for number in range(SAMPLES)]
        found = estimate(session)  # the last thing: the model learns
    facts, plan = session.facts, session.plan
    speed = plan.tokens(1) / found.seconds_per_step
    parameters = facts["parameters"]
    streamed = facts["training_tokens"] is None
    told = (
        "streamed: of it only the beginning is looked at" if streamed else f"{facts['training_tokens']} training tokens"
    )
    first, last = batch_sizes(recipe.train)
    blocks = f"{first}" if first == last else f"{first}, growing to {last}"
    lines = [
        ("recipe", f"{recipe.name}: valid"),
        ("model", f"{facts['architecture']}, {count(parameters)} parameters ({parameters})"),
        ("sizes", sizes_in_words(facts)),
        ("tokenizer", f"{len(session.tokenizer)} tokens"),
        ("data", f"{told}, {facts['validation_tokens']} held out"),
        *data.lines(),
        ("batch", f"{blocks} blocks of {recipe.data.block_size}, {session.micro_batch_size} at once"),
        *(("mixing", line) for line in session.batches.mixing),
        ("packing", f"{facts['packing']}, proven" if facts["packing"] == "documents" else facts["packing"]),
        ("device", f"{facts['device']}, {facts['precision']}"),
        ("shortcuts", facts["shortcuts"]),
        ("optimizer", f"{recipe.optimizer.name}, {rate_in_words(session)}"),
        ("memory", memory(found)),
    ]
    if plan.steps is None:
        assert plan.seconds is not None
        lines.append(("plan", span(plan.seconds)))
    else:
        tokens = plan.tokens(plan.steps)
        each = tokens / parameters
        epochs = "" if streamed else f", {plan.epochs(plan.steps):.2f} epochs"
        lines += [
            ("plan", f"{plan.steps} steps, {count(tokens)} tokens{epochs}, {each:.3g} tokens per parameter"),
            ("compute", f"{facts['flops_per_token'] * tokens:.3g} FLOPs, {count(facts['flops_per_token'])} per token"),
            (
                "speed",
                f"{count(speed)} tokens/s, {utilisation(session, speed):.0%} of the matrix rate (MFU)",
            ),
            ("time", f"about {span(found.seconds or 0.0)} with evaluations"),
        ]
    lines += [("warning", sentence) for sentence in data.warnings(session)]
    text = Text()
    for name, value in lines:
        text.append(f"{name:<10} {value}\n", "yellow" if name == "warning" else "")
    text.append(f"\n{data.histogram(recipe.data.block_size)}\n")
    text.append("\nThe first rows (").append_text(legend(session)).append("):")
    return text.append_text(Text().join(samples))


def memory(found: Estimate) -> str:
    """The peak and the parts of it that are known by name."""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "activations and logits": found.activations,
    }
    known = ", ".join(f"{size_in_words(size)} {name}" for name, size in parts.items())
    return f"{size_in_words(found.memory)}, most of a small model's the libraries'; of it {known}"
