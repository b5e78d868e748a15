"""Pushing, with the real huggingface_hub against a Hub on loopback: whole, repeatable, private, and never in the way.

The client is never replaced; what goes wrong is what the server does, and processes are killed for real.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import warm
from conftest import Command
from loopback_hub import TOKEN, Fault, File, LoopbackHub, Repository, Request
from tiny import LLAMA, tiny_recipe, tiny_run

from hfpretrain.data.mixing import Mix, lay_out
from hfpretrain.recipe import Amount, dump, from_mapping
from hfpretrain.run import Run
from hfpretrain.training.loop import branch_name
from hfpretrain.training.schedule import Plan

MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CARD = {"README.md", "training_curve.png"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("finished"), "clm", "train.duration=2", name="small")


@pytest.fixture
def no_canary(tmp_path: Path, finished: Run, hub: LoopbackHub) -> Iterator[list[str]]:
    """Texts that a test saw go into the list; the token is in none, nor in any file here or on the Hub."""
    seen: list[str] = []
    yield seen
    files = [path for folder in (tmp_path, finished.path) for path in folder.rglob("*") if path.is_file()]
    pushed = [
        file.content for each in hub.repositories.values() for files in each.commits.values() for file in files.values()
    ]
    assert not [text for text in seen if TOKEN in text]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert not [content for content in pushed if TOKEN.encode() in content]
    assert len(files) > 5


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model and its card."""
    names = MODEL | CARD
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name in names}


def on_hub(hub: LoopbackHub, name: str, revision: str = "main") -> dict[str, str]:
    files = hub.repositories[name].files(revision)
    assert files is not None, f"{name} has no {revision}"
    return {path: hashlib.sha256(file.content).hexdigest() for path, file in files.items() if path != ".gitattributes"}


def files_of(hub: LoopbackHub, name: str, revision: str = "main") -> dict[str, File]:
    files = hub.repositories[name].files(revision)
    assert files is not None
    return files


