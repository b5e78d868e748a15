"""A run learns, resumes bit for bit, does not depend on how a batch is cut, and saves what others can load."""

import dataclasses
import errno
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import LLAMA, metrics, same_weights, tiny_recipe, tiny_run, weights

from hfpretrain.data.batches import open_batches
from hfpretrain.errors import DataError, RecipeError, RunError, Stopped, TrainingError
from hfpretrain.evaluation import evaluate_model
from hfpretrain.files import damage
from hfpretrain.modeling.tokenizer import build_tokenizer, load_tokenizer
from hfpretrain.run import Run
from hfpretrain.training.loop import train
from hfpretrain.training.metrics import Metrics


def cut_back(run: Run, folder: Path, step: int) -> Run:
    """A copy of a finished run as it was when it was killed some time after the checkpoint at `step`."""
    copy = Run(folder)
    shutil.copytree(run.path, copy.path)
    copy.report_file.unlink()
    (copy.path / "model.safetensors").unlink()
    for path in copy.checkpoints.iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    return copy


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path: Path, objective: str) -> None:
    """Dropout, two micro-batches a step, over an epoch's end, in the middle of a logged window."""
    settings = ["train.micro_batch_size=2", "train.duration=40", "train.log_every=3", "checkpoints.keep=20"]
    whole = tiny_run(tmp_path, objective, *settings, name="whole")
    recipe = tiny_recipe(tmp_path, objective, *settings, name="resumed")
    blocks = json.loads(whole.report_file.read_text())["training_tokens"] / 16
    for step in (5, 25):
        resumed = cut_back(whole, Path(recipe.output_dir), step)
        assert step * 4 < blocks or step == 25
        assert blocks < 40 * 4, "the run has to go over an epoch's end"
        train(recipe, resume=True)
        assert same_weights(weights(whole), weights(resumed))
        assert metrics(whole) == metrics(resumed)
        shutil.rmtree(resumed.path)


def test_another_order_of_dropout_would_be_seen(tmp_path: Path) -> None:
    """The test above compares weights that do depend on the seed of the dropout."""
    assert not same_weights(
        weights(tiny_run(tmp_path, "clm", "seed=0", name="a")), weights(tiny_run(tmp_path, "clm", "seed=1", name="b"))
    )


def test_two_runs_of_a_recipe_are_equal(tmp_path: Path) -> None:
    one, other = tiny_run(tmp_path, "mlm", name="one"), tiny_run(tmp_path, "mlm", name="other")
    assert same_weights(weights(one), weights(other))
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_micro_batches_change_nothing_that_is_learnt(tmp_path: Path, objective: str) -> None:
    """8 x 1 equals 2 x 4: rows with few and many targets weigh by their targets, not by their micro-batch."""
    quiet = (
        ["model.config={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, "
         "hidden_dropout_prob: 0, attention_probs_dropout_prob: 0}"]
        if objective == "mlm"
        else ["model.config={n_embd: 32, n_layer: 2, n_head: 2, resid_pdrop: 0, embd_pdrop: 0, attn_pdrop: 0}"]
    )  # fmt: skip
    common = [*quiet, "train.batch_size=8", "train.duration=30"]
    runs = [
        tiny_run(tmp_path, objective, *common, f"train.micro_batch_size={size}", name=f"micro-{size}")
        for size in (8, 4, 1)
    ]
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in runs]
    assert len(losses[0]) == 30
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_the_loss_is_that_of_the_plain_model(tmp_path: Path) -> None:
    """Validation loss of a saved run, computed again by transformers alone over the held-out text."""
    run = tiny_run(
        tmp_path,
        "clm",
        f"model={{architecture: llama, config: {LLAMA}}}",
        f"data.sources.0.files={write_long(tmp_path)}",
        "data.packing=concat",
        "data.block_size=1024",
        "train.duration=2",
        "train.batch_size=1",
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
    ids = tokenizer((tmp_path / "long.txt").read_text())["input_ids"] + [tokenizer.eos_token_id]
    held_out = ids[-round(0.1 * len(ids)) :]
    assert len(held_out) < 1024
    with torch.no_grad():
        expected = model(torch.tensor([held_out]), labels=torch.tensor([held_out])).loss.item()
    report = run.report()
    assert report["validation_loss"] == pytest.approx(expected, abs=1e-5)
    assert report["validation_targets"] == len(held_out) - 1


def write_long(folder: Path) -> Path:
    path = folder / "long.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and the cat sleeps near the river. " * 200)
    return path


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=2")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert tiny_run(tmp_path, "clm", "train.duration=2", resume=True).path == run.path
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    with pytest.raises(RunError, match="not empty"):
        tiny_run(tmp_path, "clm", "train.duration=2")
    assert "to train on" not in caplog.text
    tiny_run(tmp_path, "clm", "train.duration=3", resume=True)
    assert f"{run.path} is finished: to train on, give its path as model.from" in caplog.text


