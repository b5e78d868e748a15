"""Documents become tokens once: a cached store of all token ids, memory-mapped.

The store is flat files beside a manifest. It is made part by part (parts.py), so that memory does not grow with the
corpus and an interrupted preparation goes on where it was, and appears under its fingerprint (content, tokenizer,
settings) by one rename: whole, or not at all.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.encoding import Encoder
from hfpretrain.data.filters import in_words
from hfpretrain.data.parts import Building, DamagedPart, Shard
from hfpretrain.data.sources import OpenSource
from hfpretrain.errors import DataError, StorageError
from hfpretrain.files import (
    bytes_below,
    cache_folder,
    digest,
    flush,
    flush_all,
    free_bytes,
    lack_of_room,
    size_in_words,
)

log = logging.getLogger(__name__)

FORMAT = 5
"""Of the store's files and of how text becomes tokens; a store of another one is not used."""
CHECKED_BYTES = 2_000_000_000
"""Files of a store up to this size are compared with their SHA-256 whenever they are opened: a second or two."""
TEXT_BYTES_PER_BYTE = 2
"""A token spells about four bytes of text, and two of them hold it."""


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
    text_lengths: npt.NDArray[np.int64] | None = None
    """[documents]: UTF-8 bytes of each text; None where they are not known."""