def everything(folder: Path) -> dict[str, str]:
    """Every file of a run but the card, in which a push writes where the model is."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_push_and_a_second_one_that_sends_nothing(
    hub: LoopbackHub, finished: Run, hfpretrain: Command, no_canary: list[str]
) -> None:
    first = hfpretrain("push", finished.path, "tester/small", **hub.environment())
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{hub.url}/tester/small\n"
    assert hub.repositories["tester/small"].private
    assert on_hub(hub, "tester/small") == hashes(finished.path)
    assert set(on_hub(hub, "tester/small")) == MODEL | CARD, "nothing but the model and its card"
    sent, commits = hub.sent, len(hub.repositories["tester/small"].commits)
    assert sent > (finished.path / "model.safetensors").stat().st_size
    second = hfpretrain("push", finished.path, "tester/small", **hub.environment())
    assert second.returncode == 0, second.stderr
    assert (hub.sent, len(hub.repositories["tester/small"].commits)) == (sent, commits)
    assert "the Hub has all of it already" in second.stderr
    no_canary += [first.stdout, first.stderr, second.stdout, second.stderr]


def test_options_of_a_push(hub: LoopbackHub, finished: Run, hfpretrain: Command) -> None:
    options = ("--public", "--revision", "second-try", "--message", "A second try")
    done = hfpretrain("push", finished.path, "small", *options, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/tester/small/tree/second-try\n", "a name alone is one of the account's own"
    repository = hub.repositories["tester/small"]
    assert not repository.private
    assert repository.messages[-1] == "A second try"
    assert on_hub(hub, "tester/small", "second-try") == hashes(finished.path)
    assert on_hub(hub, "tester/small", "main") == {}
    card = files_of(hub, "tester/small", "second-try")["README.md"].content.decode()
    assert 'model="tester/small", revision="second-try"' in card, "the snippet loads what was pushed"
    private = hfpretrain("push", finished.path, "tester/small", **hub.environment())
    assert private.returncode == 1
    assert "tester/small is public" in private.stderr
    assert "--public" in private.stderr
    assert on_hub(hub, "tester/small", "main") == {}


def killed_push(hub: LoopbackHub, folder: Path, run: Run, number: int, *, after: bool) -> bool:
    """A push whose process is killed at the request of that number, before or after the Hub's work; False if it ended
    before there was one."""
    command: list[str | Path] = ["-m", "hfpretrain", "push", run.path, "tester/small"]
    with warm.popen(command, cwd=folder, environment=hub.environment()) as process:

        def kill(count: int, request: Request) -> Fault | None:
            if count < number:
                return None
            if not after:
                process.kill()
            return Fault(after=after)

        hub.fault = kill
        if after:  # the answer is lost, and then the process
            while process.poll() is None and len(hub.requests) <= number:
                time.sleep(0.01)
            process.kill()
        process.wait(timeout=60)
    hub.fault = lambda count, request: None
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [False, True], ids=["request", "answer"])
def test_a_push_cut_off_at_each_request_in_turn(
    tmp_path: Path, finished: Run, hfpretrain: Command, after: bool, no_canary: list[str]
) -> None:
    """Killed as the request comes, or as its answer should: the same command then brings it to the same end."""
    before = everything(finished.path)
    number, commits = 0, set()
    while True:
        with LoopbackHub() as hub:
            cut = killed_push(hub, tmp_path, finished, number, after=after)
            if not cut:
                break
            again = hfpretrain("push", finished.path, "tester/small", **hub.environment())
            assert again.returncode == 0, again.stderr
            assert on_hub(hub, "tester/small") == hashes(finished.path)
            commits.add(len(hub.repositories["tester/small"].commits))
            no_canary.append(again.stderr)
        number += 1
    assert number >= 9, "whoever broke it off at every request"
    assert commits == {2}, "one commit of the Hub's own and one of ours, however often it was tried"
    assert everything(finished.path) == before


def test_a_lost_connection_is_tried_again_by_itself(hub: LoopbackHub, finished: Run, hfpretrain: Command) -> None:
    lost: list[int] = []

    def once(number: int, request: Request) -> Fault | None:
        if request.method == "PUT" and not lost:
            lost.append(number)
            return Fault()
        return None

    hub.fault = once
    done = hfpretrain("push", finished.path, "tester/small", **hub.environment())
    assert lost
    assert done.returncode == 0, done.stderr
    assert on_hub(hub, "tester/small") == hashes(finished.path)


ERRORS: dict[str, tuple[Fault | None, dict[str, str], str, list[str]]] = {
    "no token": (None, {"HF_TOKEN": ""}, "tester/small", ["no token", "hf auth login"]),
    "offline": (None, {"HF_HUB_OFFLINE": "1"}, "tester/small", ["HF_HUB_OFFLINE is set", "unset it"]),
    "unknown token (401)": (None, {"HF_TOKEN": "hf_other"}, "tester/small", ["401", "HF_TOKEN"]),
    "not one's own name (403)": (None, {}, "somebody/small", ["403", "write access"]),
    "repository gone (404)": (Fault(404), {}, "tester/small", ["404", "check the name"]),
    "changed meanwhile (409)": (Fault(409), {}, "tester/small", ["409", "by somebody else", "the same push again"]),
    "too many requests (429)": (Fault(429), {}, "tester/small", ["429", "wait some minutes"]),
    "out of order (500)": (Fault(500), {}, "tester/small", ["500", "try again later"]),
    "away (503)": (Fault(503), {}, "tester/small", ["503", "try again later"]),
    "no answer": (Fault(503, seconds=3), {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}, "tester/small", ["did not answer in time"]),
    "connection lost": (Fault(), {}, "tester/small", ["connection", "lost", "the same push again"]),
    "a server that repeats secrets": (Fault(400, f"bad token {TOKEN}"), {}, "tester/small", ["400", "bad token ***"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_of_the_hub_is_a_sentence(
    hub: LoopbackHub, finished: Run, hfpretrain: Command, case: str, no_canary: list[str]
) -> None:
    fault, environment, name, said = ERRORS[case]
    before = everything(finished.path)
    hub.fault = lambda number, request: fault if "/commit/" in request.path else None
    done = hfpretrain("push", finished.path, name, **hub.environment(**environment))
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    message = done.stderr[done.stderr.index("error: ") :]
    assert len(message.splitlines()) == 2, message
    for words in said:
        assert words in message
    assert everything(finished.path) == before
    no_canary += [done.stderr, done.stdout]


def test_nobody_there(finished: Run, hfpretrain: Command) -> None:
    with LoopbackHub() as hub:
        gone = hub.environment()
    done = hfpretrain("push", finished.path, "tester/small", **gone)
    assert done.returncode == 1
    assert "the connection to the Hub failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(
    tmp_path: Path, hub: LoopbackHub, finished: Run, hfpretrain: Command
) -> None:
    broken: dict[str, tuple[str, Callable[[Path], object], str]] = {
        "cut": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-10]), "no whole model"),
        "missing": ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        "config": ("config.json", lambda path: path.write_text("{"), "config.json cannot be read"),
    }
    for name, (file, damage, said) in broken.items():
        shutil.copytree(finished.path, tmp_path / name)
        damage(tmp_path / name / file)
        done = hfpretrain("push", name, "tester/small", **hub.environment())
        assert done.returncode == 1, done.stderr
        assert f"{name} is damaged: {file} is" in done.stderr
        (tmp_path / name / "manifest.json").unlink()  # as a model from elsewhere
        done = hfpretrain("push", name, "tester/small", **hub.environment())
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    for arguments, said in ((("nowhere", "tester/small"), "no such folder"), ((finished.path, "a/b/c"), "org/name")):
        done = hfpretrain("push", *arguments, **hub.environment())
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    checkpoint = tmp_path / "cut" / "checkpoints" / "step-00000002"
    (checkpoint / "tokenizer.json").write_text("{}")
    done = hfpretrain("push", checkpoint, "tester/small", **hub.environment())
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert hub.requests == []


def test_three_checkpoints_as_branches_while_it_trains(
    tmp_path: Path, hub: LoopbackHub, hfpretrain: Command, no_canary: list[str]
) -> None:
    """The Hub answers nothing until the run is finished: a training that waited for it would never end."""
    settings = ["hub={repo_id: tester/run, push: checkpoints}", "checkpoints={every: 4, keep: 2}"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "clm", *settings)))
    run = Run(tmp_path / "runs" / "tiny")
    held: list[bool] = []

    def hold(number: int, request: Request) -> None:
        until = time.monotonic() + 60
        while not run.report_file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        held.append(run.report_file.exists())

    hub.fault = hold
    done = hfpretrain("train", recipe, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert held
    assert all(held)
    assert set(hub.repositories["tester/run"].branches) == {"main", "step-4", "step-8", "step-12"}
    assert on_hub(hub, "tester/run") == hashes(run.path)
    for branch in ("step-4", "step-8", "step-12"):
        assert set(on_hub(hub, "tester/run", branch)) == MODEL
    manifest = json.loads((run.checkpoints / "step-00000012" / "manifest.json").read_text())["files"]
    last = on_hub(hub, "tester/run", "step-12")
    assert {name: manifest[name]["sha256"] for name in last} == last
    weights = {
        branch: on_hub(hub, "tester/run", branch)["model.safetensors"] for branch in ("step-4", "step-8", "main")
    }
    assert len(set(weights.values())) == 3, "each is what was learnt by then"
    assert not run.unpushed.exists(), "nothing waits any more"

    # Loaded by transformers alone, from the Hub, and equal to what was learnt.
    code = """
