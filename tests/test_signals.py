"""Signals at any point: at once where there is nothing to save, after the step else, and exactly gone on from."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from tiny import metrics, same_weights, tiny_recipe, tiny_run, weights, write_corpus

from hfpretrain.errors import Stopped
from hfpretrain.recipe import dump, load
from hfpretrain.run import Run
from hfpretrain.training.loop import train
from hfpretrain.training.metrics import Metrics


def started(recipe: Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hfpretrain", "train", str(recipe)]
    return subprocess.Popen(command, cwd=recipe.parent, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def stopped_at(recipe: Path, line: str) -> str:
    """What a training says after SIGTERM, which is sent when it says a line that begins so; it ends with 143."""
    with started(recipe) as process:
        assert process.stderr
        assert any(said.startswith(line) for said in process.stderr)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, rest
    return rest


def test_a_signal_stops_and_resume_goes_on(tmp_path: Path, hfpretrain: Command) -> None:
    """A real process, a real SIGTERM in the middle, exit status 143, and the weights of an undisturbed run."""
    settings = ["train.duration=300", "checkpoints.every=1000", "evaluation.every=1000"]
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "mlm", *settings, name="stopped")))
    rest = stopped_at(file, "step ")
    assert "stopped by signal 15" in rest
    assert "Traceback" not in rest
    resumed = hfpretrain("train", file, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    assert same_weights(weights(whole), weights(tmp_path / "runs" / "stopped"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_data_is_prepared_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """It would take minutes; nothing is left behind, and no run that would ask for --resume."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "objective: clm\ntokenizer: {algorithm: byte}\ndata: {sources: [{builtin: everyday, size: 500MB}]}\n"
    )
    cache = tmp_path / "cache"
    with started(recipe, HFPRETRAIN_CACHE=str(cache)) as process:
        while not list(cache.glob("tokens/.building-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1] == f"error: stopped by signal {number:d}; there was nothing to save"
    assert not list(cache.glob("tokens/*")) + list(cache.glob("tokens/.*"))
    assert not (tmp_path / "runs").exists()


def test_a_signal_ends_what_python_does_not_hear(tmp_path: Path) -> None:
    """In the midst of a library's code that knows no signals."""
    code = """
import hashlib, os, signal, threading
from hfpretrain.training import signals
signals.GRACE_SECONDS = 0.1
with signals.stop_on_signals():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM


LOST = """
import os, signal, time
from hfpretrain.training import signals
class Cleared:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
signals.GRACE_SECONDS = 0.5
with signals.stop_on_signals() as request:
    Cleared()
    print("went on", flush=True)
    {then}
"""


SEVERAL = """
import hashlib, os, signal, threading
from hfpretrain.training import signals
signals.SAME_SECONDS = {same}
with signals.stop_on_signals() as request:
    request.training_begins()
    for name in "{names}".split():
        os.kill(os.getpid(), getattr(signal, "SIG" + name))
    print("asked by", request.asked(1), flush=True)
    {then}
for thread in threading.enumerate():
    if thread.name == "hfpretrain-signals":
        thread.join()  # it has seen them all
print("saved")
"""


def sent_several(
    names: str, *, same: float, then: str = "", launched: bool = False
) -> "subprocess.CompletedProcess[str]":
    """What comes of a run that gets these signals while it trains, and then does `then`."""
    code = SEVERAL.format(names=names, same=same, then=then)
    environment = os.environ | ({"TORCHELASTIC_RUN_ID": "none"} if launched else {})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env=environment
    )


@pytest.mark.parametrize(
    ("names", "same"),
    [
        *(("TERM TERM", 60), ("INT TERM", 60), ("TERM INT", 60)),  # of a launcher, which passes its own on
        *(("USR1 TERM", 0), ("ALRM TERM", 0)),  # the warning, and the limit
        *(("TERM ALRM", 0), ("USR1 ALRM", 0), ("ALRM USR1", 0), ("TERM USR1", 0), ("USR1 USR1", 0)),
    ],
)
def test_a_signal_that_follows_another_lets_the_run_save(names: str, same: float) -> None:
    done = sent_several(names, same=same, launched=same > 0)
    first = getattr(signal, "SIG" + names.split()[0])
    assert (done.returncode, done.stdout) == (0, f"asked by {first:d}\nsaved\n"), done.stderr
    assert done.stderr.count("saving after this step") == 1


@pytest.mark.parametrize(
    ("names", "same"), [("TERM TERM", 0), ("INT TERM", 0), ("USR1 TERM INT TERM", 0), ("INT INT", 60), ("TERM INT", 60)]
)
def test_who_asks_again_is_obeyed_at_once(names: str, same: float) -> None:
    """Also in the midst of a library's code that knows no signals, as where processes wait for one that is gone. A
    Ctrl-C is no copy of another one, without a launcher."""
    done = sent_several(names, same=same, then="hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)")
    assert done.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT), done.stderr
    assert "saved" not in done.stdout


CLEANED = """
import os, signal
from hfpretrain.training.signals import stop_on_signals
with stop_on_signals():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleaned up")
"""


def test_a_launchers_copy_lets_what_was_prepared_be_cleaned_up() -> None:
    done = subprocess.run([sys.executable, "-c", CLEANED], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == "cleaned up\n"
    assert done.stderr.splitlines()[-1].endswith("StopNow: stopped by signal 15; there was nothing to save")


NESTED = """
import os, signal
from hfpretrain.training.signals import stop_on_signals
with stop_on_signals():  # the command line's
    with stop_on_signals() as request:  # that of the training in it
        request.training_begins()
        {first}
    os.kill(os.getpid(), signal.SIGTERM)
print("ended as it would have")
"""


@pytest.mark.parametrize("first", ["os.kill(os.getpid(), signal.SIGTERM)", ""])
def test_a_signal_after_the_run_is_saved(first: str) -> None:
    """It is not said that there was nothing to save; and one after another says nothing at all."""
    code = NESTED.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    if first:
        assert done.stdout == "ended as it would have\n", done.stderr
    else:
        assert done.stderr.splitlines()[-1].endswith("StopNow: stopped by signal 15; the run is saved")


@pytest.mark.parametrize("then", ["request.training_begins()", "time.sleep(60)"])
def test_a_signal_that_comes_while_an_object_is_cleared_away(then: str) -> None:
    """Python drops what is raised there, and says so in a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", LOST.format(then=then)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout == "went on\n"
    assert "Exception ignored" not in done.stderr
    if then == "time.sleep(60)":
        assert done.returncode == 128 + signal.SIGTERM
    else:
        assert done.stderr.splitlines()[-1].endswith("StopNow: stopped by signal 15; there was nothing to save")


def test_a_signal_during_an_evaluation(tmp_path: Path, hfpretrain: Command) -> None:
    """The evaluation is given up for it, and made first of all when the run goes on."""
    write_corpus(tmp_path / "corpus.jsonl", documents=500)
    settings = ["data.validation=80%", "train.micro_batch_size=1", "train.duration=8", "evaluation.every=6"]
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "mlm", *settings, name="stopped")))
    said = stopped_at(file, "step 6/")
    assert "stopped by signal 15 after step 6; the run is saved" in said
    run = Run(tmp_path / "runs" / "stopped")
    assert "validation_loss" not in metrics(run)[-1], "the signal came too late to be one during the evaluation"
    assert hfpretrain("train", file, "--resume").returncode == 0
    whole = tiny_run(tmp_path, "mlm", *settings, name="whole")
    assert metrics(run) == metrics(whole)
    assert same_weights(weights(run), weights(whole))