@dataclass(frozen=True)
class Place:
    """Where the tokens of a source are, or will be: in `folder`, and until they are whole in `building`."""

    stores: Path
    fingerprint: str
    source: OpenSource
    encoder: Encoder

    @staticmethod
    def of(source: OpenSource, tokenizer: PreTrainedTokenizerBase, end_id: int | None, cache: Path | None) -> "Place":
        encoder = Encoder(tokenizer, end_id)
        identity = {"format": FORMAT, "source": source.fingerprint, "tokenizer": encoder.identity, "end_id": end_id}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Place((cache or cache_folder()) / "tokens", fingerprint, source, encoder)

    @property
    def folder(self) -> Path:
        return self.stores / self.fingerprint

    @property
    def building(self) -> Building:
        return Building(self.stores, self.fingerprint)

    def found(self) -> TokenStore | None:
        """The store, if it is there; which is said."""
        store = load_store(self.folder)
        if store is not None:
            self.building.remove_left(joined=True)  # of a kill just after the store was in place
            log.info(
                "%s: using %s tokens of %s documents prepared before%s",
                self.source.key,
                f"{len(store.tokens):,}",
                f"{len(store.keys):,}",
                f" ({store.manifest['skipped']} bad rows were skipped then)" if store.manifest["skipped"] else "",
            )
            if told := in_words(store.manifest["left_out"]):
                log.info("%s: left out then: %s", self.source.key, told)
        return store

    @contextlib.contextmanager
    def held(self, shard: Shard | None = None) -> Iterator[Building]:
        """Holds the place where parts are made. What goes wrong with writing there becomes an error in a sentence."""
        said = f"the token cache {self.stores} cannot be written"
        hint = "make room there, or set HFPRETRAIN_CACHE to another folder"
        needed = self.source.size // TEXT_BYTES_PER_BYTE // (shard.of if shard else 1)
        building = self.building
        try:
            self.stores.mkdir(parents=True, exist_ok=True)
            Building.remove_abandoned(self.stores)
        except OSError as error:
            raise DataError(f"{said}: {error.strerror or error}", hint=hint) from error
        # Half of what is written are the parts, some of which may be there.
        if lacking := lack_of_room(self.stores, max(0, needed - bytes_below(building.folder) // 2)):
            raise StorageError(f"{said}: for {self.source.key} {lacking}", hint=hint)

        def waiting() -> None:
            log.info("%s: another process is preparing the same tokens: waiting for it", self.source.key)

        try:
            with building.held(alone=shard is None, waiting=waiting):
                yield building
        except OSError as error:
            free = free_bytes(self.stores)
            room = f"{self.source.key} needs about {size_in_words(needed)}, and {size_in_words(free)} are free there"
            raise StorageError(f"{said} ({error.strerror or error}): {room}", hint=hint) from error


def prepare(
    source: OpenSource, tokenizer: PreTrainedTokenizerBase, *, end_id: int | None, cache: Path | None = None
) -> TokenStore:
    """The tokens of a source: from the cache, or tokenised now, as far as they are not yet, and kept there.

    Every document is `tokenizer(text)`, special tokens included, then `end_id` if it does not end with it already. What
    spells a special token in a text ("</s>") is ordinary text. A text of more than 131,072 characters is tokenised in
    pieces, cut where that was seen to change no token. Raises DataError if the source cannot be read or has no text,
    or if the cache cannot be made, StorageError if it cannot be written.
    """
    place = Place.of(source, tokenizer, end_id, cache)
    if (store := place.found()) is not None:
        return store
    with place.held() as building:
        if (store := place.found()) is not None:  # another process was at work
            shutil.rmtree(building.folder, ignore_errors=True)
            return store
        started = time.perf_counter()
        while True:
            made = building.make(source, place.encoder, None)
            with contextlib.suppress(DamagedPart):
                manifest = _join(building, place)
                break
        store = _commit(building.folder / "store", place.folder)
        shutil.rmtree(building.folder, ignore_errors=True)
    seconds = time.perf_counter() - started
    text_bytes = manifest["text_bytes"]
    log.info(
        "%s: documents: %s, tokens: %s (%.2f bytes each), %s",
        source.key,
        f"{manifest['documents']:,}",
        f"{manifest['tokens']:,}",
        text_bytes / manifest["tokens"],
        f"tokenised at {text_bytes / 1e6 / seconds:.1f} MB/s" if made else "joined from parts prepared before",
    )
    return store


def prepare_shard(
    source: OpenSource,
    tokenizer: PreTrainedTokenizerBase,
    shard: Shard,
    *,
    end_id: int | None,
    cache: Path | None = None,
) -> TokenStore | None:
    """Makes one of several shares of a source's tokens, for a later `prepare` to join; the store if it is there whole.

    Whoever makes a share reads the whole source, and tokenises its share of it. Errors are those of `prepare`.
    """
    place = Place.of(source, tokenizer, end_id, cache)
    if (store := place.found()) is not None:
        return store
    with place.held(shard) as building:
        if (store := place.found()) is not None:  # it was joined meanwhile
            return store
        made = building.make(source, place.encoder, shard)
        log.info("%s: shard %s is prepared; parts made now: %d", source.key, shard, made)
    return None


def end_of_document(tokenizer: PreTrainedTokenizerBase, objective: Literal["clm", "mlm"]) -> int | None:
    """The id that ends each document: eos for clm and sep for mlm, or the other one; None if there is neither."""
    ids: tuple[int | None, int | None] = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    first, second = ids if objective == "clm" else ids[::-1]
    return second if first is None else first


def _join(building: Building, place: Place) -> dict[str, Any]:
    """Writes the store's files of the parts, the manifest last. Raises DamagedPart."""
    source, end = place.source, building.end
    assert end is not None
    folder = building.folder / "store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    documents = total = text_bytes = words = 0
    any_prompts = False
    with contextlib.ExitStack() as stack:
        names = ("tokens", "offsets", "keys", "text_lengths", "prompt_lengths")
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}
        files["offsets"].write(np.zeros(1, dtype=np.int64).tobytes())
        for part in building.parts():
            offsets = total + np.cumsum(part.lengths)
            arrays: list[npt.NDArray[Any]] = [part.tokens, offsets, part.keys, part.text_lengths, part.prompt_lengths]
            for name, values in zip(names, arrays, strict=True):
                values.tofile(files[name])
            total += len(part.tokens)
            documents += len(part.keys)
            any_prompts |= bool(part.prompt_lengths.any())
            text_bytes, words = text_bytes + int(part.counts[0]), words + int(part.counts[1])
    if not total:
        raise DataError(f"{source.key} has no tokens", hint="give a source with at least one document")
    if not any_prompts:
        (folder / "prompt_lengths.bin").unlink()
    manifest = {
        "format": FORMAT,
        "fingerprint": place.fingerprint,
        "bytes_per_token_id": array(place.encoder.typecode).itemsize,
        "prompts": any_prompts,
        "documents": documents,
        "tokens": total,
        "text_bytes": text_bytes,
        "words": words,
        "skipped": end["skipped"],
        "blank": end["blank"],
        "left_out": end["left_out"],
    }
    write_store_manifest(folder, manifest)
    return manifest


def write_store_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Completes the files of a store with their SHA-256 and what they hold, flushed to the disk."""
    manifest["sha256"] = {path.name: digest(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_bytes(json.dumps(manifest, indent=1).encode())
    flush_all(folder)


def _commit(building: Path, folder: Path) -> TokenStore:
    """Renames the finished store to its place, unless another process was first: then its store is used."""
    while True:
        try:
            building.rename(folder)
            flush(folder.parent)
        except OSError:
            if not folder.is_dir():
                raise
        store = load_store(folder, quiet=True)
        if store is not None:
            return store
        aside = building.with_name(f"{building.name}-damaged")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it just now
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def load_store(folder: Path, *, tokens: Any = None, quiet: bool = False) -> TokenStore | None:
    """The store in `folder`; None if there is none, or (said, unless `quiet`) if it is damaged.

    Its files are read through and compared with their SHA-256, but for one larger than CHECKED_BYTES, of which only the
    size is. `tokens` are those of an index whose tokens lie elsewhere.
    """
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        documents, total = manifest["documents"], manifest["tokens"]
        for name, known in manifest["sha256"].items():
            if (folder / name).stat().st_size <= CHECKED_BYTES and digest(folder / name) != known:
                raise ValueError(f"{name} is not what was written")
        if tokens is None:
            token_type = {2: np.uint16, 4: np.uint32}[manifest["bytes_per_token_id"]]
            tokens = _mapped(folder / "tokens.bin", token_type, total)
        prompts = _mapped(folder / "prompt_lengths.bin", np.uint32, documents) if manifest["prompts"] else None
        counted = "text_lengths.bin" in manifest["sha256"]  # not of tokens that another tool made
        texts = _mapped(folder / "text_lengths.bin", np.int64, documents) if counted else None
        store = TokenStore(
            tokens=tokens,
            offsets=_mapped(folder / "offsets.bin", np.int64, documents + 1),
            keys=_mapped(folder / "keys.bin", np.uint64, documents),
            prompt_lengths=prompts,
            text_bytes=manifest["text_bytes"],
            fingerprint=manifest["fingerprint"],
            manifest=manifest,
            text_lengths=texts,
        )
        whole = len(tokens) == total == store.offsets[-1]
        if manifest["format"] != FORMAT or store.fingerprint != folder.name or not whole:
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
