"""Trained tokenizers are kept in the cache, under what they follow from, so that a second run starts in seconds."""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast

from hfpretrain.files import cache_folder, commit_folder, damage

log = logging.getLogger(__name__)


def forget_loading(tokenizer: Any) -> None:
    """Takes out what transformers notes of how a tokenizer was loaded, and would save with it."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)


def kept_tokenizer(identity: dict[str, Any], train: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The tokenizer that follows from `identity`: from the cache, or trained now and kept there.

    Where the cache cannot be written it is trained each time, which costs time and changes nothing.
    """
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "tokenizers" / name
    if folder.is_dir() and damage(folder, of=name) is None:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        forget_loading(tokenizer)
        tokenizer.init_kwargs.pop("name_or_path", None)
        log.info("tokenizer: using the one of %s words trained before", f"{len(tokenizer):,}")
        return tokenizer
    tokenizer = train()
    beside = folder.with_name(f".{name[:16]}-{uuid.uuid4().hex}")
    try:
        beside.mkdir(parents=True)
        tokenizer.save_pretrained(beside)
        commit_folder(beside, folder)
    except OSError as error:  # another process may have kept it at the same moment
        log.debug("the tokenizer is not kept in %s: %s", folder, error)
    return tokenizer
