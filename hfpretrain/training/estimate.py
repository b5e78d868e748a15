"""What a run will take, from a few steps of it tried out: memory by its parts, and time with evaluations."""

import time
from dataclasses import dataclass, replace

import torch

from hfpretrain import hardware
from hfpretrain.training.loop import agreed, train_step, upcoming
from hfpretrain.training.session import Session

TRIED_STEPS, TRIED_SECONDS = 200, 4.0


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds. `memory` is the peak of the whole process; the parts in it are named, the rest is libraries,
    data and work space."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    memory: int
    seconds_per_step: float
    seconds: float | None
    """Of the whole run with its evaluations; None where its duration is a time."""


def estimate(session: Session) -> Estimate:
    """Tries some steps and an evaluation of one micro-batch. The session is of no use afterwards: it has learnt."""
    activations = _saved_bytes(session)
    per_step = _seconds_per_step(session)
    memory = hardware.peak_memory(session.accelerator.device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in session.model.parameters())
    states = [
        value for optimizer in session.optimizers for state in optimizer.state.values() for value in state.values()
    ]
    optimizer = sum(state.numel() * state.element_size() for state in states if isinstance(state, torch.Tensor))
    optimizer += weights if session.average is not None else 0
    seconds = None
    if session.plan.steps is not None:
        steps = session.plan.tokens(session.plan.steps) / session.plan.tokens(1)  # as long as the tried ones
        seconds = steps * per_step + _evaluation_seconds(session, session.plan.steps)
    return Estimate(weights, weights, optimizer, activations, memory, per_step, seconds)


def _saved_bytes(session: Session) -> int:
    """What one micro-batch keeps for its backward pass, each piece of memory once, weights left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in session.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its graph, it would keep itself, and all of this, for ever

    batch = session.collator(session.batches.largest_rows(session.micro_batch_size))
    batch = {name: tensor.to(session.accelerator.device) for name, tensor in batch.items()}
    watched = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with session.passes, watched, session.accelerator.autocast():
        session.loss(session.model, batch)
    own = session.loss.kept_bytes()  # of the fused cross-entropy, which are no saved tensors
    return sum(kept.values()) + own


def _seconds_per_step(session: Session) -> float:
    """The median of whole steps, as if all were as large as the first; the first half warms up."""
    seconds: list[float] = []
    for step, (micro_batches, targets) in zip(range(TRIED_STEPS), upcoming(session, 0), strict=False):
        began = time.perf_counter()
        outcome = train_step(session, step, micro_batches, targets, 1e-6)
        outcome[0].item()
        larger = session.batches.sizes.of(step) / session.batches.sizes.first
        seconds.append((time.perf_counter() - began) / larger)
        if agreed(session.accelerator, sum(seconds)) > TRIED_SECONDS and step:
            break
    counted = sorted(seconds[len(seconds) // 2 :])
    return counted[len(counted) // 2]


def _evaluation_seconds(session: Session, steps: int) -> float:
    """Of all evaluations of the run but for minimal pairs, from one micro-batch."""
    validation = session.batches.validation
    every, plan = session.recipe.evaluation.every, session.plan
    made, before = plan.passed(every, steps), plan.passed(every, steps - 1)
    if validation is None or made is None or before is None:
        return 0.0
    size = session.micro_batch_size
    blocks = min(size, len(validation))
    of_blocks = replace(session.evaluator, mask_id=None, pairs=None)
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        of_blocks(
            session.accelerator.unwrap_model(session.model, keep_torch_compile=True),
            micro_batch_size=size,
            max_tokens=blocks * validation.block_size,
        )
        seconds = min(seconds, time.perf_counter() - began)
    if session.evaluator.mask_id is not None:
        seconds *= 1 + validation.block_size
    most = session.recipe.evaluation.max_tokens
    usual = len(validation) if most is None else min(len(validation), max(1, most // validation.block_size))
    times = max(0, made - int(made > before))
    return seconds / blocks * (times * usual + len(validation))