def test_a_folder_of_something_else_is_no_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    Path(recipe.output_dir).mkdir(parents=True)
    (Path(recipe.output_dir) / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds files of something else"):
        train(recipe)


def test_resuming_completes_what_a_kill_left_of_the_end(tmp_path: Path) -> None:
    """The run was killed between moving its report into place and what comes after that."""
    run = tiny_run(tmp_path, "clm", "train.duration=2")
    run.card_file.unlink()
    run.partial.mkdir()
    tiny_run(tmp_path, "clm", "train.duration=2", resume=True)
    assert run.card_file.exists()
    assert not run.partial.exists()


def test_a_tokenizer_with_several_chat_templates(tmp_path: Path) -> None:
    """They are a folder among the files of the tokenizer, which is saved at the beginning and at the end."""
    from transformers import AutoTokenizer

    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_run(tmp_path, "clm", "train.duration=1", name="first").path)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe = tiny_recipe(tmp_path, "clm", f"tokenizer={{from: {tmp_path / 'tokenizer'}}}", name="second")
    run = train(recipe)
    run.report_file.unlink()
    assert train(recipe, resume=True).state == "finished"
    assert damage(run.path) is None
    for folder in (run.path, run.checkpoints / "step-00000012"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == templates
    (run.path / "additional_chat_templates" / "tool_use.jinja").write_text("")
    assert damage(run.path) == "additional_chat_templates/tool_use.jinja is not what was saved"


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    assert tiny_run(tmp_path, "clm", "train.duration=2", resume=True).state == "finished"


def test_resuming_with_another_recipe_or_other_data_is_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm")
    run.report_file.unlink()
    with pytest.raises(RunError, match=r"optimizer\.lr: 0\.001 before, 0\.002 now"):
        tiny_run(tmp_path, "clm", "optimizer.lr=2e-3", resume=True)
    corpus = tmp_path / "corpus.jsonl"
    text = corpus.read_text()
    os.utime(corpus)  # a file that was only copied is the same data
    assert tiny_run(tmp_path, "clm", resume=True).state == "finished"
    run.report_file.unlink()
    corpus.write_text(text + '{"text": "one more"}\n')
    with pytest.raises(RunError, match="the data is not what"):
        tiny_run(tmp_path, "clm", resume=True)


def test_the_same_text_in_other_tokens_is_other_data(tmp_path: Path) -> None:
    """As many tokens, with two words under each other's ids."""
    recipe = tiny_recipe(tmp_path, "mlm")
    tokenizers = []
    for number, swapped in enumerate((False, False, True)):
        tokenizer = build_tokenizer(recipe)
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        words = content["model"]["vocab"]
        if swapped:
            words["the"], words["fox"] = words["fox"], words["the"]
        tokenizer.save_pretrained(tmp_path / str(number))
        (tmp_path / str(number) / "tokenizer.json").write_text(json.dumps(content))
        tokenizers.append(load_tokenizer(str(tmp_path / str(number)), "mlm"))
    one, same, other = (open_batches(recipe, tokenizer).fingerprint for tokenizer in tokenizers)
    assert one == same != other


def test_a_longer_duration_goes_on(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm")
    run.report_file.unlink()
    assert tiny_run(tmp_path, "clm", "train.duration=15", resume=True).report()["steps"] == 15


def test_nothing_is_left_of_a_run_that_cannot_start(tmp_path: Path) -> None:
    """So that the next try, with the mistake mended, needs neither --resume nor another directory."""
    with pytest.raises(DataError, match="less than one block"):
        tiny_run(tmp_path, "clm", "data.block_size=4096", "model.config.n_positions=4096")
    assert not (tmp_path / "runs").exists()


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "clm", "train.duration=9", "checkpoints.every=2", "checkpoints.keep=3")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"step-{step:08d}" for step in (6, 8, 9)]


