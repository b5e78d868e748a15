"""`hfpretrain check`: everything that a run would do before its first step, shown instead of trained."""

import tempfile
from pathlib import Path

from hfpretrain.amounts import count, span
from hfpretrain.data.blocks import PADDING
from hfpretrain.modeling.objective import IGNORED
from hfpretrain.recipe import Recipe
from hfpretrain.run import Run
from hfpretrain.training.estimate import Estimate, estimate
from hfpretrain.training.session import Session, open_accelerator, prepare_session, utilisation

SAMPLES = 2


def check(recipe: Recipe) -> str:
    """The plan of a run as text: model, data, compute, memory, time, proofs, and sample rows as the model sees them."""
    with tempfile.TemporaryDirectory() as folder:
        session = prepare_session(recipe, Run(Path(folder)), open_accelerator(recipe))
        samples = "\n".join(f"row {number}: {sample_row(session, number)}" for number in range(SAMPLES))
        found = estimate(session)  # the last thing: the model learns
    facts, plan = session.facts, session.plan
    speed = plan.tokens(1) / found.seconds_per_step
    parameters = facts["parameters"]
    lines = [
        ("recipe", f"{recipe.name}: valid"),
        ("model", f"{facts['architecture']}, {count(parameters)} parameters ({parameters})"),
        ("tokenizer", f"{len(session.tokenizer)} tokens"),
        ("data", f"{facts['training_tokens']} training tokens, {facts['validation_tokens']} held out"),
        ("batch", f"{recipe.train.batch_size} blocks of {recipe.data.block_size}, {session.micro_batch_size} at once"),
        *(("mixing", line) for line in session.batches.mixing),
        ("packing", f"{facts['packing']}, proven" if facts["packing"] == "documents" else facts["packing"]),
        ("device", f"{facts['device']}, {facts['precision']}"),
        ("shortcuts", facts["shortcuts"]),
        ("memory", memory(found)),
    ]
    if plan.steps is None:
        assert plan.seconds is not None
        lines.append(("plan", span(plan.seconds)))
    else:
        tokens, epochs = plan.tokens(plan.steps), plan.epochs(plan.steps)
        lines += [
            ("plan", f"{plan.steps} steps, {count(tokens)} tokens, {epochs:.2f} epochs"),
            ("compute", f"{facts['flops_per_token'] * tokens:.3g} FLOPs, {count(facts['flops_per_token'])} per token"),
            (
                "speed",
                f"{count(speed)} tokens/s, {utilisation(session, speed):.0%} of the matrix rate (MFU)",
            ),
            ("time", f"about {span(found.seconds or 0.0)} with evaluations"),
        ]
    text = "\n".join(f"{name:<10} {value}" for name, value in lines)
    legend = (
        "| document border, [MASK: the word to guess]"
        if recipe.objective == "mlm"
        else "| document border, {no target}"
    )
    return f"{text}\n\nThe first rows ({legend}):\n{samples}"


def memory(found: Estimate) -> str:
    """The peak and the parts of it that are known by name."""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "activations and logits": found.activations,
    }
    return f"{count(found.memory)}B, of it " + ", ".join(f"{count(size)}B {name}" for name, size in parts.items())


def sample_row(session: Session, position: int) -> str:
    """One training row, decoded token by token, with masks, prompts and document borders shown."""
    row = session.batches.row(position)
    batch = session.collator([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    documents = batch["document_ids"][0].tolist()
    targets = row.block.targets.tolist()
    tokenizer = session.tokenizer
    pieces: list[str] = []
    run: list[int] = []

    def flush() -> None:
        if run:
            pieces.append(tokenizer.decode(run))
            run.clear()

    for place, token in enumerate(ids):
        if place and documents[place] != documents[place - 1]:
            flush()
            pieces.append("|")
        if documents[place] == PADDING:
            break
        if session.recipe.objective == "mlm" and labels[place] != IGNORED:
            flush()
            pieces.append(f"[{tokenizer.decode([token]).strip()}: {tokenizer.decode([labels[place]]).strip()}]")
        elif not targets[place]:
            flush()
            pieces.append("{" + tokenizer.decode([token]) + "}")
        else:
            run.append(token)
    flush()
    return " ".join(pieces)
