"""Hostile input: no code runs, nothing is written elsewhere, no secret is shown, and each error is a sentence."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import NO_NETWORK, ROOT, Command
from loopback_hub import TOKEN, Fault, LoopbackHub, Request
from recipe_texts import SMALL, errors_of
from test_recipe_errors import IN_DATA, IN_PLACE, SOURCES
from tiny import tiny_recipe, tiny_run

import hfpretrain
from hfpretrain import recipe as recipes
from hfpretrain import secrets
from hfpretrain.data.sources import open_source
from hfpretrain.errors import CheckpointError, DataError, HFPretrainError, ModelError, RecipeError, RunError, UserError
from hfpretrain.files import _digest_of, damage, remove, write_manifest
from hfpretrain.hub import locate
from hfpretrain.modeling.model import load_model
from hfpretrain.modeling.tokenizer import load_tokenizer
from hfpretrain.publish import check_whole, push
from hfpretrain.run import Run
from hfpretrain.training.lines import Lines, Written

# ---------------------------------------------------------------------------------------------------------- recipes

LONG = "x" * 300_000
HOSTILE: list[tuple[str, bytes | str, str]] = [
    ("utf-16", (SMALL + "name: x").encode("utf-16"), "recipe.yaml:1: not UTF-8"),
    ("latin-1", SMALL.encode() + b"name: caf\xe9", "recipe.yaml:3: not UTF-8 (byte 0xe9)"),
    ("nul", SMALL + "name: a\0b", "recipe.yaml:3:8: not valid YAML: the character '\\x00'"),
    ("escaped nul", SMALL + 'name: "a\\0b"', "recipe.yaml:3: name: holds the control character '\\x00'"),
    ("terminal code", SMALL + 'output_dir: "\\e[2J"', "recipe.yaml:3: output_dir: holds the control character '\\x1b'"),
    ("terminal code in a key", SMALL + '"\\e[2Jx": 1', "recipe.yaml:3: \\x1b[2Jx: holds the control character"),
    ("surrogate", SMALL + 'name: "\\ud800"', "recipe.yaml:3: name: holds half of a surrogate pair"),
    ("surrogate key", SMALL + '"\\udfff": 1', "recipe.yaml:3: \\udfff: holds half of a surrogate pair"),
    ("surrogate inside", SMALL + 'model: {config: {a: ["\\ud800"]}}', "recipe.yaml:3: model.config.a.0: holds half"),
    ("python tag", SMALL + 'name: !!python/object/apply:os.system ["touch ran"]', "recipe.yaml:3: name: the tag"),
    ("python tag on a list", SMALL + "trackers: !!python/tuple [a]", "recipe.yaml:3: trackers: the tag"),
    ("python tag on a mapping", SMALL + "train: !!python/object:os.x {}", "recipe.yaml:3: train: the tag"),
    ("python tag on a key", SMALL + "!!python/name:os.system name: x", "recipe.yaml:3: name: the tag"),
    ("binary tag", SMALL + "name: !!binary aGk=", "recipe.yaml:3: name: the tag"),
    ("own tag", SMALL + "name: !env HF_TOKEN", "recipe.yaml:3: name: the tag '!env'"),
    ("include", SMALL + "name: !include /etc/passwd", "recipe.yaml:3: name: the tag '!include'"),
    ("set", SMALL + "model: !!set {a, b}", "recipe.yaml:3: model: the tag"),
    ("long tag", SMALL + f"name: !{LONG} x", "recipe.yaml:3: name: the tag '!xxx"),
    ("tag directive", "%TAG ! tag:evil,2000:\n---\n" + SMALL + "name: !x y", "recipe.yaml:5: name: the tag"),
    ("no integer", SMALL + "seed: !!int many", "recipe.yaml:3: seed: 'many' is not what its tag says"),
    ("alias", SMALL + "a: &a [1]\nb: *a", "recipe.yaml:3:4: not valid YAML: anchors and aliases have no meaning"),
    (
        "alias bomb",
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)),
        "recipe.yaml:1:4: not valid YAML: anchors and aliases",
    ),
    ("merge bomb", SMALL + "<<: {<<: {<<: {}}}", "recipe.yaml:3: <<: unknown key"),
    ("lists in lists", SMALL + "name: " + "[" * 9000, "recipe.yaml:3:67: not valid YAML: it is nested too deeply"),
    ("dashes", "- " * 100_000, "recipe.yaml:1:123: not valid YAML: it is nested too deeply"),
    ("mappings in mappings", "{a: " * 9000, "recipe.yaml:1:242: not valid YAML: it is nested too deeply"),
    ("question marks", "? " * 100_000, "recipe.yaml:1:123: not valid YAML: it is nested too deeply"),
    ("many digits", SMALL + "seed: " + "9" * 300_000, "recipe.yaml:3: seed: a number of 300000 digits"),
    ("many hexadecimal digits", SMALL + "seed: 0x" + "f" * 300_000, "recipe.yaml:3: seed: a number of 300002 digits"),
    ("large exponent", SMALL + "optimizer: {lr: 1e999999999}", "recipe.yaml:3: optimizer.lr: is too large"),
    ("large amount", SMALL + f"train: {{duration: {'9' * 5000} steps}}", "recipe.yaml:3: train.duration: '999"),
    ("not a number", SMALL + "model: {config: {a: .nan}}", "recipe.yaml:3: model.config: holds nan"),
    ("long key", SMALL + f"? {LONG}\n: 1", "recipe.yaml:3: xxxxx"),
    (
        "long name",
        SMALL + f"name: {LONG}",
        "recipe.yaml:3: name: is 300000 bytes long; a folder",
    ),
    ("long umlauts", SMALL + f"name: {'ä' * 101}", "recipe.yaml:3: name: is 202 bytes long"),
    ("long repository", SMALL + f"hub: {{repo_id: a/{LONG}}}", "recipe.yaml:3: hub.repo_id: 'a/xxx"),
    ("name upwards", SMALL + "name: ../../x", "recipe.yaml:3: name: '../../x' cannot name a folder"),
    ("name is upwards", SMALL + "name: ..", "recipe.yaml:3: name: '..' cannot name a folder"),
    ("absolute name", SMALL + "name: /etc/x", "recipe.yaml:3: name: '/etc/x' cannot name a folder"),
    ("backslashes", SMALL + 'name: "a\\\\b"', "recipe.yaml:3: name: 'a\\\\b' cannot name a folder"),
    (
        "repository upwards",
        SMALL + "hub: {repo_id: ../x}",
        "recipe.yaml:3: hub.repo_id: '../x' cannot",
    ),
    ("repository dots", SMALL + "hub: {repo_id: a/b..c}", "recipe.yaml:3: hub.repo_id: 'a/b..c' cannot name"),
    ("long part", SMALL + f"hub: {{repo_id: a/{'b' * 97}}}", "recipe.yaml:3: hub.repo_id: 'a/bbb"),
    ("repository address", SMALL + "hub: {repo_id: https://h/x}", "recipe.yaml:3: hub.repo_id: 'https://h/x' cannot"),
    ("repository words", SMALL + "hub: {repo_id: a b}", "recipe.yaml:3: hub.repo_id: 'a b' cannot name"),
    ("trust", SMALL + "model: {trust_remote_code: true}", "recipe.yaml:3: model.trust_remote_code: unknown key"),
    ("many errors", SMALL + "".join(f"k{number}: 1\n" for number in range(3000)), "recipe.yaml:3: k0: unknown key"),
    ("list key", SMALL + "[a, b]: 1", "recipe.yaml:3: ?: a key is one word"),
    ("twice", SMALL + "name: a\nname: b", "recipe.yaml:4: name: the key is there twice, first in line 3"),
    ("documents", SMALL + "---\n" * 1000, "recipe.yaml:3:1: not valid YAML: expected a single document"),
    ("another version", "%YAML 9.9\n---\n" + SMALL, "recipe.yaml:1:1: not valid YAML: found incompatible"),
    ("open quote", SMALL + 'name: "' + LONG, "recipe.yaml:3:300008: not valid YAML: while scanning a quoted scalar"),
    ("undefined handle", SMALL + "name: !a!b c", "recipe.yaml:3:7: not valid YAML: while parsing a node"),
    ("over 1 MiB", SMALL + "# " + "x" * 2**20, "recipe.yaml: larger than 1 MiB"),
]


@pytest.mark.parametrize(("content", "says"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_recipes_are_refused_in_short_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    lines = errors_of("recipe.yaml")
    assert lines[0].startswith(says), lines[0][:300]
    assert len(lines) <= 51 and all(len(line) <= 1000 and line.isprintable() for line in lines)
    assert all(line.startswith("recipe.yaml:") for line in lines)
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"], "no code ran"


def test_the_command_line_ends_with_2_and_a_sentence_for_every_bad_recipe(tmp_path: Path) -> None:
    """Every hand-written one, here and in test_recipe_errors, one after another in one real process."""
    texts = [content for _, content, _ in HOSTILE] + [SMALL + change for change, _ in IN_PLACE]
    texts += [f"objective: mlm\ndata:\n  sources: [{{builtin: everyday}}]\n  {change}\n" for change, _ in IN_DATA]
    texts += [f"objective: mlm\ndata:\n  sources:\n    {sources}\n" for sources, _ in SOURCES]
    assert len(texts) >= 60
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    code = f"""
import sys
from hfpretrain.cli import main
for number in range({len(texts)}):
    sys.argv = ["hfpretrain", "train", f"{{number}}.yaml"]
    try:
        main()
    except SystemExit as exit:
        print(number, exit.code, flush=True)
    print(f"that was {{number}}", file=sys.stderr, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:-1] == [f"{number} 2" for number in range(len(texts))]
    assert "Traceback" not in done.stderr
    said = done.stderr.split("that was ")
    for number, text in enumerate(said[:-1]):
        assert f"error: {number}.yaml:" in text, text[:500]


