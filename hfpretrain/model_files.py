"""A model folder's own files, looked at before any library reads them.

A folder may come from anywhere. It must not lead out of itself, by links or by the names of its shards; nothing but
safetensors is read as weights; no code is run, neither its own nor what it names on the Hub; and no size in its
configuration keeps the machine busy for ever.
"""

import fnmatch
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfpretrain.errors import ModelError
from hfpretrain.files import json_object

log = logging.getLogger(__name__)

# What belongs to a model or tokenizer: no code, no pickled weights, no copies in other formats.
TOKENIZER_FILES = [
    *("config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab*", "merges.txt", "bpe.codes", "*.model", "*.tiktoken", "tekken.json"),
]
WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
FILES = {"tokenizer": TOKENIZER_FILES, "model": [*TOKENIZER_FILES, "generation_config.json", *WEIGHTS]}

INDEX = "model.safetensors.index.json"
MOST_LAYERS = 2048
"""Layers, blocks or experts of a model; each is built one by one, and no known model has half as many."""
_LARGEST_BYTES = 64 * 2**20
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", INDEX)
NUMBER_OF_PARTS = re.compile(r"(n|num)_\w*(layer|block|expert|group)\w*|\w*layers|depth")
_NAMES_CODE = re.compile(r"_?(attn|experts)_implementation")


def is_model_file(name: str) -> bool:
    """Whether a file of that name, in a folder and not below it, belongs to a model."""
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES["model"])


def check_model_files(folder: Path) -> None:
    """Raises ModelError in a sentence for a folder that no library should be given; what is missing is not said."""
    own = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and (is_model_file(path.name) or path.name == "README.md"):
            target = path.resolve()
            # A snapshot in the Hub's cache is made of links to the blobs beside it.
            cached = own.parent.name == "snapshots" and target.parent == own.parent.parent / "blobs"
            if not (cached or target.is_relative_to(own)):
                raise ModelError(f"{path} is a link out of the folder", hint="copy the file here if it is meant")
    written = {name: _settings(folder / name) for name in _SETTINGS if (folder / name).is_file()}
    _check_config(folder, written.get("config.json", {}))
    if "auto_map" in written.get("tokenizer_config.json", {}):
        log.info("%s brings code of its own for its tokenizer, which is not run", folder)
    if INDEX in written:
        shards = written[INDEX].get("weight_map")
        if not isinstance(shards, dict) or not isinstance(written[INDEX].get("metadata", {}), dict):
            raise ModelError(f"{folder / INDEX} cannot be read: it has no weight_map")
        for shard in shards.values():
            if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
                what = f"{shard!r:.60} is not the name of a .safetensors file in the folder"
                raise ModelError(f"{folder / INDEX}: {what}", hint="only safetensors are read, and only from there")


def _settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError(f"it is larger than {_LARGEST_BYTES >> 20} MiB")
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    place = folder / "config.json"
    kind, classes, weights = (config.get(key) for key in ("model_type", "architectures", "transformers_weights"))
    if not isinstance(kind, str | None) or not (classes is None or _are_texts(classes)):
        raise ModelError(f"{place} cannot be read: model_type is a text, and architectures are a list of texts")
    if "auto_map" in config:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if kind not in CONFIG_MAPPING_NAMES:
            raise ModelError(
                f"{folder} needs code of its own, and code from elsewhere is never run",
                hint="take a model whose architecture is part of transformers",
            )
        log.info("%s brings code of its own, which is not run: transformers' %s is used", folder, kind)
    if weights is not None and weights not in WEIGHTS:
        raise ModelError(f"{place}: transformers_weights names other weights than model.safetensors")
    for key, value in _items(config):
        if _NAMES_CODE.fullmatch(key) and "/" in str(value):
            raise ModelError(f"{place}: {key} names code on the Hub, which is never run", hint="remove the key")
        if isinstance(value, int) and value > MOST_LAYERS and NUMBER_OF_PARTS.fullmatch(key):
            raise ModelError(f"{place}: {key} is {value:.6g}, and no model has more than {MOST_LAYERS}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _items(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, those of inner objects too."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield key, value
            yield from _items(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _items(value)