import sys
sys.modules["hfpretrain"] = None
import hashlib
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer
for branch in ("main", "step-4", "step-8", "step-12"):
    model = AutoModelForCausalLM.from_pretrained("tester/run", revision=branch)
    tokenizer = AutoTokenizer.from_pretrained("tester/run", revision=branch)
    inputs = tokenizer("the quick", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
    file = hf_hub_download("tester/run", "model.safetensors", revision=branch)
    print(branch, hashlib.sha256(open(file, "rb").read()).hexdigest())
"""
    environment = os.environ | hub.environment(HF_HOME=str(tmp_path / "elsewhere"))
    environment["PYTHONPATH"] = str(Path(__file__).parent / "no_network")
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    found = dict(line.split() for line in loaded.stdout.splitlines())
    assert found == weights | {"step-12": last["model.safetensors"]}
    no_canary += [done.stdout, done.stderr, loaded.stdout, loaded.stderr]


def test_branches_named_by_the_words_seen(tmp_path: Path, hub: LoopbackHub, hfpretrain: Command) -> None:
    settings = [
        "hub={repo_id: tester/baby, push: checkpoints, name_by: words}",
        "checkpoints.every=1k words",
        "train.duration=3k words",
    ]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "mlm", *settings)))
    done = hfpretrain("train", recipe, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories["tester/baby"].branches) == {"main", "chck_1k", "chck_2k", "chck_3k"}
    report = Run(tmp_path / "runs" / "tiny").report()
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert report["sources"][0]["words"] == sum(len(text.split()) for text in texts)
    assert 3000 <= report["words"] < 3000 + report["words"] / report["steps"]


def test_a_training_does_not_fail_because_of_the_hub(
    tmp_path: Path, hub: LoopbackHub, hfpretrain: Command, no_canary: list[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "clm", "hub={repo_id: tester/run, push: checkpoints}")))
    hub.fault = lambda number, request: Fault(403, "no")
    done = hfpretrain("train", recipe, **hub.environment())
    assert done.returncode == 0, done.stderr
    assert "training goes on, but tester/run: the Hub refused to write (status 403)" in done.stderr
    assert done.stderr.count("training goes on") == 1, "said once"
    run = Run(tmp_path / "runs" / "tiny")
    assert sorted(path.name for path in run.unpushed.iterdir()) == ["step-10", "step-12", "step-5"]
    later = re.search(r"push it later with: (hfpretrain push .*)", done.stderr)
    assert later
    hub.fault = lambda number, request: None
    pushed = hfpretrain(*later[1].split()[1:], **hub.environment())
    assert pushed.returncode == 0, pushed.stderr
    assert len(pushed.stdout.splitlines()) == 4
    assert set(hub.repositories["tester/run"].branches) == {"main", "step-5", "step-10", "step-12"}
    assert on_hub(hub, "tester/run") == hashes(run.path)
    no_canary += [done.stdout, done.stderr, pushed.stdout, pushed.stderr]


def test_a_stopped_run_pushes_what_waits_when_it_goes_on(tmp_path: Path, hub: LoopbackHub, hfpretrain: Command) -> None:
    """Killed at once with a checkpoint on its way: nothing is lost, and no branch is missing in the end."""
    settings = ["hub={repo_id: tester/run, push: checkpoints}", "train.duration=200", "checkpoints.every=50"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "clm", *settings)))
    command = [sys.executable, "-m", "hfpretrain", "train", str(recipe)]
    environment = os.environ | hub.environment()
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        hub.fault = lambda number, request: process.kill() if "/branch/step-50" in request.path else None
        process.wait(timeout=120)
    assert process.returncode == -signal.SIGKILL
    hub.fault = lambda number, request: None
    done = hfpretrain("train", recipe, "--resume", **hub.environment())
    assert done.returncode == 0, done.stderr
    wanted = {"main", "step-50", "step-100", "step-150", "step-200"}
    assert set(hub.repositories["tester/run"].branches) == wanted
    for branch in wanted - {"main"}:
        assert set(on_hub(hub, "tester/run", branch)) == MODEL


def test_cards_that_somebody_edited_are_kept(
    tmp_path: Path, hub: LoopbackHub, finished: Run, hfpretrain: Command
) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    environment = hub.environment()
    assert hfpretrain("push", "run", "tester/small", **environment).returncode == 0
    mine = run.card_file.read_text() + "My own card.\n"
    run.card_file.write_text(mine)
    done = hfpretrain("push", "run", "tester/small", **environment)
    assert "README.md was edited, and is kept" in done.stderr
    assert run.card_file.read_text() == mine
    assert files_of(hub, "tester/small")["README.md"].content.decode() == mine, "it replaces one that hfpretrain wrote"
    files_of(hub, "tester/small")["README.md"].content += b"And a word on the Hub.\n"
    theirs = files_of(hub, "tester/small")["README.md"].content
    for card in (mine + "More.\n", None):  # an edited one here, and one of ours
        run.card_file.write_text(card) if card else run.card_file.unlink()
        done = hfpretrain("push", "run", "tester/small", **environment)
        assert done.returncode == 0, done.stderr
        assert "README.md was edited on the Hub, and is kept" in done.stderr
        assert files_of(hub, "tester/small")["README.md"].content == theirs


def test_an_old_card_in_the_cache_is_not_taken_for_the_one_on_the_hub(
    tmp_path: Path, hub: LoopbackHub, finished: Run, hfpretrain: Command
) -> None:
    environment = hub.environment(HF_HOME=str(tmp_path / "cache"))
    assert hfpretrain("push", finished.path, "tester/small", **environment).returncode == 0
    assert hfpretrain("push", finished.path, "tester/small", **environment).returncode == 0
    repository = hub.repositories["tester/small"]
    edited = {**files_of(hub, "tester/small"), "README.md": File(b"# Mine\n", large=False)}
    repository.commit("main", edited, "edited")
    hub.fault = lambda number, request: Fault(404) if request.method == "HEAD" else None
    done = hfpretrain("push", finished.path, "tester/small", **environment)
    assert done.returncode == 1, done.stderr
    assert files_of(hub, "tester/small")["README.md"].content == b"# Mine\n"
    hub.fault = lambda number, request: None
    offline = hfpretrain("generate", "the", "--model", "tester/small", **environment, HF_HUB_OFFLINE="1")
    assert "nor in the cache" in offline.stderr, "what a push looked at is no model in the cache"


def test_weights_of_an_earlier_push_do_not_stay(tmp_path: Path, hub: LoopbackHub, hfpretrain: Command) -> None:
    """A sharded model after one in a single file: transformers would load the single file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tiny_run(tmp_path, "clm", f"model={{architecture: llama, config: {LLAMA}}}", "train.duration=1")
    assert hfpretrain("push", run.path, "tester/small", **hub.environment()).returncode == 0
    model = AutoModelForCausalLM.from_pretrained(run.path)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    AutoTokenizer.from_pretrained(run.path).save_pretrained(tmp_path / "sharded")
    done = hfpretrain("push", "sharded", "tester/small", **hub.environment())
    assert done.returncode == 0, done.stderr
    names = set(on_hub(hub, "tester/small"))
    assert "model.safetensors.index.json" in names
    assert "model.safetensors" not in names
    assert "README.md" in names, "a folder without a card takes none away"


def test_a_licence_that_the_hub_does_not_know(tmp_path: Path, hub: LoopbackHub, hfpretrain: Command) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=1", "hub.license=mine")
    done = hfpretrain("push", run.path, "tester/small", **hub.environment())
    assert done.returncode == 1
    assert '"license" must be one of' in done.stderr
    assert "Traceback" not in done.stderr


def test_only_the_model_goes_out(tmp_path: Path, hub: LoopbackHub, finished: Run, hfpretrain: Command) -> None:
    """Files below the folder are nobody's business, and files of an earlier model would be loaded with this one."""
    folder = tmp_path / "model"
    shutil.copytree(finished.path, folder)
    (folder / "notes").mkdir()
    for name in ("notes/secret.model", "notes/tokenizer.json", ".env", "modeling.py", "pytorch_model.bin"):
        (folder / name).write_text("secret")
    old = {name: File(b"{}", large=False) for name in ("added_tokens.json", "chat_template.jinja", "own.txt")}
    hub.repositories["tester/small"] = Repository(private=True)
    hub.repositories["tester/small"].commit("main", old, "an earlier model")
    done = hfpretrain("push", folder, "tester/small", **hub.environment())
    assert done.returncode == 0, done.stderr
    assert set(on_hub(hub, "tester/small")) == MODEL | CARD | {"own.txt"}
    (folder / "merges.txt").symlink_to("/etc/hostname")
    done = hfpretrain("push", folder, "tester/small", **hub.environment())
    assert done.returncode == 2
    assert "merges.txt is a link out of the folder" in done.stderr


@pytest.mark.parametrize("revision", ["", " ", "a b", "a..b", "x.lock", "/x", "-x", "HEAD", "refs/pr/1", "0" * 40])
def test_what_cannot_be_a_branch(hub: LoopbackHub, finished: Run, hfpretrain: Command, revision: str) -> None:
    done = hfpretrain("push", finished.path, "tester/small", f"--revision={revision}", **hub.environment())
    assert done.returncode == 2, done.stderr
    assert "cannot name a branch" in done.stderr
    assert hub.requests == []


def test_a_signal_stops_a_push_at_once(tmp_path: Path, hub: LoopbackHub, finished: Run) -> None:
    """While large files are on their way on threads of the library."""
    hub.fault = lambda number, request: Fault(503, seconds=60) if request.method == "PUT" else None
    command = [sys.executable, "-m", "hfpretrain", "push", str(finished.path), "tester/small"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | hub.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(request.method == "PUT" for request in hub.requests):
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.wait(timeout=30)
        assert time.monotonic() - began < 10
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 130
    assert "stopped; the same push again sends only what is missing" in said


def test_a_signal_while_a_finished_run_is_pushed(tmp_path: Path, hub: LoopbackHub) -> None:
    """It is not waited for, and says what there is and what to do."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "clm", "train.duration=1", "hub={repo_id: tester/run}")))
    hub.fault = lambda number, request: Fault(503, seconds=60) if request.method == "PUT" else None
    command = [sys.executable, "-m", "hfpretrain", "train", str(recipe)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | hub.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert any("is pushed now" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"error: {tmp_path / 'runs' / 'tiny'} is finished, and not pushed yet\n  hint: the same command" in said


@pytest.fixture
def left_over(tmp_path: Path, hub: LoopbackHub, hfpretrain: Command) -> Run:
    """A finished run of which nothing could be pushed: the Hub was away."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_recipe(tmp_path, "clm", "hub={repo_id: tester/run, push: checkpoints}")))
    hub.fault = lambda number, request: Fault(500)
    done = hfpretrain("train", recipe, **hub.environment())
    assert done.returncode == 0, done.stderr
    hub.fault = lambda number, request: None
    return Run(tmp_path / "runs" / "tiny")


def test_resuming_a_finished_run_pushes_what_is_left(hub: LoopbackHub, left_over: Run, hfpretrain: Command) -> None:
    recipe = left_over.path.parent.parent / "recipe.yaml"
    done = hfpretrain("train", recipe, "--resume", **hub.environment())
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories["tester/run"].branches) == {"main", "step-5", "step-10", "step-12"}
    assert on_hub(hub, "tester/run") == hashes(left_over.path)
    requests = len(hub.requests)
    again = hfpretrain("train", recipe, "--resume", **hub.environment())
    assert "nothing to do" in again.stderr
    assert len(hub.requests) == requests


def test_what_waits_for_one_repository_goes_to_no_other(hub: LoopbackHub, left_over: Run, hfpretrain: Command) -> None:
    done = hfpretrain("push", left_over.path, "tester/other", "--public", **hub.environment())
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories["tester/other"].branches) == {"main"}
    assert "for another repository, tester/run: 3" in done.stderr
    assert len(list(left_over.unpushed.iterdir())) == 3