def test_tokens_epochs_and_minutes(tmp_path: Path) -> None:
    assert tiny_run(tmp_path, "clm", "train.duration=640 tokens", name="tokens").report()["steps"] == 10
    epochs = tiny_run(tmp_path, "clm", "train.duration=1 epochs", name="epochs").report()
    blocks = math.ceil(epochs["training_tokens"] / 16)
    assert epochs["steps"] == math.ceil(blocks / 4)
    timed = tiny_run(tmp_path, "mlm", "train.duration=0.02 minutes", "train.log_every=1", name="minutes")
    assert timed.report()["steps"] >= 1
    assert timed.report()["seconds"] >= 1.2


def test_mixed_units_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"schedule\.warmup: 10 steps"):
        tiny_run(tmp_path, "clm", "train.duration=1 minutes", "schedule.warmup=10 steps")


def test_a_loss_that_explodes_stops_the_run(tmp_path: Path) -> None:
    """Here because of a broken weight that only later positions meet."""
    run = tiny_run(tmp_path, "clm", name="first")
    broken = weights(run)
    broken["transformer.wpe.weight"][12] = float("nan")
    save_file(broken, run.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="step 1: the loss is not a finite number"):
        tiny_run(
            tmp_path,
            "clm",
            *(f"model={{from: {run.path}}}", "tokenizer=null", "train.log_every=10", "checkpoints.every=1"),
            name="second",
        )
    assert not list((tmp_path / "runs" / "second").rglob("step-*")), "weights that are no numbers are not saved"


def test_prompt_and_completion_pairs(tmp_path: Path) -> None:
    """The example of the recipe next-word-pairs: after it, each prompt is continued by its completion."""
    import hfpretrain

    pairs = tmp_path / "pairs.json"
    pairs.write_text(
        json.dumps({"input_texts": ["The quick brown", "The quick brown fox"], "output_texts": ["fox", "jumps"]})
    )
    run = tiny_run(
        tmp_path,
        "clm",
        f"data={{sources: [{{files: {pairs}, prompt_column: input_texts, completion_column: output_texts}}], "
        "validation: 0%}",
        "tokenizer={algorithm: byte}",
        "model.architecture=llama",
        f"model.config={json.dumps(LLAMA)}",
        "train.duration=120",
        "optimizer.lr=1e-2",
    )
    llm = hfpretrain.load(run.path, objective="clm")
    assert llm.generate("The quick brown", words=1) == "fox"
    assert llm.generate("The quick brown fox", words=1) == "jumps"


def test_weights_share_the_tokens(tmp_path: Path) -> None:
    from tiny import write_corpus

    write_corpus(tmp_path / "other.jsonl", seed=9)
    corpus, other = tmp_path / "corpus.jsonl", tmp_path / "other.jsonl"
    sources = f"data.sources=[{{files: {corpus}, weight: 3}}, {{files: {other}, weight: 1}}]"
    run = tiny_run(tmp_path, "clm", sources, "train.duration=4")
    assert run.state == "finished"


