"""Token stores, of text that becomes tokens and of files that hold tokens already.

Of the latter only where documents begin and end is kept in the cache, once every id was seen to be one of the
tokenizer's.
"""

import hashlib
import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from hfpretrain.data.finding import require_unchanged
from hfpretrain.data.sources import OpenSource
from hfpretrain.data.token_files import JoinedTokens, TokenFile
from hfpretrain.data.tokens import FORMAT, TokenStore, load_store, prepare, write_store_manifest
from hfpretrain.errors import DataError
from hfpretrain.files import cache_folder

log = logging.getLogger(__name__)

CHUNK = 4_000_000
"""Tokens that are looked at at once."""
SAMPLES, SAMPLE_TOKENS = 64, 2000
"""Pieces of so many tokens, from all over the files, are decoded to say how much text a token stands for."""


def store_of(
    source: OpenSource, tokenizer: PreTrainedTokenizerBase, *, end_id: int | None, cache: Path | None = None
) -> TokenStore:
    """The tokens of a source, from the cache or prepared now. Raises what `prepare` does."""
    if source.token_files is None:
        return prepare(source, tokenizer, end_id=end_id, cache=cache)
    return _indexed(source, tokenizer, end_id, cache)


def _indexed(
    source: OpenSource, tokenizer: PreTrainedTokenizerBase, end_id: int | None, cache: Path | None
) -> TokenStore:
    """The files as a token store: their documents end at `end_id`, or where an index says so, and with each file.

    Raises DataError for an id that the tokenizer does not have.
    """
    files = source.token_files or ()
    size = max(tokenizer.get_vocab().values()) + 1
    identity = {"format": FORMAT, "source": source.fingerprint, "vocabulary": size, "end_id": end_id}
    identity["tokenizer"] = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = (cache or cache_folder()) / "tokens" / fingerprint
    tokens: Any = files[0].tokens if len(files) == 1 else JoinedTokens([file.tokens for file in files])
    if (known := load_store(folder, tokens=tokens)) is not None:
        counts = f"{len(tokens):,}", f"{len(known.keys):,}"
        log.info("%s: %s tokens in %s documents, looked at before", source.key, *counts)
        return known
    offsets, keys = [np.zeros(1, dtype=np.int64)], []
    before = 0
    for file in files:
        ends = _ends(file, size, end_id, source.key)
        starts = np.concatenate([[0], ends[:-1]])
        digests = b"".join(
            hashlib.blake2b(np.ascontiguousarray(file.tokens[start:end]).tobytes(), digest_size=8).digest()
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        )
        keys.append(np.frombuffer(digests, dtype="<u8"))
        offsets.append(before + ends)
        before += len(file.tokens)
        require_unchanged(file.path, file.status)
    if end_id is None and not any(file.ends is not None for file in files):
        log.warning("%s: no token ends a document, so that each file is one", source.key)
    bytes_each, words_each = _text_of(tokens, tokenizer, end_id)
    all_offsets, all_keys = np.concatenate(offsets), np.concatenate(keys).astype(np.uint64)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "documents": len(all_keys),
        "tokens": len(tokens),
        "text_bytes": round(bytes_each * len(tokens)),
        "words": round(words_each * len(tokens)),
        "skipped": 0,
        "blank": 0,
        "left_out": {},
        "prompts": False,
    }
    beside = folder.with_name(f".{fingerprint[:16]}-{uuid.uuid4().hex}")
    try:
        beside.mkdir(parents=True)
        all_offsets.tofile(beside / "offsets.bin")
        all_keys.tofile(beside / "keys.bin")
        write_store_manifest(beside, manifest)
        beside.rename(folder)
    except OSError as error:  # another process may have been first; else it is looked for again the next time
        log.debug("the index of %s is not kept: %s", source.key, error)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info(
        "%s: %s tokens in %s documents (about %.2f bytes each)",
        source.key,
        f"{len(tokens):,}",
        f"{manifest['documents']:,}",
        bytes_each,
    )
    return TokenStore(tokens, all_offsets, all_keys, None, manifest["text_bytes"], fingerprint, manifest)


def _ends(file: TokenFile, size: int, end_id: int | None, key: str) -> npt.NDArray[np.int64]:
    """Where the documents of a file end, the file's own end included. Raises DataError for an id beyond `size`."""
    found = []
    for start in range(0, len(file.tokens), CHUNK):
        chunk = np.asarray(file.tokens[start : start + CHUNK])
        wrong = np.flatnonzero((chunk >= size) | (chunk < 0))
        if len(wrong):
            raise DataError(
                f"{file.path}: token {start + int(wrong[0])} is {int(chunk[wrong[0]])}, "
                f"and the tokenizer has ids up to {size - 1}",
                hint=f"name the tokenizer that made the file (tokenizer.from), or set {key}.dtype",
            )
        if file.ends is None and end_id is not None:
            found.append(start + 1 + np.flatnonzero(chunk == end_id))
    if file.ends is not None:
        return file.ends[np.diff(file.ends, prepend=0) > 0]
    ends = np.concatenate([*found, [len(file.tokens)]]).astype(np.int64)
    return ends if len(ends) < 2 or ends[-2] < ends[-1] else ends[:-1]


def _text_of(tokens: Any, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> tuple[float, float]:
    """About how many UTF-8 bytes, and words between spaces, a token stands for."""
    starts = np.unique(np.linspace(0, max(0, len(tokens) - SAMPLE_TOKENS), SAMPLES).astype(np.int64)).tolist()
    samples = [np.asarray(tokens[start : start + SAMPLE_TOKENS]) for start in starts]
    pieces = [piece for sample in samples for piece in np.split(sample, np.flatnonzero(sample == end_id) + 1)]
    texts = [tokenizer.decode(piece.tolist(), skip_special_tokens=True) for piece in pieces if len(piece)]
    count = sum(min(SAMPLE_TOKENS, len(tokens) - start) for start in starts)
    return sum(len(text.encode()) for text in texts) / count, sum(len(text.split()) for text in texts) / count
