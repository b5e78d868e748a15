"""`hfpretrain init`: a commented recipe from four answers: objective, data, size and name.

What the answers leave open is chosen by the amount of data and the size of the model, and says in a comment why, so
that the recipe is a place to begin at, and to change.
"""

import glob
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfpretrain.amounts import count, parameters_of
from hfpretrain.data.columns import guess_columns
from hfpretrain.data.finding import find_files
from hfpretrain.data.formats import COMPRESSED, KNOWN, TABLES, kind_of
from hfpretrain.errors import DataError, RecipeError, UserError
from hfpretrain.files import size_in_words
from hfpretrain.recipe import load, repo_id_problem

log = logging.getLogger(__name__)

Objective = Literal["clm", "mlm"]

ARCHITECTURES: dict[Objective, str] = {"clm": "llama", "mlm": "modernbert"}
BUILTIN = "builtin everyday"
SMALLEST, LARGEST = 100_000, 20_000_000_000
"""Parameters of a model that `init` writes a recipe for."""
BYTES_PER_TOKEN = 4
"""Of English text and a vocabulary of usual size, about."""
UNPACKED = 3
"""So many times its size is the text of a compressed file, about."""
PASSES: dict[Objective, int] = {"clm": 4, "mlm": 10}
"""Epochs that are worth it: next words are nearly as good as new for four (Muennighoff et al. 2023); masks differ."""
FEWEST_STEPS = 200
COMMENTS_AT = 36
"""The column of comments behind settings."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Found:
    """The data that an answer means."""

    lines: tuple[str, ...]
    """The source as YAML, a line for each key."""
    size: int | None
    """Bytes of text, about; None where that is not known."""
    told: str
    """What it is, in words."""
    stem: str
    """What a run on it might be called."""


def parse_objective(text: str) -> Objective:
    """The objective that an answer means. Raises UserError."""
    match text.strip().lower():
        case "clm":
            return "clm"
        case "mlm":
            return "mlm"
    raise UserError(f"objective: {text!r} is none", hint="answer clm (next word) or mlm (masked words)")


def parse_size(text: str) -> str:
    """The number of parameters as the recipe has it. Raises UserError."""
    try:
        parameters = parameters_of(text)
    except RecipeError as error:
        raise UserError(f"size: {error.message}") from error
    if not SMALLEST <= parameters <= LARGEST:
        raise UserError(f"size: {text} is not between {count(SMALLEST)} and {count(LARGEST)} parameters")
    return text.strip()


def parse_name(text: str) -> Path:
    """The file of a recipe called so. Raises UserError for what cannot be a name, or is there already."""
    name = text.strip().removesuffix(".yaml")
    if not _NAME.fullmatch(name):
        raise UserError(f"name: {text!r} is none", hint="take letters, digits, dashes, dots and underscores")
    file = Path(f"{name}.yaml")
    if file.exists() or file.is_symlink():
        raise UserError(f"name: {file} is there already", hint="take another name, or remove it")
    return file


def find_data(text: str) -> Found:
    """What an answer means: `builtin everyday`, local files, a folder or a glob, else a data set on the Hub.

    Raises DataError where there is nothing of that name, or nothing in it can be read.
    """
    text = text.strip()
    if text.lower() in (BUILTIN, "everyday"):
        return Found(("- builtin: everyday",), 3_000_000, "3 MB of everyday English, made on the spot", "everyday")
    path = Path(text).expanduser()
    local = path.exists() or glob.has_magic(text)
    repo_id, _, revision = text.partition("@")
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        raise DataError(f"data: the name {text!r} is not UTF-8, as a recipe is", hint="rename it, or give its folder")
    named_as_a_file = kind_of(path) is not None or path.suffix in COMPRESSED or text.startswith(".")
    if not local and re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) and not named_as_a_file:
        if problem := repo_id_problem(repo_id):
            raise DataError(f"data: {text} {problem}")
        on_hub = (
            f"- hub: {_quoted(text)}",
            "  # subset: NAME ## where the data set has several",
            "  # text_column: text ## the column that holds the text",
            "  # streaming: true ## read while training; then train.duration is in steps, tokens or minutes",
        )
        told = f"the data set {repo_id} on the Hub{f' at {revision}' if revision else ''}"
        return Found(on_hub, None, told, repo_id.partition("/")[2].strip("-._"))
    found = find_files([text], "data", kind_of=kind_of, known=KNOWN)
    size = sum(size * (UNPACKED if file.suffix in COMPRESSED else 1) for file, (size, _) in found.items())
    tables = [file for file in found if kind_of(file) in TABLES]
    lines = [f"- files: {_quoted(text)}"]
    columns = guess_columns(tables[0]) if tables else ()
    if len(columns) == 2:
        lines += [f"  prompt_column: {_quoted(columns[0])}", f"  completion_column: {_quoted(columns[1])}"]
    elif columns and columns != ("text",):
        lines += [f"  text_column: {_quoted(columns[0])}"]
    if len(tables) < len(found):
        lines += ["  # documents: paragraph ## else a text file is one document; or: line"]
    files = f"{len(found)} files" if len(found) > 1 else str(next(iter(found)))
    column = f", {' and '.join(columns)}" if columns else ""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.name.split(".")[0]).strip("-").lower() or "my"
    files = "".join(each if each.isprintable() else "?" for each in " ".join(files.split()))  # for a comment
    told = f"{files}, {size_in_words(size)}{column}"
    return Found(tuple(lines), size, told, stem)


def suggested_size(found: Found) -> str:
    """A model that the data is enough for, and that a small machine can train."""
    tokens = (found.size or 10**10) / BYTES_PER_TOKEN
    return next(
        (size for size, most in (("1M", 5e6), ("5M", 5e7), ("15M", 3e8), ("60M", 1e9)) if tokens < most), "124M"
    )


def suggested_name(objective: Objective, found: Found, size: str) -> str:
    """A name of which there is no file yet."""
    name = f"{found.stem[:60]}-{objective}-{size.lower()}"
    return next(each for each in (name, *(f"{name}-{number}" for number in range(2, 10**6))) if not _taken(each))


def _taken(name: str) -> bool:
    return Path(f"{name}.yaml").exists()


def write_recipe(objective: Objective, found: Found, size: str, file: Path) -> None:
    """Writes the recipe, and reads it back as every command would. Raises UserError where the file is there already."""
    text = recipe_text(objective, found, size)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UserError(f"name: {file} is there already", hint="take another name, or remove it") from error
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    try:
        load(file)
    except UserError:
        file.unlink()
        raise


def recipe_text(objective: Objective, found: Found, size: str) -> str:
    """The recipe as YAML, with what the answers leave open chosen and explained."""
    masked, parameters = objective == "mlm", parameters_of(size)
    tokens = None if found.size is None else max(1, found.size // BYTES_PER_TOKEN)
    block, blocks, duration, why = _plan(objective, parameters, tokens)
    what = "fills in masked words" if masked else "predicts the next word"
    try_it = 'fill "Some words and a [MASK]."' if masked else 'generate "Some words"'
    source = "\n".join(f"    {line}" for line in found.lines)
    text = f"""\