@pytest.mark.parametrize("kind", ["pipe", "device", "endless link", "folder"])
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(RecipeError, match=r"not a recipe|cannot be read"):
        recipes.load(path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=" + "9" * 300_000, "a number of 300000 digits"),
        ("name=" + "x" * 2**20, "it is larger than 1 MiB"),
        (".".join("a" * 5000) + "=1", "the key has 5000 parts"),
        ("a" * 300_000 + "=1", "unknown key"),
        ("model.config=" + "[" * 9000, "nested too deeply"),
        ("name=!!python/object/apply:os.system [ls]", "the tag"),
        ('name="\\0"', "holds the control character"),
        ("data.sources.0.x\x1b[2J=1", "holds the control character"),
        ("data.sources.999999999999=1", "has no item"),
        ("\ud800=1", "half of a surrogate pair"),
        ("name=\ud800", "not allowed"),
    ],
)
def test_hostile_overrides(write: Any, override: str, says: str) -> None:
    for line in errors_of(write(SMALL), override):
        assert line.startswith("override ")
        assert says in line
        assert len(line) <= 1000 and line.isprintable()


def test_hostile_mappings_from_python() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    circle: dict[str, Any] = {}
    circle["config"] = circle
    for model in ({"config": {"a": deep}}, circle, {"config": {"a": float("nan")}}, {"config": {"a": object()}}):
        with pytest.raises(RecipeError):
            recipes.from_mapping({"objective": "clm", "data": {"sources": [{"builtin": "everyday"}]}, "model": model})


