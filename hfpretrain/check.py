"""`hfpretrain check`: everything that a run would do before its first step, shown instead of trained."""

import tempfile
from pathlib import Path

from hfpretrain.amounts import count, span
from hfpretrain.data.blocks import PADDING
from hfpretrain.modeling.objective import IGNORED
from hfpretrain.recipe import Recipe
from hfpretrain.run import Run
from hfpretrain.training.begin import seconds_per_step
from hfpretrain.training.session import Session, open_accelerator, prepare_session

SAMPLES = 2


def check(recipe: Recipe) -> str:
    """The plan of a run as text: model, data, compute, memory, time, proofs, and sample rows as the model sees them."""
    with tempfile.TemporaryDirectory() as folder:
        session = prepare_session(recipe, Run(Path(folder)), open_accelerator(recipe))
    facts, plan = session.facts, session.plan
    parameters = facts["parameters"]
    lines = [
        ("recipe", f"{recipe.name}: valid"),
        ("model", f"{facts['architecture']}, {count(parameters)} parameters ({parameters})"),
        ("tokenizer", f"{len(session.tokenizer)} tokens"),
        ("data", f"{facts['training_tokens']} training tokens, {facts['validation_tokens']} held out"),
        ("batch", f"{recipe.train.batch_size} blocks of {recipe.data.block_size}, {session.micro_batch_size} at once"),
        ("packing", f"{facts['packing']}, proven" if facts["packing"] == "documents" else facts["packing"]),
        ("device", f"{facts['device']}, {facts['precision']}"),
        ("memory", f"{count(16 * parameters)}B for weights, gradients and AdamW; activations come on top"),
    ]
    if plan.steps is None:
        assert plan.seconds is not None
        lines.append(("plan", span(plan.seconds)))
    else:
        tokens = plan.steps * plan.tokens_per_step
        epochs = plan.steps / plan.steps_per_epoch
        lines += [
            ("plan", f"{plan.steps} steps, {count(tokens)} tokens, {epochs:.2f} epochs"),
            ("compute", f"{6 * parameters * tokens:.3g} FLOPs (6 per parameter and token)"),
            ("time", f"about {span(plan.steps * seconds_per_step(session))} without evaluations"),
        ]
    text = "\n".join(f"{name:<10} {value}" for name, value in lines)
    samples = "\n".join(f"row {number}: {sample_row(session, number)}" for number in range(SAMPLES))
    legend = (
        "| document border, [MASK: the word to guess]"
        if recipe.objective == "mlm"
        else "| document border, {no target}"
    )
    return f"{text}\n\nThe first rows ({legend}):\n{samples}"


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