# A model of {size} parameters that {what}, on {found.told}.
# Look at it with `hfpretrain check`, train it with `hfpretrain train`, and try it with: hfpretrain {try_it}
# Whatever is not here has its default; the resolved recipe is written into the run.
objective: {objective} ## clm: next word | mlm: masked words
seed: 0 ## order, masks, first weights and held-out documents follow from it

model:
  architecture: {ARCHITECTURES[objective]} ## or another of transformers' that has the objective
  size: {size} ## all parameters; depth, width and heads are in the family's proportions

tokenizer:
  algorithm: {"wordpiece" if masked else "bpe"} ## trained on the data; or, instead of both, from: org/name
  vocab_size: {_vocabulary(parameters, found.size)} ## more for more data; embeddings take their share of the size

data:
  sources: ## several may be given, with a weight each
{source}
  validation: {_held_out(found.size)} ## held out: whole documents, or the tail of a single one
  block_size: {block} ## tokens that the model sees at once

train:
  duration: {duration} ## {why}
  batch_size: {blocks} ## blocks per step; how many fit at once is found out
  # max_time: 11.5 hours ## stops, saved and ready for --resume, before a job's own limit

optimizer:
  name: adamw ## or muon, which learns more per token and takes longer per step
  lr: auto ## chosen by the compute; `hfpretrain find-lr` measures

