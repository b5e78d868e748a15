"""Documents become tokens once: a cached store of all token ids, memory-mapped.

The store is flat files beside a manifest, written as the tokens come, so that memory does not grow with the corpus.
It appears under its fingerprint (content, tokenizer, settings) by one rename: whole, or not at all.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.encoding import Encoder, Piece
from hfpretrain.data.filters import in_words
from hfpretrain.data.sources import Document, OpenSource
from hfpretrain.errors import DataError, StorageError
from hfpretrain.files import bytes_below, cache_folder, free_bytes, lack_of_room, size_in_words

log = logging.getLogger(__name__)

FORMAT = 3
"""Of the store's files and of how text becomes tokens; a store of another one is not used."""
BATCH_PIECES, BATCH_CHARACTERS = 1000, 1_000_000
_WORD = re.compile(r"\S+")
TEXT_BYTES_PER_BYTE = 2
"""A token spells about four bytes of text, and two of them hold it."""
ABANDONED_AFTER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class TokenStore:
    """Token ids of all documents, one after another, memory-mapped."""

    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    """[total], special tokens and the end of each document included."""
    offsets: npt.NDArray[np.int64]
    """[documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]."""
    keys: npt.NDArray[np.uint64]
    """[documents]: a hash of each text, so that equal texts have equal keys."""
    prompt_lengths: npt.NDArray[np.uint32] | None
    """[documents]: how many tokens at the start are not targets; None where no document has any."""
    text_bytes: int
    """UTF-8 bytes of all texts."""
    fingerprint: str
    """SHA-256 in hex: same content, tokenizer and settings."""
    manifest: dict[str, Any]
    """Counts: documents, tokens, words (between spaces), text_bytes, skipped, blank, left_out by filters; and what
    the files hold."""