def test_the_evaluation_at_the_end_is_made_up_for(tmp_path: Path) -> None:
    """A signal while the last evaluation goes on: here before it begins, which is the same to it."""
    whole = tiny_run(tmp_path, "clm", name="whole")
    recipe = tiny_recipe(tmp_path, "clm", name="stopped")
    when_metrics_are_written(15, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="after step 12"):
        train(recipe)
    run = train(recipe, resume=True)
    assert metrics(run) == metrics(whole)
    assert run.report()["validation_loss"] == whole.report()["validation_loss"]


def test_an_evaluation_that_was_made_up_for_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was killed after it, before another checkpoint, and makes it up once more."""
    settings = ["checkpoints.every=100"]
    whole = tiny_run(tmp_path, "clm", *settings, name="whole")
    recipe = tiny_recipe(tmp_path, "clm", *settings, name="stopped")
    when_metrics_are_written(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="after step 6"):
        train(recipe)
    run, real = Run(Path(recipe.output_dir)), Metrics.write
    assert "validation_loss" not in metrics(run)[-1]

    def killed(self: Metrics, line: dict[str, Any]) -> None:
        if line["step"] == 8:
            raise KeyboardInterrupt
        real(self, line)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Metrics, "write", killed)
        train(recipe, resume=True)
    assert metrics(run) == metrics(whole)[: len(metrics(run))]
    assert "validation_loss" in metrics(run)[-2]
    train(recipe, resume=True)
    assert metrics(run) == metrics(whole)


def when_metrics_are_written(times: int, act: Callable[[], object]) -> None:
    """Has `act` called when metrics.jsonl is opened to write for that many times.

    Python raises an audit event for it; hooks cannot be taken away, so each acts once.
    """
    left = [times]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not left or not str(arguments[0]).endswith("metrics.jsonl"):
            return
        if isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY:
            left[0] -= 1
            if not left[0]:
                left.clear()
                act()

    sys.addaudithook(hook)


def test_the_time_of_a_job_is_kept(tmp_path: Path) -> None:
    """train.max_time ends as a signal does, SIGALRM's, and --resume goes on. The hour passes in the third step."""
    recipe = tiny_recipe(tmp_path, "clm", "train.max_time=1 hour", name="stopped")
    left: list[float] = []
    when_metrics_are_written(3, lambda: left.append(signal.setitimer(signal.ITIMER_REAL, 1e-6)[0]))
    with pytest.raises(Stopped, match=r"train\.max_time is over after step \d+; the run is saved") as stop:
        train(recipe)
    assert 3000 < left[0] < 3600
    assert stop.value.exit_status == 128 + signal.SIGALRM
    run = Run(Path(recipe.output_dir))
    assert int(max(run.checkpoints.iterdir()).name.removeprefix("step-")) >= 3
    assert load(run.recipe_file).train.max_time == recipe.train.max_time
    whole = tiny_run(tmp_path, "clm", name="whole")
    assert same_weights(weights(train(recipe, resume=True)), weights(whole))


