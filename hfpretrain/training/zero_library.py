"""The library DeepSpeed, an optional extra: whether it is there, what it is told first, and that it keeps quiet."""

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from hfpretrain.errors import RecipeError

log = logging.getLogger(__name__)


def require_installed() -> None:
    """Raises RecipeError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise RecipeError(
            "parallel.strategy: deepspeed is not installed",
            hint='install it by pip install "hfpretrain[deepspeed]", or set parallel.strategy: fsdp',
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What DeepSpeed prints and warns of inside is not for the terminal; its errors are."""
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    if said.getvalue():
        log.debug("DeepSpeed: %s", said.getvalue())


def tell_device(device: torch.device) -> None:
    """Has DeepSpeed know what it computes on, before anything imports it: Accelerate does wherever it is installed, and
    it would say on stdout that it looks for it."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)


def imported() -> Any:
    """The library, with its log on stderr, from errors on."""
    import deepspeed

    logger = logging.getLogger("DeepSpeed")
    logger.handlers[:] = [logging.StreamHandler()]
    logger.setLevel(logging.ERROR)
    return deepspeed