def test_many_wrong_sources_take_a_time_that_grows_with_their_number(write: Any) -> None:
    """Each source and each problem is looked up, not searched for, which took calls with the square of their number."""
    calls = []
    for count in (100, 200, 400):
        sources = "".join("  - {files: a, split: b}\n" for _ in range(count))
        file = write(f"objective: clm\ndata:\n sources:\n{sources}")
        counted = itertools.count()
        sys.setprofile(lambda *_, counted=counted: next(counted))
        try:
            lines = errors_of(file)
        finally:
            sys.setprofile(None)
        calls.append(next(counted))
        assert len(lines) == 51
        assert lines[-1] == f"recipe.yaml: and {count - 50} more errors"
    assert calls[2] - calls[1] < 2.2 * (calls[1] - calls[0])


# ---------------------------------------------------------------------------------------------------------- secrets

FAKE = "hf_" + "Sesame" * 6
SECRETS = [
    (f"name: {FAKE}", "name"),
    (f"output_dir: runs/{FAKE}/x", "output_dir"),
    (f"hub: {{repo_id: {FAKE}}}", "hub.repo_id"),
    (f"hub: {{token: {FAKE}}}", "hub.token"),
    ("hub: {token: Sesame}", "hub.token"),
    ("wandb: {api_key: Sesame12345}", "wandb.api_key"),
    ("wandb: {WANDB_API_KEY: Sesame12345}", "wandb.WANDB_API_KEY"),
    ("password: Sesame", "password"),
    ("password: 12345", "password"),
    (f"model: {{from: 'https://user:Sesame@host/x', config: {{a: [{{b: {FAKE}}}]}}}}", "model.from"),
    ("model: {config: {a: [{secret-key: Sesame}]}}", "model.config.a.0.secret-key"),
    ("tokenizer: {from: 'https://Sesame@host/org/name'}", "tokenizer.from"),
    ("tokenizer: {from: 'https://host/x?a=b&token=Sesame'}", "tokenizer.from"),
    (f"hub: {{examples: [a, 'b {FAKE}']}}", "hub.examples.1"),
    (f"{FAKE}: x", "***"),
    (f"{FAKE}: x\n{FAKE}: y", None),
    (f"train: {{{FAKE}: {{a: 1}}}}", "train.***"),
    (f"name: !{FAKE} x", "name"),
    (f"name: &{FAKE} x", None),
    (f"name: *{FAKE}", None),
    ("name: Open-Sesame-of-the-environment", "name"),
]


