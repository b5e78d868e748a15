"""What all tests share: no network, a token cache of their own, one thread, and the command line as users run it."""

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import warm

ROOT = Path(__file__).parent.parent
NO_NETWORK = Path(__file__).parent / "no_network"

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PYTHONPATH"] = os.pathsep.join([str(NO_NETWORK), str(ROOT), os.environ.get("PYTHONPATH", "")])
for name in ("HF_TOKEN", "HFPRETRAIN_MODEL", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)

_spec = importlib.util.spec_from_file_location("no_network", NO_NETWORK / "sitecustomize.py")
assert _spec and _spec.loader
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["HFPRETRAIN_CACHE"] = str(folder / "hfpretrain")
    os.environ["HF_HOME"] = str(folder / "huggingface")
    yield
    warm.close()


@pytest.fixture
def hfpretrain(tmp_path: Path) -> Command:
    """Runs the command line in `tmp_path`: hfpretrain("train", "recipe.yaml")."""

    def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return warm.run(["-m", "hfpretrain", *arguments], cwd=tmp_path, environment=environment)

    return run


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes text to recipe.yaml in the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> str:
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        return "recipe.yaml"

    return to_file
