"""Exporting a model to other runtimes: an ONNX folder, or a GGUF file for llama.cpp.

What is written is loaded again and has to give what the model gives (export_check.py), and then gets its name in one
step: an export is there whole and proven, or not at all.
"""

import importlib.util
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from packaging.version import Version

from hfpretrain import hub
from hfpretrain.errors import HFPretrainError, ModelError, StorageError, UserError
from hfpretrain.export_check import Agreement, Batch, agreement, batches_of, real_texts
from hfpretrain.export_gguf import MAGIC, check_gguf, run_gguf, write_gguf
from hfpretrain.export_onnx import FILES, MODEL, run_onnx, write_onnx
from hfpretrain.files import bytes_below, flush, flush_all, lack_of_room, make_folder, remove
from hfpretrain.inference import CausalLM, MaskedLM, load
from hfpretrain.model_files import is_model_file

log = logging.getLogger(__name__)

Format = Literal["onnx", "gguf"]

PACKAGES: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "gguf": ("gguf",)}
TRANSFORMERS = "5.23"
"""Earlier ones export otherwise, or read GGUF otherwise."""
_NAMES: dict[Format, str] = {"onnx": "ONNX", "gguf": "GGUF"}


@dataclass(frozen=True)
class Exported:
    """What was written, and how near its predictions are to the model's."""

    path: Path
    bytes: int
    agreement: Agreement


def export(model: str | Path, to: Format, output: str | Path | None = None, *, force: bool = False) -> Exported:
    """Exports a run, a checkpoint, any model folder or a Hub id, and checks that both predict the same.

    ONNX is a folder (`model.onnx` with its weights beside it, config and tokenizer), by default `onnx` in the model's
    folder; GGUF is a file, by default `NAME.gguf` there; of a Hub id both are made in the working directory. `force`
    replaces an earlier export, and nothing else. Raises UserError or ModelError for what cannot be exported or is in
    the way, StorageError where there is no room, and HFPretrainError where the two do not agree: then nothing is left.
    """
    name = str(model)
    _check_transformers()
    place = Path(output).expanduser() if output is not None else _default_place(name, to)
    _check_place(place, to, force)
    llm = load(name, device="cpu")
    if to == "gguf":
        check_gguf(llm)
    _check_packages(to)
    _check_room(place.absolute().parent, llm)
    batches = batches_of(llm, real_texts(name))
    beside = place.with_name(f".{place.name}.partial")
    try:
        make_folder(place.absolute().parent)
        remove(beside)  # of an earlier kill
        beside.mkdir()
        log.info("exporting %s to %s", name, place)
        found = _write_and_check(llm, to, beside, place.name, batches)
        written = beside if to == "onnx" else beside / place.name
        size = bytes_below(beside)
        flush_all(beside)
        if to == "onnx":
            remove(place)
        written.replace(place)
        flush(place.absolute().parent)
    except OSError as error:
        raise StorageError(f"{place} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(place, size, found)


def _write_and_check(
    llm: CausalLM | MaskedLM, to: Format, folder: Path, filename: str, batches: list[Batch]
) -> Agreement:
    """Writes the export into `folder` and compares. Raises HFPretrainError where it is not what the model is."""
    try:
        if to == "onnx":
            write_onnx(llm, folder, batches[0])
            outputs = run_onnx(folder, batches)
        else:
            assert isinstance(llm, CausalLM), "check_gguf lets no other through"
            write_gguf(llm, folder / filename)
            outputs = run_gguf(llm, folder / filename, batches)
        found = agreement(llm, batches, outputs)
    except Exception as error:  # the exporters and runtimes raise anything; an OSError without a number is theirs, too
        if isinstance(error, HFPretrainError) or (isinstance(error, OSError) and error.errno):
            raise
        raise ModelError(
            f"{llm.name} ({llm.model.config.model_type}) cannot be exported to {_NAMES[to]} with these versions: "
            f"{type(error).__name__}, {hub.first_line(error)[:300]}",
            hint=f"newer ones may: pip install --upgrade transformers {' '.join(PACKAGES[to])}",
        ) from error
    if not found.holds:
        raise HFPretrainError(
            f"the {_NAMES[to]} model does not predict what {llm.name} predicts, and was removed: log-probabilities "
            f"differ by up to {found.worst:.2g}, and the five likeliest tokens are the same at "
            f"{found.same:,} of {found.positions:,} positions"
        )
    return found


def _check_transformers() -> None:
    if Version(transformers.__version__) < Version(TRANSFORMERS):
        raise UserError(
            f"an export needs transformers {TRANSFORMERS} or newer, and this is {transformers.__version__}",
            hint="pip install --upgrade transformers",
        )


def _check_packages(to: Format) -> None:
    missing = [package for package in PACKAGES[to] if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--to {to} needs {', '.join(missing)}", hint=f"install it: pip install 'hfpretrain[{to}]'")


def _default_place(name: str, to: Format) -> Path:
    folder = Path(name).expanduser()
    own = folder.absolute().name if folder.is_dir() else name.split("@")[0].rsplit("/", 1)[-1]
    parent = folder if folder.is_dir() else Path()
    if to == "gguf":
        return parent / f"{own}.gguf"
    return parent / ("onnx" if folder.is_dir() else f"{own}-onnx")


def _check_place(place: Path, to: Format, force: bool) -> None:
    """Raises UserError where something is in the way, or the place has a name that is none."""
    if not place.name or place.name == "..":
        raise UserError(f"--output: {place} is no name", hint="give the file or folder that is to be made")
    if to == "gguf" and place.suffix != ".gguf":
        raise UserError(f"--output: {place} does not end in .gguf", hint=f"--output {place}.gguf")
    try:
        there = place.is_symlink() or (place.exists() and not (to == "onnx" and _is_empty(place)))
        ours = there and _is_export(place, to)
    except OSError as error:
        raise UserError(f"--output: {place} cannot be used: {error.strerror or error}") from None
    if not there:
        above = next(folder for folder in place.absolute().parents if folder.exists())
        if not above.is_dir():
            raise UserError(f"--output: {above} is no folder", hint="name another place")
        return
    if not ours:
        raise UserError(
            f"{place} exists and is no {_NAMES[to]} export, or not that alone", hint="name another place with --output"
        )
    if not force:
        raise UserError(f"{place} exists", hint="--force replaces it, --output names another place")


def _is_empty(place: Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


def _is_export(place: Path, to: Format) -> bool:
    """Whether a place holds an earlier export and nothing else."""
    if place.is_symlink():
        return False
    if to == "gguf":
        if not place.is_file():
            return False
        with place.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    if not place.is_dir() or not (place / MODEL).is_file():
        return False
    return all(path.is_file() and (path.name in FILES or is_model_file(path.name)) for path in place.iterdir())


def _check_room(folder: Path, llm: Any) -> None:
    size = sum(weights.numel() * weights.element_size() for weights in llm.model.state_dict().values())
    if lack := lack_of_room(folder, size):
        raise StorageError(f"the disk of {folder} has no room for the export: {lack}")