@pytest.mark.parametrize(("change", "key"), SECRETS)
def test_a_secret_is_refused_by_its_key_and_never_shown(
    write: Any, monkeypatch: pytest.MonkeyPatch, change: str, key: str | None
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "Open-Sesame-of-the-environment")
    text = "\n".join(errors_of(write(SMALL + change)))
    assert key is None or f"recipe.yaml:3: {key}: " in text
    assert "Sesame" not in text and "12345" not in text


@pytest.mark.parametrize(
    "override",
    [
        f"name={FAKE}",
        f"{FAKE}=1",
        FAKE,
        "hub.token=Sesame",
        "hub.token.x=Sesame",
        f"objective={FAKE}",
        f"train.duration={FAKE}",
        f"hub=[{FAKE}",
        f"model.config={{a: {{b: {FAKE}}}, api_key: 12345}}",
        f"output_dir=https://user:Sesame@host {'x' * 60} {FAKE}",
        f"name={'x' * 60}{FAKE}",
    ],
)
def test_a_secret_in_an_override_is_never_shown(write: Any, override: str) -> None:
    text = "\n".join(errors_of(write(SMALL), override))
    assert text.startswith("override ")
    assert "Sesame" not in text and "12345" not in text


def test_a_secret_under_a_key_that_is_no_section(write: Any) -> None:
    text = "\n".join(errors_of(write(SMALL + f"output_dir: {FAKE}"), "output_dir.x=1"))
    assert "Sesame" not in text


def test_ordinary_words_are_no_secrets(write: Any) -> None:
    config = "{bos_token_id: 1, pad_token: x, num_tokens: 5, image_token: y}"
    ordinary = f"name: hf_small\nmodel: {{architecture: bert, config: {config}}}\nhub: {{repo_id: me/hf_model}}\n"
    assert recipes.load(write(SMALL + ordinary)).name == "hf_small"
    for text in ("org/name@main", "https://huggingface.co/org/name@main", "a hf_token", "mailto:a@b"):
        assert secrets.without_secrets(text) == text


def refused(refusal: Fault, number: int, request: Request) -> Fault | None:
    """That answer to whatever would change something on the Hub."""
    return refusal if writes(request) else None


def test_no_token_is_ever_written_or_said(tmp_path: Path, hfpretrain: Command) -> None:
    """A run that is pushed, one whose push fails with the token in the Hub's answer, and a wrong recipe."""
    wandb = "0123456789canary0123456789canary01234567"
    said = []
    for name in ("pushed", "refused"):
        recipe = tmp_path / f"{name}.yaml"
        settings = ["train.duration=4", "checkpoints.every=2", f"hub={{repo_id: tester/{name}, push: checkpoints}}"]
        recipe.write_text(recipes.dump(tiny_recipe(tmp_path, "clm", *settings, name=name)))
        with LoopbackHub() as hub:
            if name == "refused":
                refusal = Fault(403, f"{TOKEN} and {wandb} may not")
                hub.fault = partial(refused, refusal)
            environment = {
                "HFPRETRAIN_CACHE": str(tmp_path / "cache"),
                "HF_HOME": str(tmp_path / "home"),
                "WANDB_API_KEY": wandb,
            }
            done = hfpretrain("train", recipe, **hub.environment(**environment))
            assert done.returncode == 0, done.stderr
            assert ("may not" in done.stderr) == (name == "refused")
            said += [done.stdout, done.stderr]
    wrong = hfpretrain("train", recipe, f"hub.token={TOKEN}", f"name={wandb}", WANDB_API_KEY=wandb)
    assert wrong.returncode == 2
    said += [wrong.stdout, wrong.stderr]
    for part in ("Canary", "canary"):
        assert not [text for text in said if part in text]
        for path in tmp_path.rglob("*"):
            assert part not in path.name
            assert not path.is_file() or part.encode() not in path.read_bytes(), path


def writes(request: Request) -> bool:
    return request.method in ("POST", "PUT") and "validate-yaml" not in request.path


