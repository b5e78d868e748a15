"""Pages as files, which are there whole or not at all, and never in the place of something else."""

import os
from collections.abc import Sequence
from pathlib import Path

from hfpretrain.errors import UserError
from hfpretrain.files import write_whole
from hfpretrain.report.comparison import comparison
from hfpretrain.report.curves import Curves
from hfpretrain.report.html import GENERATOR
from hfpretrain.report.page import page
from hfpretrain.report.told import Told
from hfpretrain.run import Run


def write_page(run: Run, place: Path | None = None, *, curves: Curves | None = None) -> Path:
    """Writes the page of a run into its directory, or to `place`, and returns where it is.

    `curves` are those that were read already. Raises RunError where there is no run, UserError where it cannot be
    written or where something else has that name.
    """
    return write_text(place or run.page_file, page(Told.of(run, curves=curves)))


def write_comparison(runs: Sequence[Run], place: Path) -> Path:
    """Writes the page of several runs to `place`; the errors are those of `write_page`."""
    return write_text(place, comparison([Told.of(run) for run in runs]))


def write_text(place: Path, text: str) -> Path:
    """Writes a page to `place` and returns that; UserError where it cannot be, or where something else is."""
    if place.is_dir():
        raise UserError(f"{place} is a folder", hint="give the name of a file, e.g. --output report.html")
    if os.path.lexists(place) and not is_page(place):
        raise UserError(f"{place} is there already, and no report", hint="choose another name: --output FILE")
    try:
        write_whole(place, text)
    except OSError as error:
        hint = "choose another place: --output FILE"
        raise UserError(f"{place} cannot be written ({error.strerror or error})", hint=hint) from error
    return place


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return GENERATOR in file.read(1000)
    except OSError:
        return False
