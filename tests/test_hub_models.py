"""Models of the Hub by name and revision: from the cache when offline, safetensors only, no code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from loopback_hub import Fault, File, LoopbackHub, Repository
from tiny import tiny_recipe, tiny_run, weights

from hfpretrain.recipe import dump
from hfpretrain.run import Run


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("masked"), "mlm", "train.duration=6", "checkpoints.every=3")


@pytest.fixture
def hub(masked: Run) -> Iterator[LoopbackHub]:
    """With org/bert, whose branch `early` is a checkpoint."""
    with LoopbackHub() as server:
        repository = server.repositories["org/bert"] = Repository(private=True)
        repository.commit("main", model_files(masked.path), "the model")
        repository.commit("early", model_files(masked.checkpoints / "step-00000003"), "a checkpoint")
        yield server


def model_files(folder: Path) -> dict[str, File]:
    return {
        path.name: File(path.read_bytes(), large=path.suffix == ".safetensors")
        for path in folder.iterdir()
        if path.suffix in (".json", ".safetensors")
    }


def test_every_command_takes_a_name_and_a_revision(
    tmp_path: Path, masked: Run, hub: LoopbackHub, hfpretrain: Command
) -> None:
    environment = hub.environment(HF_HOME=str(tmp_path / "cache"))
    filled = {}
    for name in ("org/bert", "org/bert@early"):
        done = hfpretrain("fill", "the quick [MASK] fox", "--model", name, **environment)
        assert done.returncode == 0, done.stderr
        assert f"downloading the model {name}" in done.stderr
        filled[name] = done.stdout
    assert filled["org/bert"] == hfpretrain("fill", "the quick [MASK] fox", "--model", masked.path).stdout
    assert filled["org/bert@early"] != filled["org/bert"]
    requests = len(hub.requests)
    again = hfpretrain("fill", "the quick [MASK] fox", "--model", "org/bert", **environment)
    assert again.stdout == filled["org/bert"]
    assert "downloading" not in again.stderr
    assert not [request for request in hub.requests[requests:] if "/resolve/" in request.path], "the cache has it"

    offline = environment | {"HF_HUB_OFFLINE": "1"}
    for name, text in filled.items():
        assert hfpretrain("fill", "the quick [MASK] fox", "--model", name, **offline).stdout == text

    evaluated = hfpretrain("evaluate", "org/bert@early", "--data", write_text(tmp_path), **environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "perplexity" in evaluated.stdout

    recipe = tmp_path / "recipe.yaml"
    settings = ["model={from: org/bert@early}", "tokenizer={from: org/bert}", "train.duration=1", "optimizer.lr=1e-12"]
    recipe.write_text(dump(tiny_recipe(tmp_path, "mlm", *settings)))
    trained = hfpretrain("train", recipe, **environment)
    assert trained.returncode == 0, trained.stderr
    run = Run(tmp_path / "runs" / "tiny")
    start = weights(masked.checkpoints / "step-00000003")
    assert all((tensor - start[name]).abs().max() < 1e-9 for name, tensor in weights(run).items())
    card = run.card_file.read_text()
    assert "base_model: org/bert\n" in card
    assert "  from: org/bert@early\n" in card, "the recipe goes on from these very weights"
    assert (
        str(tmp_path) not in (run.path / "config.json").read_text() + (run.path / "tokenizer_config.json").read_text()
    )


def write_text(folder: Path) -> Path:
    path = folder / "new.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 5)
    return path


def test_what_the_hub_does_not_have(tmp_path: Path, hub: LoopbackHub, hfpretrain: Command) -> None:
    environment = hub.environment(HF_HOME=str(tmp_path / "cache"))
    for name, said in {
        "org/bert@nowhere": "org/bert has no revision nowhere",
        "org/nothing": "neither a folder here nor on the Hub",
    }.items():
        done = hfpretrain("fill", "a [MASK]", "--model", name, **environment)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    hub.fault = lambda number, request: Fault(503)
    done = hfpretrain("fill", "a [MASK]", "--model", "org/bert", **environment)
    assert done.returncode == 1
    assert "status 503" in done.stderr


def test_no_pickle_and_no_code_is_taken(tmp_path: Path, masked: Run, hub: LoopbackHub, hfpretrain: Command) -> None:
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n".encode()
    files = model_files(masked.path)
    pickled = {name: file for name, file in files.items() if name != "model.safetensors"}
    hub.repositories["org/pickled"] = Repository(private=False)
    hub.repositories["org/pickled"].commit("main", pickled | {"pytorch_model.bin": File(b"cposix\n", large=True)}, "")
    config = b'{"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForMaskedLM": "code.M"}}'
    coded = files | {"config.json": File(config, large=False), "code.py": File(code, large=False)}
    hub.repositories["org/coded"] = Repository(private=False)
    hub.repositories["org/coded"].commit("main", coded, "")
    environment = hub.environment(HF_HOME=str(tmp_path / "cache"))
    for name, said in {"org/pickled": "no model.safetensors", "org/coded": "code"}.items():
        done = hfpretrain("fill", "a [MASK]", "--model", name, **environment)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not [request for request in hub.requests if request.path.endswith((".bin", ".py"))]
    assert not marker.exists()