def prepare(
    source: OpenSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_id: int | None,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenStore:
    """The tokens of a source: from the cache, or tokenised now and kept there.

    Every document is `tokenizer(text)`, special tokens included, then `end_id` if it does not end with it already. What
    spells a special token in a text ("</s>") is ordinary text. A text of more than 131,072 characters is tokenised in
    pieces, cut where that was seen to change no token. `progress` is called with the UTF-8 bytes done. Raises DataError
    if the source cannot be read or has no text, or if the cache cannot be made, StorageError if it cannot be written.
    """
    encoder = Encoder(tokenizer, end_id)
    identity = {"format": FORMAT, "source": source.fingerprint, "tokenizer": encoder.identity, "end_id": end_id}
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    stores = (cache or cache_folder()) / "tokens"
    folder = stores / fingerprint
    store = _load(folder)
    if store is not None:
        log.info(
            "%s: using %s tokens of %s documents prepared before%s",
            source.key,
            f"{len(store.tokens):,}",
            f"{len(store.keys):,}",
            f" ({store.manifest['skipped']} bad rows were skipped then)" if store.manifest["skipped"] else "",
        )
        if told := in_words(store.manifest["left_out"]):
            log.info("%s: left out then: %s", source.key, told)
        return store
    building = stores / f".building-{fingerprint[:16]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    needed = source.size // TEXT_BYTES_PER_BYTE
    said = f"the token cache {stores} cannot be written"
    hint = "make room there, or set HFPRETRAIN_CACHE to another folder"
    try:
        building.mkdir(parents=True)
        _remove_abandoned(stores)
    except OSError as error:
        raise DataError(f"{said}: {error.strerror or error}", hint=hint) from error
    try:
        if lacking := lack_of_room(stores, needed):
            raise StorageError(f"{said}: for {source.key} {lacking}", hint=hint)
        _write(building, source, encoder, fingerprint, progress)
        return _commit(building, folder)
    except OSError as error:
        free = free_bytes(stores) + bytes_below(building)
        room = f"{source.key} needs about {size_in_words(needed)}, and {size_in_words(free)} are free there"
        raise StorageError(f"{said} ({error.strerror or error}): {room}", hint=hint) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def end_of_document(tokenizer: PreTrainedTokenizerBase, objective: Literal["clm", "mlm"]) -> int | None:
    """The id that ends each document: eos for clm and sep for mlm, or the other one; None if there is neither."""
    ids: tuple[int | None, int | None] = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    first, second = ids if objective == "clm" else ids[::-1]
    return second if first is None else first


def _write(
    folder: Path, source: OpenSource, encoder: Encoder, fingerprint: str, progress: Callable[[int], None] | None
) -> None:
    """Tokenises the source into the files of `folder`, the manifest last."""
    started = time.perf_counter()
    documents = total = text_bytes = words = 0
    any_prompts = False
    with contextlib.ExitStack() as stack:
        names = ("tokens", "offsets", "keys", "prompt_lengths")
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}
        files["offsets"].write(np.zeros(1, dtype=np.int64).tobytes())
        pieces = (piece for document in _encodable(source) for piece in encoder.pieces(document))
        for batch in _batches(pieces):
            tokens = array(encoder.typecode)
            offsets, keys, prompts = array("q"), array("Q"), array("I")
            for piece, ids, prompt_length in encoder.encode(batch):
                if piece.document:
                    data = piece.document.text.encode()
                    text_bytes += len(data)
                    words += sum(1 for _ in _WORD.finditer(piece.document.text))  # a list of them would be large
                    keys.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))
                    prompts.append(prompt_length)
                tokens.fromlist(ids)
                if piece.last:
                    offsets.append(total + len(tokens))
            total += len(tokens)
            documents += len(keys)
            any_prompts |= any(prompts)
            for name, values in zip(names, (tokens, offsets, keys, prompts), strict=True):
                values.tofile(files[name])
            if progress:
                progress(text_bytes)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    if not total:
        skipped = f": all {source.skipped} rows that could not be read were skipped" if source.skipped else ""
        raise DataError(f"{source.key} has no text{skipped}", hint="give a source with at least one document")
    if not any_prompts:
        (folder / "prompt_lengths.bin").unlink()
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "bytes_per_token_id": array(encoder.typecode).itemsize,
        "prompts": any_prompts,
        "documents": documents,
        "tokens": total,
        "text_bytes": text_bytes,
        "words": words,
        "skipped": source.skipped,
        "blank": source.blank,
        "left_out": dict(source.left_out),
    }
    with (folder / "manifest.json").open("wb") as file:
        file.write(json.dumps(manifest, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)
    seconds = time.perf_counter() - started
    log.info(
        "%s: documents: %s, tokens: %s (%.2f bytes each), tokenised at %.1f MB/s",
        source.key,
        f"{documents:,}",
        f"{total:,}",
        text_bytes / total,
        text_bytes / 1e6 / seconds,
    )


def _encodable(source: OpenSource) -> Iterator[Document]:
    """The source's documents. What goes wrong with reading them is not the cache's fault, so it is said here."""
    try:
        yield from source.documents()
    except OSError as error:
        raise DataError(f"{source.key} cannot be read: {error.strerror or error}") from error


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces by the batch: enough to keep every core at work, few enough for memory."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) == BATCH_PIECES or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _commit(building: Path, folder: Path) -> TokenStore:
    """Renames the finished store to its place, unless another process was first: then its store is used."""
    while True:
        try:
            building.rename(folder)
            _sync(folder.parent)
        except OSError:
            if not folder.is_dir():
                raise
        store = _load(folder, quiet=True)
        if store is not None:
            return store
        aside = building.with_name(f"{building.name}-damaged")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it just now
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _load(folder: Path, *, quiet: bool = False) -> TokenStore | None:
    """The store in `folder`; None if there is none, or (said, unless `quiet`) if it is damaged."""
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        documents, total = manifest["documents"], manifest["tokens"]
        token_type = {2: np.uint16, 4: np.uint32}[manifest["bytes_per_token_id"]]
        prompts = _mapped(folder / "prompt_lengths.bin", np.uint32, documents) if manifest["prompts"] else None
        store = TokenStore(
            tokens=_mapped(folder / "tokens.bin", token_type, total),
            offsets=_mapped(folder / "offsets.bin", np.int64, documents + 1),
            keys=_mapped(folder / "keys.bin", np.uint64, documents),
            prompt_lengths=prompts,
            text_bytes=manifest["text_bytes"],
            fingerprint=manifest["fingerprint"],
            manifest=manifest,
        )
        if manifest["format"] != FORMAT or store.fingerprint != folder.name or store.offsets[-1] != total:
            raise ValueError("its parts do not belong together")
        return store
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not quiet:
            log.warning("the prepared tokens in %s are damaged (%s): they are prepared again", folder, error)
        return None


def _mapped(path: Path, dtype: Any, count: int) -> Any:
    """A read-only memory map of the file's `count` numbers. Raises ValueError if the file has another size."""
    expected, size = count * np.dtype(dtype).itemsize, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path.name} has {size:,} bytes and not {expected:,}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _sync(folder: Path) -> None:
    """Makes the names in the folder durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(stores: Path) -> None:
    """Removes what killed processes left behind: no tokens were written to it for a day."""
    for folder in stores.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - (folder / "tokens.bin").stat().st_mtime > ABANDONED_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
