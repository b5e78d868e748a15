"""Exports: loaded again by the runtimes that they are for, and what cannot be exported.

What needs onnxruntime, gguf, llama.cpp or a web server is skipped where that is not installed; the rest is not.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from small_tokenizers import TEXTS
from tiny import LLAMA, tiny_run
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from hfpretrain import load
from hfpretrain.errors import ModelError, UserError
from hfpretrain.export import Format, export
from hfpretrain.export_check import agreement, batches_of
from hfpretrain.modeling.tokenizer_training import train_tokenizer
from hfpretrain.recipe import Tokenizer
from hfpretrain.run import Run

onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs hfpretrain[onnx]"
)
gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="needs hfpretrain[gguf]")

GROUPED: dict[str, Any] = {
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
GGUF: dict[str, dict[str, Any]] = {
    "llama": GROUPED | {"head_dim": 32},
    "mistral": GROUPED | {"sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
"""The architectures that are written as GGUF, in shapes that are not their defaults."""
SENTENCES = ["the quick brown fox jumps over the lazy dog.", "a small bird sings near the river.", "the cat"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("llama")
    grouped = LLAMA | {"num_key_value_heads": 1, "max_position_embeddings": 64}
    return tiny_run(folder, "clm", "model.architecture=llama", f"model.config={json.dumps(grouped)}", name="small")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("bert"), "mlm", "train.duration=4", name="small")


def untrained(folder: Path, architecture: str = "llama", algorithm: Any = "bpe", **config: Any) -> Path:
    """A causal model folder with weights by chance, and a tokenizer of the algorithm."""
    tokenizer = train_tokenizer(Tokenizer(algorithm=algorithm, vocab_size=400), "clm", TEXTS)
    # Large weights: with those of a beginning, attention is even, and what is wrong with it would not be seen.
    sizes = {"vocab_size": 402, "max_position_embeddings": 64, "initializer_range": 0.3, **LLAMA}
    own = CONFIG_MAPPING[architecture](**(sizes | config), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def five_best(logits: Any) -> list[list[int]]:
    found: list[list[int]] = torch.as_tensor(logits).topk(5).indices.tolist()
    return found


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------- what is made


@onnx
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_onnx_predicts_what_the_run_predicts_for_any_number_and_length_of_texts(
    kind: str, request: pytest.FixtureRequest, hfpretrain: Command, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run: Run = request.getfixturevalue(kind)
    (tmp_path / ".exported.partial").mkdir()
    (tmp_path / ".exported.partial" / "left by a kill").touch()
    done = hfpretrain("export", run.path, "--to", "onnx", "--output", "exported", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["same_top5"] == said["positions"] > 40
    assert said["largest_difference"] < 1e-4
    assert left(tmp_path) == {"exported"}
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "model.onnx")
    assert not (tmp_path / "exported" / "left by a kill").exists()
    written = b"".join(path.read_bytes() for path in (tmp_path / "exported").iterdir())
    for place in (tmp_path, run.path, Path(torch.__file__).parent):
        assert str(place).encode() not in written, "a path of this machine, in a file that is handed on"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    of_run = AutoTokenizer.from_pretrained(run.path)
    llm = load(run.path)
    for texts in (SENTENCES, SENTENCES[:1]):
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        assert batch["input_ids"].tolist() == of_run(texts, padding=True)["input_ids"]
        given = {each.name: batch[each.name].numpy() for each in session.get_inputs()}
        (found,) = session.run(["logits"], given)
        with torch.no_grad():
            expected = llm.model(**batch).logits
        real = batch["attention_mask"].bool()
        assert five_best(torch.from_numpy(found)[real]) == five_best(expected[real])


@gguf
@pytest.mark.parametrize("architecture", GGUF)
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_is_read_back_with_the_same_predictions_and_tokens(architecture: str, tied: bool, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", architecture, tie_word_embeddings=tied, **GGUF[architecture])
    exported = export(folder, "gguf")
    assert exported.path == folder / "model.gguf"
    assert exported.agreement.same == exported.agreement.positions > 40
    assert exported.agreement.worst < 1e-5


@gguf
def test_a_run_as_gguf_carries_its_tokenizer(llama: Run, hfpretrain: Command, tmp_path: Path) -> None:
    done = hfpretrain("export", llama.path, "--to", "gguf", "-o", "exported.gguf")
    assert done.returncode == 0, done.stderr
    assert "the same five likeliest tokens at" in done.stdout
    assert left(tmp_path) == {"exported.gguf"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="exported.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="exported.gguf").eval()
    of_run, own = AutoTokenizer.from_pretrained(llama.path), AutoModelForCausalLM.from_pretrained(llama.path).eval()
    for text in [*TEXTS, *SENTENCES]:
        assert tokenizer(text)["input_ids"] == of_run(text)["input_ids"]
        assert tokenizer.decode(of_run(text)["input_ids"]) == of_run.decode(of_run(text)["input_ids"])
    ids = torch.tensor([of_run(SENTENCES[0])["input_ids"]])
    with torch.no_grad():
        assert five_best(model(ids).logits) == five_best(own(ids).logits)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")


@gguf
@pytest.mark.parametrize("architecture", GGUF)
def test_llama_cpp_reads_the_same_tokens_and_predicts_the_same(architecture: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = untrained(tmp_path / "model", architecture, tie_word_embeddings=False, **GGUF[architecture])
    exported = export(folder, "gguf")
    exact = {"type_k": 0, "type_v": 0, "n_threads": 1}  # keys and values in float32
    loaded = llama_cpp.Llama(str(exported.path), n_ctx=64, logits_all=True, verbose=False, **exact)
    llm = load(folder)
    for text in [*TEXTS, *SENTENCES]:
        ids = llm.tokenizer(text)["input_ids"]
        assert loaded.tokenize(text.encode(), special=True) == ids, text
        loaded.reset()
        loaded.eval(ids)
        with torch.no_grad():
            expected = llm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found = torch.tensor(loaded.scores[: len(ids)]).log_softmax(-1)
        assert (found - expected).abs().max() < 0.005
        best = expected.topk(5).indices
        assert (found.gather(-1, best) - found.topk(5).values).abs().max() < 0.005


@gguf
def test_force_replaces_an_earlier_export_and_nothing_else(llama: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    export(llama.path, "gguf", file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists") as caught:
        export(llama.path, "gguf", file)
    assert "--force" in str(caught.value)
    file.write_bytes(before[:100])
    export(llama.path, "gguf", file, force=True)
    assert file.read_bytes() == before
    assert left(tmp_path) == {"model.gguf"}


# ----------------------------------------------------------------------------------------------- what goes wrong


def test_a_model_that_predicts_something_else_does_not_agree(llama: Run) -> None:
    llm = load(llama.path)
    batches = batches_of(llm, [*SENTENCES, "a fox"])
    assert len({batch["input_ids"].shape for batch in batches}) == 2
    with torch.no_grad():
        right = [llm.model(**batch).logits for batch in batches]
    assert agreement(llm, batches, right).holds
    nearly = [logits + 1e-5 * torch.randn(logits.shape) for logits in right]
    assert agreement(llm, batches, nearly).holds
    for wrong in ([logits.roll(1, 1) for logits in right], [logits * 1.01 for logits in right]):
        found = agreement(llm, batches, wrong)
        assert not found.holds
        assert found.worst > 1e-3
    assert not agreement(llm, batches, [logits * float("nan") for logits in right]).holds


@gguf
def test_an_export_that_does_not_agree_is_removed(tmp_path: Path, hfpretrain: Command) -> None:
    folder = untrained(tmp_path / "model", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data[7] = float("nan")
    model.save_pretrained(folder)
    before = left(folder)
    done = hfpretrain("export", folder, "--to", "gguf")
    assert done.returncode == 1
    assert "does not predict what" in done.stderr
    assert "at 0 of" in done.stderr
    assert left(folder) == before


@onnx
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_half_way_it_leaves_nothing_that_looks_like_an_export(
    number: signal.Signals, bert: Run, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hfpretrain", "export", str(bert.path), "--to", "onnx", "-o", "exported"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line.startswith("exporting") for line in process.stderr)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert left(tmp_path) == (set() if number == signal.SIGTERM else {".exported.partial"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mlp_bias": True}, "mlp_bias: true"),
        ({"hidden_act": "gelu"}, 'hidden_act: "gelu"'),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
        ({"architecture": "mistral", "sliding_window": 16}, "the last 16 tokens"),
        ({"architecture": "olmo2"}, "architecture olmo2"),
        ({"algorithm": "unigram"}, "model Unigram"),
        ({"algorithm": "char"}, "model BPE, pre-tokenizer none"),
        ({"algorithm": "byte"}, "has no merges"),
    ],
)
def test_what_gguf_cannot_hold_is_named(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", **config)
    before = left(folder)
    with pytest.raises(ModelError) as caught:
        export(folder, "gguf")
    assert said in caught.value.message
    assert caught.value.exit_status == 2
    assert left(folder) == before


def test_a_masked_model_is_no_gguf(bert: Run, hfpretrain: Command, tmp_path: Path) -> None:
    done = hfpretrain("export", bert.path, "--to", "gguf", "-o", "x.gguf")
    assert done.returncode == 2
    assert "masked language model" in done.stderr
    assert "--to onnx" in done.stderr
    assert left(tmp_path) == set()


def test_what_is_no_run_is_said(hfpretrain: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("nowhere/at/all", "nowhere/at/all"), ("empty", "holds no model")):
        done = hfpretrain("export", name, "--to", "onnx", "-o", "exported", HF_HUB_OFFLINE="1")
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert left(tmp_path) == {"empty"}


def test_what_is_in_the_way_stays(bert: Run, llama: Run, tmp_path: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "notes.gguf", tmp_path / "link.gguf"
    folder.mkdir()
    (folder / "novel.txt").write_text("mine")
    (folder / "model.onnx").write_text("an export")
    file.write_text("mine")
    link.symlink_to(file)
    places: list[tuple[Run, Format, Path]] = [(bert, "onnx", folder), (llama, "gguf", file), (llama, "gguf", link)]
    for run, to, place in places:
        for force in (False, True):
            with pytest.raises(UserError, match=r"is no (ONNX|GGUF) export"):
                export(run.path, to, place, force=force)
    with pytest.raises(UserError, match=r"does not end in \.gguf"):
        export(llama.path, "gguf", tmp_path / "model.bin")
    with pytest.raises(UserError, match="is no folder"):
        export(llama.path, "gguf", file / "model.gguf")
    assert left(tmp_path) == {"folder", "notes.gguf", "link.gguf"}
    assert left(folder) == {"novel.txt", "model.onnx"}
    assert file.read_text() == "mine"


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxruntime"), ("gguf", "gguf")])
def test_a_missing_package_names_the_extra(to: str, package: str, llama: Run, hfpretrain: Command) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    done = hfpretrain("export", llama.path, "--to", to, "-o", f"x.{to}")
    assert done.returncode == 2
    assert package in done.stderr
    assert f"pip install 'hfpretrain[{to}]'" in done.stderr


# ------------------------------------------------------------------------------------------------------------ serving


@pytest.fixture
def server(llama: Run, tmp_path: Path) -> Iterator[str]:
    """`transformers serve` with the run as it is, and a template for chats that joins what is said; its address."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    template = json.dumps({"chat_template": "{{ bos_token }}{{ messages[-1].content }}"})
    command = [sys.executable, "-c", "from transformers.cli.transformers import app; app()", "serve", str(llama.path)]
    command += ["--host", "127.0.0.1", "--port", "0", "--chat-template-kwargs", template]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    line = next((line for line in process.stderr if "Uvicorn running on " in line), "")
    assert line, "the server did not start"
    try:
        yield line.split("Uvicorn running on ")[1].split()[0]
    finally:
        process.terminate()
        process.communicate()


def test_a_run_serves_as_it_is(server: str, llama: Run) -> None:
    def ask(path: str, **question: Any) -> dict[str, Any]:
        asked = {"model": str(llama.path), "max_tokens": 6, "temperature": 0} | question
        request = urllib.request.Request(
            f"{server}{path}", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())["choices"][0]
        return found

    expected = load(llama.path, objective="clm").generate("the quick", max_new_tokens=6)
    assert expected
    assert ask("/v1/completions", prompt="the quick")["text"].strip() == expected.strip()
    chat = ask("/v1/chat/completions", messages=[{"role": "user", "content": "the quick"}])
    assert chat["message"]["content"].strip() == expected.strip()