def test_going_on_from_a_run(tmp_path: Path) -> None:
    first = tiny_run(tmp_path, "mlm", name="first")
    more = tiny_run(tmp_path, "mlm", f"model={{from: {first.path}}}", "tokenizer={}", "optimizer.lr=1e-9", name="more")
    assert more.report()["validation_loss"] == pytest.approx(first.report()["validation_loss"], abs=1e-3)


def test_going_on_from_a_model_that_is_gone_since(tmp_path: Path) -> None:
    """The checkpoint holds all of it; and the card names no folder that is not there, as if it were on the Hub."""
    base = tiny_run(tmp_path, "mlm", "train.duration=2", name="base")
    settings = [f"model={{from: {base.path}}}", "tokenizer={}"]
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    stopped = tiny_recipe(tmp_path, "mlm", *settings, name="stopped")
    with pytest.raises(Stopped):
        train(stopped, stop_after=7)
    shutil.rmtree(base.path)
    resumed = train(stopped, resume=True)
    assert same_weights(weights(whole), weights(resumed))
    assert resumed.report()["base_model"] is None
    assert str(base.path) not in resumed.card_file.read_text()


def test_others_can_load_what_was_trained(tmp_path: Path) -> None:
    """In a process that cannot import hfpretrain: a pipeline, the Auto classes, and the checkpoints too."""
    masked, causal = tiny_run(tmp_path, "mlm", name="masked"), tiny_run(tmp_path, "clm", name="causal")
    code = f"""
import sys
sys.modules["hfpretrain"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
fill = pipeline("fill-mask", model={str(masked.path)!r})
assert len(fill("the quick [MASK] fox")) == 5
for place in {[str(causal.path), str(causal.checkpoints / "step-00000012")]!r}:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    inputs = tokenizer("the quick", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
print("loaded")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "no_network")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "loaded", done.stderr


def test_changes_that_are_allowed_are_said_and_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(tmp_path, "clm")
    changed = tiny_recipe(tmp_path, "clm", "optimizer.lr=2e-3", "train.duration=15")
    run.report_file.unlink()
    assert train(changed, resume=True, allow_changes=True).report()["changes"] == [
        {"after_step": 12, "changed": ["optimizer.lr: 0.001 before, 0.002 now"]}
    ]
    assert "what is learnt from here on is changed: optimizer.lr: 0.001 before, 0.002 now" in caplog.text
    run.report_file.unlink()
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"text": "one more"}\n')
    changed = tiny_recipe(tmp_path, "clm", "optimizer.lr=2e-3", "train.duration=18")
    report = train(changed, resume=True, allow_changes=True).report()
    assert report["changes"][1] == {"after_step": 15, "changed": ["the data"]}
    card = run.card_file.read_text()
    assert "| changed after step 12 | optimizer.lr |" in card
    assert "| changed after step 15 | the data |" in card
    run.report_file.unlink()
    with pytest.raises(RunError, match=r"optimizer\.name: adamw before, muon now"):
        train(tiny_recipe(tmp_path, "clm", "optimizer={name: muon, lr: 2e-3}"), resume=True, allow_changes=True)


def test_a_change_counts_from_the_first_checkpoint_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before that, nothing was learnt with it: it has to be allowed again, or may be undone."""
    recipe, changed = tiny_recipe(tmp_path, "clm"), tiny_recipe(tmp_path, "clm", "optimizer.lr=2e-3")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    run = Run(Path(recipe.output_dir))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Metrics, "write", killed)
        train(changed, resume=True, allow_changes=True)
    assert "lr: 0.002" in run.recipe_file.read_text()
    with pytest.raises(RunError, match=r"optimizer\.lr: 0\.001 before, 0\.002 now"):
        train(changed, resume=True)
    other = Run(Path(shutil.copytree(run.path, tmp_path / "other")))
    other.recipe_file.unlink()
    with pytest.raises(RunError, match=r"optimizer\.lr: 0\.001 before, 0\.002 now"):
        train(dataclasses.replace(changed, output_dir=str(other.path)), resume=True)
    report = train(dataclasses.replace(changed, output_dir=str(other.path)), resume=True, allow_changes=True).report()
    assert report["changes"] == [{"after_step": 7, "changed": ["optimizer.lr: 0.001 before, 0.002 now"]}]
    assert train(recipe, resume=True).report()["changes"] == []
    assert same_weights(weights(run), weights(tiny_run(tmp_path, "clm", name="whole")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.batch_size=2", r"train\.batch_size: 4 before, 2 now"),
        ("data.block_size=32", r"data\.block_size: 16 before, 32 now"),
    ],
)
def test_what_places_in_the_data_are_counted_by_cannot_be_changed(tmp_path: Path, change: str, said: str) -> None:
    """Steps would be of other blocks: some learnt twice, others never, and the count of tokens wrong."""
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm"), stop_after=3)
    changed = tiny_recipe(tmp_path, "clm", change)
    with pytest.raises(RunError, match=said) as caught:
        train(changed, resume=True, allow_changes=True)
    key = change.split("=")[0]
    assert f"no run goes on with another {key}" in caught.value.message
    assert "--allow-changes" not in str(caught.value.hint)