schedule: {{name: wsd, warmup: 5%, decay: 20%}}
evaluation: {{every: 10%}}
checkpoints: {{every: 20%, keep: 2}}
# trackers: [tensorboard] ## or wandb, trackio, mlflow, ...
# hub: {{repo_id: my-name/my-model}} ## pushed when it is finished; private unless told otherwise
"""
    return "".join(_aligned(line) for line in text.splitlines(keepends=True))


def _aligned(line: str) -> str:
    """A line whose comment, behind ##, begins in the column of all others."""
    setting, mark, comment = line.partition(" ## ")
    return f"{setting:<{COMMENTS_AT - 2}}  # {comment}" if mark else line


def _plan(objective: Objective, parameters: int, tokens: int | None) -> tuple[int, int, str, str]:
    """Tokens of a block, blocks of a step, the duration, and why it is that."""
    block = next((size for most, size in ((3e6, 128), (5e7, 256), (2e8, 512)) if parameters < most), 1024)
    blocks = next((size for most, size in ((3e6, 32), (5e7, 64), (2e8, 256)) if parameters < most), 512)
    wanted, passes = 20 * parameters, PASSES[objective]
    if tokens is None:
        return block, blocks, "20 tokens per parameter", "as Hoffmann et al. 2022 found best for the compute"
    while block > 16 and tokens < 50 * block:  # a block is to be small beside the data
        block //= 2
    total = min(wanted, passes * tokens)
    while blocks > 8 and total < 5 * FEWEST_STEPS * blocks * block:
        blocks //= 2
    if total < FEWEST_STEPS * blocks * block:
        return block, blocks, f"{FEWEST_STEPS} steps", "little data, seen many times; or e.g.: 10 minutes"
    if wanted <= passes * tokens:
        return block, blocks, "20 tokens per parameter", "as Hoffmann et al. 2022 found best for the compute"
    return (
        block,
        blocks,
        f"{passes} epochs",
        f"the data is less than 20 tokens per parameter; about {count(total)} tokens",
    )


def _vocabulary(parameters: int, size: int | None) -> int:
    """Words that the data can teach, whose embeddings leave most of the model's size to its layers."""
    by_data = ((5e4, 512), (5e5, 1024), (5e6, 2048), (2e7, 4096), (2e8, 8192), (2e9, 16384))
    by_model = ((3e5, 512), (8e5, 1024), (3e6, 2048), (1e7, 4096), (3e7, 8192), (8e7, 16384))
    words = [
        next((words for most, words in steps if amount < most), 32768)
        for steps, amount in ((by_data, size or 10**10), (by_model, parameters))
    ]
    return min(words)


def _held_out(size: int | None) -> str:
    """A share of the data that is enough to tell by, and not too much to look at often."""
    return next((share for most, share in ((1e6, "10%"), (1e7, "5%"), (1e9, "1%")) if size and size < most), "0.5%")


def _quoted(text: str) -> str:
    """A text as YAML, where what cannot be seen has to be escaped, and ## is what `_aligned` looks for."""
    quoted = json.dumps(text, ensure_ascii=False).replace("##", "#\\x23")
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in quoted)
