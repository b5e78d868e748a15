"""How many blocks a device sees at once, where the recipe leaves it open: found by trying.

On an accelerator the most that fit, on a CPU what is fastest per block. What was found is kept for the run, and on this
machine for later runs of the same model, so that the same recipe gives the same bits again.
"""

import hashlib
import json
import logging
import time
from contextlib import nullcontext
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfpretrain import hardware
from hfpretrain.files import cache_folder, json_object, write_whole
from hfpretrain.modeling.parameters import is_sharded
from hfpretrain.place import shares
from hfpretrain.recipe_stages import longest_block
from hfpretrain.training.sharding import backward, forget_gradients, gradients_kept
from hfpretrain.training.zero import Zero

if TYPE_CHECKING:
    from hfpretrain.training.session import Session

log = logging.getLogger(__name__)

ENOUGH_SECONDS = 0.02
"""A whole step that takes no longer is not worth cutting."""
TRYING_SECONDS = 1.0
GAIN = 1.03
"""A larger size has to be that much faster on a CPU: it takes more memory."""
ROOM = 0.92
"""The share of an accelerator's memory that may be used."""


def choose_micro_batch_size(session: "Session") -> int:
    """Blocks at once for this process: the recipe's number, what was found before, or what is found now."""
    own = session.batches.sizes.last // session.place.of
    given = session.recipe.train.micro_batch_size
    if given != "auto":
        return min(given, own)
    file = cache_folder() / "micro_batch_sizes.json"
    key = hashlib.sha256(json.dumps(_identity(session, own), sort_keys=True).encode()).hexdigest()
    # Of several processes, which may have caches of their own, all decide alike: 0 where one has found nothing yet.
    size = _smallest(session, _read(file).get(key, 0))
    if size in divisors(own):
        return size
    on_cpu = session.accelerator.device.type == "cpu"
    size = _smallest(session, fastest(session, own) if on_cpu else largest(session, own))
    if session.accelerator.is_local_main_process:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(_read(file) | {key: size}))
        except OSError:
            log.debug("the micro-batch size is not kept for other runs", exc_info=True)
    return size


def _read(file: Path) -> dict[str, int]:
    """What was found before; nothing if there is no such file, or a damaged one."""
    try:
        return json_object(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _smallest(session: "Session", size: int) -> int:
    """The smallest of all processes, which fits all."""
    if session.accelerator.num_processes == 1:
        return size
    return int(session.accelerator.gather(torch.tensor([size], device=session.accelerator.device)).min())


def divisors(number: int) -> list[int]:
    """All of them, the largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def fastest(session: "Session", own: int) -> int:
    """The size with the least time per block, growing from one of 1,024 tokens as long as that helps."""
    sizes = divisors(own)[::-1]
    if (spent := seconds_of(session, 1)) * own <= ENOUGH_SECONDS:
        return own
    start = next((size for size in sizes if size * longest_block(session.recipe.data)[1] >= 1024), own)
    best, least = start, seconds_of(session, start) / start
    for size in sizes:
        if size < 2 * best:
            continue
        if spent > TRYING_SECONDS:
            break
        spent += (taken := 2 * seconds_of(session, size))
        each = taken / 2 / size
        if each * GAIN > least:
            break
        best, least = size, each
    return best


def largest(session: "Session", own: int) -> int:
    """The most blocks whose forward and backward fit beside weights, gradients and the optimizer's state."""
    device = session.accelerator.device
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    states = 8 * session.facts["parameters"] // shares(session.recipe.parallel, session.accelerator.num_processes)
    if Zero.of(session.model):
        states = 0  # DeepSpeed has made it already
    if is_sharded(session.model):
        return _grown(session, own, states, total)
    for size in divisors(own):
        try:
            if total is not None:
                torch.cuda.reset_peak_memory_stats(device)
            with torch.compiler.set_stance("force_eager"):  # compiling for a size that is not taken costs minutes
                seconds_of(session, size)
            if total is None or torch.cuda.max_memory_allocated(device) + states < ROOM * total:
                return size
        except torch.OutOfMemoryError:
            session.model.zero_grad(set_to_none=True)
        if total is not None:
            torch.cuda.empty_cache()
    return 1


def _grown(session: "Session", own: int, states: int, total: int | None) -> int:
    """Of a sharded model, which all processes run together, and which does not outlive a lack of memory: from one block
    on, as long as the next size would fit if everything grew with it."""
    best = 1
    for size, following in pairwise([*divisors(own)[::-1], 2 * own]):
        if total is not None:
            torch.cuda.reset_peak_memory_stats(session.accelerator.device)
        with torch.compiler.set_stance("force_eager"):
            seconds_of(session, size)
        best = size
        most = 0 if total is None else torch.cuda.max_memory_allocated(session.accelerator.device)
        fits = total is None or most * following / size + states < ROOM * total
        if not _smallest(session, int(fits)):
            break
    return best


def seconds_of(session: "Session", size: int) -> float:
    """The time of a forward and backward of `size` blocks, the faster of two; gradients are left as they were: none.

    Of a sharded model, which all processes run together, the time of the slowest, so that all decide alike.
    """
    together = is_sharded(session.model)
    rows = session.batches.largest_rows(size)
    batch = {name: tensor.to(session.accelerator.device) for name, tensor in session.collator(rows).items()}
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        # A sharded model's gradients are not the process's own to keep.
        kept = nullcontext() if together else gradients_kept(session.model, session.accelerator)
        with session.passes, kept:
            with session.accelerator.autocast():
                loss = session.loss(session.model, batch)
            backward(session.model, session.accelerator, loss)
        loss.item()
        seconds = min(seconds, time.perf_counter() - began)
    forget_gradients(session.model)
    if together:
        seconds = float(session.accelerator.gather(torch.tensor([seconds], device=session.accelerator.device)).max())
    return seconds


def _identity(session: "Session", own: int) -> dict[str, Any]:
    """What the best size depends on."""
    recipe, facts = session.recipe, session.facts
    return {
        "model": session.accelerator.unwrap_model(session.model).config.to_json_string(),
        "ways": [
            facts["parameters"],
            facts["packing"],
            facts["shortcuts"],
            recipe.train.compile,
            recipe.optimizer.name,
        ],
        "processes": session.accelerator.num_processes,
        "blocks": [own, longest_block(recipe.data)[1], recipe.objective, recipe.train.activation_checkpointing],
        "machine": [facts["device"], torch.get_num_threads(), facts["precision"], torch.__version__],
        "memory": hardware.total_memory(session.accelerator.device),
        **({"parallel": asdict(recipe.parallel)} if is_sharded(session.model) else {}),
    }