# ---------------------------------------------------------------------------------------------------- model folders


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("run"), "mlm", "train.duration=4", "checkpoints.every=2")


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> Path:
    """A copy of the model, to spoil. Code and pickles make `ran` beside it."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in run.path.iterdir():
        if path.is_file() and path.suffix in (".json", ".safetensors") and path.name != "report.json":
            shutil.copyfile(path, copy / path.name)
    return copy


def say(folder: Path, **keys: Any) -> None:
    """Changes keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def shard(folder: Path, name: Any) -> None:
    """Has the index say that the weights are in `name`."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(file.keys(), name)}
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def put(folder: Path, name: str, content: bytes) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)


def link_out(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / f"out-{name}")
    (folder / name).symlink_to(folder.parent / f"out-{name}")


def pickled(folder: Path, name: str) -> None:
    put(folder, name, pickle.dumps(Runs(folder.parent / "ran")))
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()


def code(folder: Path, **config: Any) -> None:
    marker = folder.parent / "ran"
    text = f"import os\nos.mkdir({str(marker)!r})\nfrom transformers import BertConfig as C, BertForMaskedLM as M\n"
    (folder / "code.py").write_text(text)
    say(folder, auto_map={"AutoConfig": "code.C", "AutoModelForMaskedLM": "code.M"}, **config)


def pickled_shard(folder: Path) -> None:
    shard(folder, "evil.bin")
    pickled(folder, "evil.bin")


def listed_index(folder: Path) -> None:
    shard(folder, "x.safetensors")
    put(folder, "model.safetensors.index.json", b"[]")


def weights_named(folder: Path) -> None:
    pickled(folder, "evil.bin")
    say(folder, transformers_weights="evil.bin")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled weights": (lambda folder: pickled(folder, "pytorch_model.bin"), r"safetensors"),
    "code of its own": (lambda folder: code(folder, model_type="mine"), "code of its own"),
    "a kernel of the Hub": (lambda folder: say(folder, attn_implementation="evil/kernel"), "names code on the Hub"),
    "a kernel inside": (lambda folder: say(folder, x={"_attn_implementation": "evil/kernel"}), "names code on the Hub"),
    "named weights": (weights_named, "names other weights"),
    "a shard above": (lambda folder: shard(folder, "../out.safetensors"), "is not the name of a .safetensors file"),
    "a shard elsewhere": (
        lambda folder: shard(folder, str(folder.parent / "out.safetensors")),
        "is not the name of a .safetensors file",
    ),
    "a pickled shard": (pickled_shard, "is not the name of a .safetensors file"),
    "a shard that is no name": (lambda folder: shard(folder, 5), "is not the name of a .safetensors file"),
    "a shard that is missing": (lambda folder: shard(folder, "model-00001-of-00001.safetensors"), "safetensors"),
    "an index that is a list": (listed_index, "index.json cannot be read"),
    "linked weights": (lambda folder: link_out(folder, "model.safetensors"), "is a link out of the folder"),
    "a linked configuration": (lambda folder: link_out(folder, "config.json"), "is a link out of the folder"),
    "a linked tokenizer": (lambda folder: link_out(folder, "tokenizer.json"), "is a link out of the folder"),
    "weights cut off": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        "header",
    ),
    "empty weights": (lambda folder: put(folder, "model.safetensors", b""), "header"),
    "an absurd header": (lambda folder: put(folder, "model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "header"),
    "no JSON": (lambda folder: put(folder, "config.json", b"{"), "config.json cannot be read"),
    "a list": (lambda folder: put(folder, "config.json", b"[]"), "it is not a JSON object"),
    "a number": (lambda folder: put(folder, "config.json", b"5"), "it is not a JSON object"),
    "not UTF-8": (lambda folder: put(folder, "config.json", b'{"a": "\xe9"}'), "config.json cannot be read"),
    "deep": (lambda folder: put(folder, "config.json", b"[" * 100_000), "nested too deeply"),
    "huge": (lambda folder: os.truncate(folder / "config.json", 2**30), "it is larger than 64 MiB"),
    "architectures": (lambda folder: say(folder, architectures=5), "architectures are a list of texts"),
    "model type": (lambda folder: say(folder, model_type=["bert"]), "model_type is a text"),
    "wide": (lambda folder: say(folder, hidden_size=10**12), "model"),
    "wider": (lambda folder: say(folder, hidden_size=10**400), "model"),
    "a vocabulary": (lambda folder: say(folder, vocab_size=10**12), r"other shapes|GB of memory"),
    "positions": (lambda folder: say(folder, max_position_embeddings=10**12), r"other shapes|GB of memory"),
    "layers": (lambda folder: say(folder, num_hidden_layers=10**9), "no model has more than 2048"),
    "negative": (lambda folder: say(folder, hidden_size=-1), "negative"),
    "a text for a number": (lambda folder: say(folder, hidden_size="many"), "hidden_size"),
}


ABSURD = {"wide", "wider", "a vocabulary", "positions", "negative", "a text for a number"}
"""Seen only where the model is built."""
ONLY_WEIGHTS = {"pickled weights", "a shard that is missing", "weights cut off", "empty weights", "an absurd header"}
"""The tokenizer in the folder can be used."""


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_model_folder_is_a_sentence(folder: Path, case: str) -> None:
    spoil, says = SPOILT[case]
    spoil(folder)
    for use in (hfpretrain.load, lambda name: load_model(name, "mlm")):
        with pytest.raises(ModelError, match=says) as caught:
            use(str(folder))
        assert len(caught.value.message) < 1000 and "\n" not in caught.value.message
    with pytest.raises(CheckpointError, match="is damaged: "):
        check_whole(folder)
    (folder / "manifest.json").unlink()  # a stranger's folder has none
    with nullcontext() if case in ABSURD else pytest.raises(ModelError):
        check_whole(folder)
    with nullcontext() if case in (ABSURD | ONLY_WEIGHTS) - {"a text for a number"} else pytest.raises(ModelError):
        load_tokenizer(str(folder), "mlm")
    assert not (folder.parent / "ran").exists(), "no code ran"


def test_the_command_line_with_a_spoilt_model_folder(folder: Path, hfpretrain: Command) -> None:
    pickled(folder, "pytorch_model.bin")
    recipe = folder / "recipe.yaml"
    settings = [f"model={{from: {folder}}}", "tokenizer={}"]
    recipe.write_text(recipes.dump(tiny_recipe(folder.parent, "mlm", *settings)))
    done = hfpretrain("train", recipe)
    assert done.returncode == 2, done.stderr
    assert "safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder.parent / "ran").exists()
    assert not (folder.parent / "runs").exists()


def test_code_beside_a_known_architecture_is_left_alone_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hfpretrain")
    code(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}))
    assert hfpretrain.load(str(folder), objective="mlm").predict_mask("the quick [MASK] fox")
    assert "brings code of its own, which is not run: transformers' bert is used" in caplog.text
    assert "brings code of its own for its tokenizer, which is not run" in caplog.text
    assert not (folder.parent / "ran").exists()


def test_the_layout_of_the_hubs_cache_goes_on_working(folder: Path) -> None:
    """Snapshots of links to blobs beside them; a link to other blobs is one out of the folder."""
    repository = folder.parent / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in [each for each in folder.iterdir() if each.name != "manifest.json"]:  # which is not pushed
        blob = blobs / hashlib.sha256(path.name.encode()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    assert hfpretrain.load(str(snapshot), objective="mlm").predict_mask("the quick [MASK] fox")
    check_whole(snapshot)
    other = folder.parent / "blobs"
    other.mkdir()
    shutil.copyfile(snapshot / "config.json", other / "config")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(other / "config")
    with pytest.raises(ModelError, match="is a link out of the folder"):
        check_whole(snapshot)


@pytest.mark.parametrize("file", ["optimizer.bin", "random_states_0.pkl", "progress.json", "config.json", "other"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, run: Run, file: str) -> None:
    """Whole by its manifest, and with a pickle that would run something, or with other JSON than was saved."""
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    recipe = recipes.load(run.recipe_file, [f"output_dir={copy}"])
    (copy / "report.json").unlink()
    checkpoint = copy / "checkpoints" / "step-00000004"
    content = b"[5]" if file.endswith(".json") else pickle.dumps(Runs(tmp_path / "ran"), protocol=2)
    (checkpoint / file).write_bytes(content)
    write_manifest(checkpoint, of=checkpoint.name)
    if file in ("random_states_0.pkl", "other", "progress.json"):  # of no use to a run, or seen to be damaged
        hfpretrain.train(recipe, resume=True)
    else:
        with pytest.raises((CheckpointError, ModelError), match="cannot be read") as caught:
            hfpretrain.train(recipe, resume=True)
        assert "remove" not in str(caught.value.hint), "its files are as they were saved"
    assert not (tmp_path / "ran").exists()


def test_a_manifest_that_names_files_elsewhere_is_damage(tmp_path: Path, run: Run) -> None:
    shutil.copytree(run.checkpoints / "step-00000004", tmp_path / "step-1")
    manifest = tmp_path / "step-1" / "manifest.json"
    os.mkfifo(tmp_path / "step-1" / "pipe")
    for name in ("/dev/zero", "../../../etc/passwd", ".", "pipe"):
        content = {"of": "step-1", "files": {name: {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}}}
        manifest.write_text(json.dumps(content | {"sha256": _digest_of(content)}))
        assert (damage(tmp_path / "step-1") or "").startswith(name)


# ------------------------------------------------------------------------------------------------- names and writes


@pytest.mark.parametrize("name", ["x" * 5000, "a/" + "x" * 300, "~nobody-here/x", "a\0b", "../" * 2000 + "x", "a\nb"])
def test_absurd_names_of_models_and_data_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds: tuple[Literal["model", "tokenizer"], ...] = ("model", "tokenizer")
    for kind in kinds:
        with pytest.raises(UserError) as caught:
            locate(name, kind=kind)
        assert "\0" not in str(caught.value)
    for streaming in (False, True):
        with pytest.raises(UserError) as caught:
            open_source(recipes.Source(hub=name, streaming=streaming))
        assert "\0" not in str(caught.value)
    with pytest.raises(UserError):
        push(name, "me/model")
    with pytest.raises(HFPretrainError):
        open_source(recipes.Source(files=name))


@pytest.mark.parametrize("repo_id", ["../x", "a/../b", "x" * 97, "a\nb", "a/b/c", "", "a--b", f"me/{'x' * 200}"])
def test_repositories_are_named_as_the_hub_does(run: Run, repo_id: str) -> None:
    with pytest.raises(UserError, match="cannot name a repository"):
        push(run.path, repo_id)


@pytest.mark.parametrize("revision", ["..", "a..b", "a b", "-x", "refs/heads/x", "a\nb", "x" * 300, "", "a.lock"])
def test_branches_are_named_as_git_does(run: Run, revision: str) -> None:
    with pytest.raises(UserError, match="cannot name a branch"):
        push(run.path, "me/model", revision=revision)


def test_a_run_directory_with_too_long_a_name_is_a_sentence(tmp_path: Path) -> None:
    for output_dir in (f"{tmp_path}/{'x' * 300}", f"{tmp_path}/" + "x/" * 5000):
        with pytest.raises(RunError, match="output_dir"):
            hfpretrain.train(tiny_recipe(tmp_path, "clm", f"output_dir={output_dir}"))


AUDIT = """
import os, runpy, sys
runpy.run_path({no_network!r})
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")