def test_a_duration_that_is_over_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "clm")
    with pytest.raises(Stopped):
        train(recipe, stop_after=7)
    for less in ("5 steps", "0.001 seconds"):
        with pytest.raises(
            RunError, match=rf"train\.duration: .* has trained 7 steps in .* more than {less}"
        ) as caught:
            tiny_run(tmp_path, "clm", f"train.duration={less}", resume=True)
        assert "train.duration=7 ends it where it is" in str(caught.value.hint)
    assert train(recipe, resume=True).report()["steps"] == 12


@pytest.mark.parametrize(("step", "part"), [(7, False), (6, True)])
def test_a_run_can_be_ended_where_it_is(tmp_path: Path, step: int, part: bool) -> None:
    """With an evaluation of what the model is then, once, and on all that is held out."""
    settings = ["evaluation={every: 6, max_tokens: 32}" if part else "evaluation.every=6"]
    with pytest.raises(Stopped):
        train(tiny_recipe(tmp_path, "clm", *settings), stop_after=step)
    ended = tiny_run(tmp_path, "clm", *settings, f"train.duration={step}", resume=True)
    expected = evaluate_model(str(ended.path))
    report, evaluations = ended.report(), [line for line in ended.metrics() if "validation_loss" in line]
    assert [line["step"] for line in evaluations] == [6] + [7] * (step == 7)
    for found in (report, evaluations[-1]):
        assert found["validation_loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["validation_targets"] == expected["targets"]
    assert report["steps"] == step


def test_other_surroundings_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tiny_run(tmp_path, "clm", name="whole")
    recipe = tiny_recipe(tmp_path, "clm", name="resumed")
    cut_back(whole, Path(recipe.output_dir), 10)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        train(recipe, resume=True)
    finally:
        torch.set_num_threads(threads)
    said = [record.message for record in caplog.records if "last bits may differ" in record.message]
    assert [sentence.split(": ")[1] for sentence in said] == [f"threads {threads} before, {threads + 1} now"]


@pytest.mark.parametrize("over", ["disk", "NFS"])
def test_two_runs_in_one_directory_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str) -> None:
    recipe = tiny_recipe(tmp_path, "clm")
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor, operation)

    if over == "NFS":  # there it is as Linux says: only what is open for writing
        monkeypatch.setattr(fcntl, "flock", flock)
    run = Run(Path(recipe.output_dir))
    with run.locked(), pytest.raises(RunError, match="another process is training in"):
        train(recipe)
    assert run.state == "empty", "as a run that was killed just then: the file that was locked is no content"
    assert train(recipe).state == "finished"


def test_a_run_that_cannot_be_locked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert tiny_run(tmp_path, "clm", "train.duration=1").state == "finished"
    assert "cannot be locked (No locks available): nothing keeps another process from training in it" in caplog.text
