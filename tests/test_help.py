"""Help: a summary and examples that can be copied for every command, and what a shell completes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from test_house import HEAVY

from hfpretrain.cli import app
from hfpretrain.shipped import SCRIPTS, shipped_recipes

_GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = _GROUP.commands
AS_INSTALLED = "import sys; sys.argv[0] = 'hfpretrain'; from hfpretrain.cli import main; main()"
WIDTH = 78
"""What a terminal of 80 columns shows of a line of help."""


def examples(name: str) -> list[str]:
    lines = [line.strip() for line in (COMMANDS[name].help or "").splitlines()]
    return [line for line in lines if line.startswith("hfpretrain ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_shows_how(name: str) -> None:
    said = COMMANDS[name].help
    summary, _, rest = said.partition("\n\n")
    assert summary.strip().endswith(".")
    assert "Examples:" in rest
    assert len(examples(name)) >= 2 or name == "schema"
    for line in said.splitlines():
        if line.strip().startswith("hfpretrain "):
            assert len(line.strip()) + 2 <= WIDTH - 1, "it would be broken where it is shown, and could not be copied"


@pytest.mark.parametrize("example", [example for name in COMMANDS for example in examples(name)])
def test_an_example_is_one_that_the_command_takes(example: str) -> None:
    _, name, *arguments = shlex.split(example.partition(" > ")[0])
    COMMANDS[name].make_context(name, arguments)


def test_examples_are_shown_as_they_are() -> None:
    command = [sys.executable, "-m", "hfpretrain"]
    for name in ("train", "fill"):
        shown = subprocess.run(
            [*command, name, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "80", "TERM": "dumb"},
        ).stdout
        for example in examples(name):
            assert f" {example} " in shown


def complete(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """What a shell is told where the line ends, without a heavy import; the last word is the one that is typed."""
    words = line.split(" ")
    environment = {"_HFPRETRAIN_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    environment |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", AS_INSTALLED],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    # Typer itself reads what was typed by pydantic.
    assert not (HEAVY - {"pydantic"}) & {line.rpartition("|")[2].strip() for line in imports}
    assert imports == done.stderr.splitlines()
    return done.stdout.splitlines()


def test_commands_recipes_runs_and_keys_are_completed(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "recipes").mkdir()
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / "recipes" / name).touch()
    for name in ("everyday", "extra", "broken"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        if name != "broken":
            (tmp_path / "runs" / name / "recipe.yaml").touch()
    assert complete("hfpretrain tra", tmp_path) == ["train"]
    assert complete("hfpretrain train --resu", tmp_path) == ["--resume"]
    assert complete("hfpretrain train ", tmp_path) == ["my.yaml", "recipes/", "runs/"]
    assert complete("hfpretrain train ~nobody-of-that-name/", tmp_path) == [""]
    assert complete("hfpretrain check rec", tmp_path) == ["recipes/one.yaml", "recipes/two.yaml"]
    assert complete("hfpretrain verify runs/e", tmp_path) == ["runs/everyday", "runs/extra"]
    assert complete("hfpretrain fill text --model ", tmp_path)[:3] == ["runs/broken/", "runs/everyday", "runs/extra"]
    assert complete("hfpretrain recipes quickstart-m", tmp_path) == ["quickstart-mlm"]
    assert complete("hfpretrain train my.yaml train.ba", tmp_path) == ["train.batch_size=", "train.batch_size=64"]
    assert complete("hfpretrain train my.yaml optimizer.n", tmp_path)[1:] == [
        "optimizer.name=adamw",
        "optimizer.name=muon",
    ]
    described = " ".join(complete("hfpretrain recipes quickstart-m", tmp_path, "fish"))
    assert described.startswith("quickstart-mlm\tA small ModernBERT")
    assert set(complete("hfpretrain recipes ", tmp_path)) == {*shipped_recipes(), *SCRIPTS}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_that_a_shell_needs_is_shown(shell: str) -> None:
    """Of the shell that is named: which one runs the tests is not asked."""
    done = subprocess.run(
        [sys.executable, "-c", AS_INSTALLED, "--show-completion", shell],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_HFPRETRAIN_COMPLETE=complete_{shell}" in done.stdout