def note(event, arguments):
    paths = ()
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        mode, flags = arguments[1] or "", arguments[2] or 0
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            paths = arguments[:1]
    elif event in CHANGES:
        paths = [each for each in arguments[:2] if isinstance(each, (str, bytes, os.PathLike))]
    below = arguments[1] if event in ("os.remove", "os.rmdir") else arguments[2] if event == "os.mkdir" else -1
    base = os.readlink(f"/proc/self/fd/{{below}}") if below != -1 else os.getcwd()
    for path in paths:
        os.write(log, os.fsencode(os.path.abspath(os.path.join(base, os.fsdecode(path)))) + b"\\n")

sys.addaudithook(note)
"""


def test_a_run_writes_to_its_directory_and_the_caches_alone(tmp_path: Path) -> None:
    """Every file opened for writing, made, renamed or removed, and what is in the other folders afterwards."""
    places = {name: tmp_path / name for name in ("work", "home", "cache", "hf", "temp", "audit")}
    for place in places.values():
        place.mkdir()
    log = tmp_path / "log"
    hook = AUDIT.format(no_network=str(NO_NETWORK / "sitecustomize.py"), log=str(log))
    (places["audit"] / "sitecustomize.py").write_text(hook)
    settings = ["train.duration=4", "checkpoints.every=2", "output_dir=runs/tiny"]
    (tmp_path / "recipe.yaml").write_text(recipes.dump(tiny_recipe(tmp_path, "mlm", *settings)))
    done = subprocess.run(
        [sys.executable, "-m", "hfpretrain", "train", str(tmp_path / "recipe.yaml")],
        cwd=places["work"],
        env={name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
        | {
            "PYTHONPATH": os.pathsep.join([str(places["audit"]), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(places["home"]),
            "TMPDIR": str(places["temp"]),
            "HFPRETRAIN_CACHE": str(places["cache"]),
            "HF_HOME": str(places["hf"]),
            "TORCHINDUCTOR_CACHE_DIR": str(places["cache"] / "inductor"),  # torch, imported here, has set it to another
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (places["work"] / "runs" / "tiny" / "README.md").is_file()
    written = [Path(line) for line in log.read_text().splitlines()]
    own = [places["work"] / "runs", places["cache"], places["hf"], places["temp"]]
    assert any(path.is_relative_to(own[0]) for path in written) and any(path.is_relative_to(own[1]) for path in written)
    elsewhere = {path for path in written if not any(path.is_relative_to(place) for place in own)}
    assert elsewhere <= {Path("/dev/null")}
    assert list(places["home"].iterdir()) == []
    assert [path.name for path in places["work"].iterdir()] == ["runs"]
    assert list(places["temp"].iterdir()) == [], "temporary files are removed"


def killed(run: Run, folder: Path) -> Run:
    """A copy of the run as it was when it was killed after its first checkpoint."""
    copy = Run(shutil.copytree(run.path, folder / "run"))
    for path in (copy.report_file, copy.manifest_file, copy.card_file):
        path.unlink()
    shutil.rmtree(copy.checkpoints / "step-00000004")
    copy.recipe_file.write_text(copy.recipe_file.read_text().replace(str(run.path), str(copy.path)))
    return copy


@pytest.mark.parametrize("name", [".final.partial", ".recipe.yaml.partial", "checkpoints/.step-00000004.partial"])
def test_links_in_a_strangers_run_lead_nothing_elsewhere(tmp_path: Path, run: Run, name: str) -> None:
    """Where a run writes what it then renames."""
    copy = killed(run, tmp_path)
    plant(copy.path / name, tmp_path / "victim", to_folder="recipe" not in name)
    assert hfpretrain.train(recipes.load(copy.recipe_file), resume=True).state == "finished"
    assert damage(copy.path) is None
    assert as_planted(tmp_path / "victim")


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "unpushed"])
def test_links_in_place_of_parts_of_a_run_are_refused(tmp_path: Path, run: Run, name: str) -> None:
    """What is written to or removed under the run's own names; also of a finished run, and by a push."""
    copy = killed(run, tmp_path)
    plant(copy.path / name, tmp_path / "victim", to_folder=name != "metrics.jsonl")
    recipe = recipes.load(copy.recipe_file, ["hub.repo_id=me/model", "hub.push=checkpoints"])
    with pytest.raises(RunError, match=f"{name} is a link or a device, and a run writes to its own directory alone"):
        hfpretrain.train(recipe, resume=True)
    with pytest.raises(RunError, match=f"{name} is a link"):
        push(copy.path, "me/model")
    shutil.copy(run.report_file, copy.report_file)
    with pytest.raises(RunError, match=f"{name} is a link"):
        hfpretrain.train(recipe, resume=True)
    with pytest.raises(RunError, match=f"{name} is a link"):
        push(copy.path, "me/model")
    assert as_planted(tmp_path / "victim")