def test_max_time_where_no_signal_is_heard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Python hears signals on its main thread alone."""
    recipe = tiny_recipe(tmp_path, "clm", "train.duration=1", "train.max_time=1 hour")
    with ThreadPoolExecutor(max_workers=1) as thread:
        assert thread.submit(train, recipe).result().state == "finished"
    assert [record.message for record in caplog.records if "train.max_time is not kept" in record.message]


def test_stopping_after_a_step(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path, "clm", name="whole")
    recipe = tiny_recipe(tmp_path, "clm", name="stopped")
    with pytest.raises(Stopped, match="after step 7"):
        train(recipe, stop_after=7)
    assert same_weights(weights(train(recipe, resume=True)), weights(whole))


def test_a_launcher_that_ends_stops_its_run(tmp_path: Path) -> None:
    """`accelerate launch` dies of a signal without passing it on; what it started saves and ends all the same."""
    settings = ["train.duration=100000", "evaluation.every=50%", "checkpoints.every=50%", "train.log_every=10"]
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "clm", *settings, name="stopped")))
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes=1", "-m", "hfpretrain", "train", str(file)]
    metrics_file = tmp_path / "runs" / "stopped" / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-m", *launch], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as launcher:
        while not metrics_file.exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.stderr
        said = launcher.stderr.read()  # until the last process that holds it has ended
    assert launcher.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert "stopped by signal 15 after step" in said
    assert list((tmp_path / "runs" / "stopped" / "checkpoints").glob("step-*"))


def test_a_signal_to_the_launcher_and_its_processes(tmp_path: Path) -> None:
    """As scancel, systemd and preemption send it, to all at once; torchrun also passes its own on to two of them."""
    settings = ["train.duration=100000", "evaluation.every=50%", "checkpoints.every=50%", "data.validation=0%"]
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny_recipe(tmp_path, "clm", *settings, name="stopped")))
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    metrics_file = tmp_path / "runs" / "stopped" / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", *torchrun, "-m", "hfpretrain", "train", str(file)],
        cwd=tmp_path,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        while not metrics_file.exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        workers = children(launcher.pid)
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        assert launcher.stderr
        assert any("saving after this step" in line for line in launcher.stderr)
        launcher.send_signal(signal.SIGTERM)
        said = launcher.stderr.read()
    assert "stopped by signal 15 after step" in said
    assert "nothing to save" not in said
    run = Run(tmp_path / "runs" / "stopped")
    (checkpoint,) = run.checkpoints.iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    train(tiny_recipe(tmp_path, "clm", *settings, f"train.duration={step + 2}", name="stopped"), resume=True)
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 3))


def children(pid: int) -> list[int]:
    """The processes that a process has started, as ps tells."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in listed.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]