def test_a_checkpoint_half_taken_away_does_not_stop_the_others(
    hub: LoopbackHub, left_over: Run, hfpretrain: Command
) -> None:
    (left_over.unpushed / "step-5" / "config.json").unlink()
    done = hfpretrain("push", left_over.path, "tester/run", **hub.environment())
    assert done.returncode == 0, done.stderr
    assert "step-5 is not pushed" in done.stderr
    assert set(hub.repositories["tester/run"].branches) == {"main", "step-10", "step-12"}


def test_a_refusal_of_the_faster_transfer_is_a_refusal(hub: LoopbackHub, finished: Run, hfpretrain: Command) -> None:
    """Xet, which uploads where it is installed, asks for a token of its own first."""
    hub.fault = lambda number, request: Fault(403) if "xet-write-token" in request.path else None
    done = hfpretrain("push", finished.path, "tester/small", **hub.environment(HF_HUB_DISABLE_XET="0"))
    assert any("xet-write-token" in request.path for request in hub.requests)
    assert done.returncode == 1
    assert "the Hub refused to write (status 403)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_silent_after_a_lost_connection_is_given_up(tmp_path: Path, finished: Run) -> None:
    """The library makes a new client after each failed connection, which would wait for ever."""
    code = f"""
from huggingface_hub import get_session, close_session
from hfpretrain.publish import push
try:
    push({str(finished.path)!r}, "tester/small")
except Exception as error:
    print(error)
close_session()
print(get_session().timeout.read)
"""
    with LoopbackHub() as gone:
        environment = os.environ | gone.environment(HF_HUB_DOWNLOAD_TIMEOUT="7")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "7.0", done.stderr


def test_two_hundred_branches_have_two_hundred_names() -> None:
    recipe = from_mapping(
        {
            "objective": "clm",
            "data": {"sources": [{"builtin": "everyday"}]},
            "hub": {"repo_id": "a/b", "push": "checkpoints", "name_by": "words"},
            "checkpoints": {"every": "1M words"},
        }
    )
    mix = Mix(parts=(0,), weights=(1,), repeat=(True,), block_size=1000, words_per_token=(Fraction("6.1237"),))
    order = lay_out([mix], [10**9], batch_size=1, duration=Amount.steps(200_000))
    plan = Plan(steps=200_000, seconds=None, order=order)
    steps = [step for step in range(1, 200_001) if plan.due(recipe.checkpoints.every, step, 0, 0)]
    names = [branch_name(recipe, plan, step) for step in [*steps, 200_000]]
    assert names[:3] == ["chck_1M", "chck_2M", "chck_3M"]
    assert names[-2:] == ["chck_1224M", "chck_1224.74M"]
    assert len(set(names)) == len(names) == 1225
