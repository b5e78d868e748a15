"""What can go wrong, as sentences: one exception tree, each with its exit status.

Every message says what is wrong and where; the hint says what to do next. The command line prints the
two and nothing else; from Python they are ordinary exceptions.
"""

import difflib
from collections.abc import Iterable


class HFPretrainError(Exception):
    """Something failed. `hint` is the next thing to do, if there is one."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UserError(HFPretrainError):
    """What the user gave is wrong: a recipe, a file, a model, a text. Exit status 2."""

    exit_status = 2


class RecipeError(UserError):
    """The recipe, or an override of it, is wrong. The message may hold several lines, one per error."""


class DataError(UserError):
    """A data source is missing, unreadable, empty or too small."""


class ModelError(UserError):
    """A model or tokenizer cannot be built, found, or used in the way asked for."""


class RunError(UserError):
    """A run directory is not what the command needs."""


class HubError(HFPretrainError):
    """The Hub refused something, failed, or did not answer."""


class CheckpointError(HFPretrainError):
    """A checkpoint cannot be written or read."""


class StorageError(HFPretrainError):
    """What is prepared cannot be kept: a disk is full, or fails."""


class TrainingError(HFPretrainError):
    """Training cannot go on."""


class Stopped(HFPretrainError):
    """A signal asked the run to stop; it was saved first. Exit status 128 + signal."""

    def __init__(self, message: str, *, signal: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = 128 + signal


class LostProcess(HFPretrainError):
    """Another process of the run has ended, or hangs, so that this one cannot go on.

    Exit status: that of the other one, where it has said why it ended. `unexplained` is true where it has not.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, exit_status: int = 1, unexplained: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = exit_status
        self.unexplained = unexplained


def nearest(word: str, known: Iterable[str], *, count: int = 1) -> str | None:
    """The known words most like `word`, joined by commas, or None if nothing is near."""
    found = difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
    return ", ".join(found) or None