VICTIMS = ["notes", ".ssh/id_rsa", "step-00000001", "tokenizer.json"]


def plant(link: Path, victim: Path, *, to_folder: bool) -> None:
    """Puts a link to somebody's folder, or to a file in it, where a run has something of its own."""
    (victim / ".ssh").mkdir(parents=True)
    for name in VICTIMS:
        (victim / name).write_text("private\n")
    if os.path.lexists(link):
        remove(link)
    link.symlink_to(victim if to_folder else victim / "notes")


def as_planted(victim: Path) -> bool:
    found = {str(path.relative_to(victim)): path.read_text() for path in victim.rglob("*") if path.is_file()}
    return found == dict.fromkeys(VICTIMS, "private\n")


def test_metrics_that_become_a_link_are_written_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the run goes on; a pipe, which would wait for a reader, likewise."""
    lines = Lines(tmp_path / "metrics.jsonl", Written(), upto_step=0)
    lines.add('{"step": 1}')
    (tmp_path / "metrics.jsonl").rename(tmp_path / "elsewhere")
    (tmp_path / "metrics.jsonl").symlink_to("elsewhere")
    lines.add('{"step": 2}')
    assert "cannot be written (it is a link): training goes on" in caplog.text
    assert (tmp_path / "elsewhere").read_text() == '{"step": 1}\n'
    os.mkfifo(tmp_path / "pipe")
    Lines(tmp_path / "pipe", Written(), upto_step=0).add('{"step": 1}')
    assert caplog.text.count("cannot be written") == 2


def test_names_in_data_files_are_only_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that try path tricks, and files called oddly."""
    monkeypatch.chdir(tmp_path)
    rows = ["../../x", "/etc/passwd", "$(touch ran)", "{{ 1 }}", "<s></s>[MASK]", "\u202e..", "hf_" + "x" * 40]
    odd = tmp_path / "$(touch ran); ..\n.jsonl"
    odd.write_text(
        "".join(json.dumps({"text": f"{row} the quick brown fox " * 20, "name": row}) + "\n" for row in rows)
    )
    trained = tiny_run(tmp_path, "clm", f"data.sources=[{{files: {json.dumps(str(tmp_path / '*.jsonl'))}}}]")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([odd.name, "corpus.jsonl", "runs"])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert trained.state == "finished"
    for kind, name in {"zip": "a.zip", "pickle": "a.pkl", "pipe": "p.jsonl"}.items():
        path = tmp_path / name
        os.mkfifo(path) if kind == "pipe" else path.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
        with pytest.raises(DataError):
            tiny_run(tmp_path, "clm", f"data.sources=[{{files: {path}}}]", name=kind)
    assert not (tmp_path / "ran").exists()
