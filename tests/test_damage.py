"""Whatever happens to a file of a checkpoint or of a finished run is seen, and a run goes on from what is whole."""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command
from safetensors.torch import load_file, save_file
from tiny import metrics, same_weights, tiny_run, weights

from hfpretrain.errors import CheckpointError
from hfpretrain.files import MANIFEST, commit_folder, damage, write_manifest
from hfpretrain.inference import MaskedLM
from hfpretrain.inference import load as load_model
from hfpretrain.publish import check_whole
from hfpretrain.recipe import dump, load
from hfpretrain.run import Run, checkpoint_damage, newest_whole
from hfpretrain.training.checkpoint import prune, restore_checkpoint
from hfpretrain.training.loop import train
from hfpretrain.training.session import open_accelerator, prepare_session
from hfpretrain.verify import verify

SETTINGS = ["checkpoints.every=4", "checkpoints.keep=3"]
OLD, MIDDLE, NEW = "step-00000004", "step-00000008", "step-00000012"
ALIKE = ["config.json", "tokenizer.json", "tokenizer_config.json"]
"""The files that do not change with the step."""
FILES = [*ALIKE, "model.safetensors", "optimizer.bin", "progress.json", "random_states_0.pkl", MANIFEST]
MORE = {"clm": ["generation_config.json"], "mlm": []}


def flipped(place: float) -> Callable[[Path, Path], None]:
    """Flips a bit of the byte at that share of the file."""

    def flip(file: Path, _other: Path) -> None:
        content = bytearray(file.read_bytes())
        content[round(place * (len(content) - 1))] ^= 1 << len(content) % 8
        replace(file, bytes(content))

    return flip


def replace(file: Path, content: bytes) -> None:
    """Anew, as the file that is there is linked to others."""
    file.unlink()
    file.write_bytes(content)


def into_folder(file: Path, _other: Path) -> None:
    file.unlink()
    file.mkdir()


def into_link(file: Path, _other: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "missing": lambda file, _other: file.unlink(),
    "empty": lambda file, _other: replace(file, b""),
    "half": lambda file, _other: replace(file, file.read_bytes()[: file.stat().st_size // 2]),
    "longer": lambda file, _other: replace(file, file.read_bytes() + b"x"),
    "first": flipped(0),
    "middle": flipped(0.5),
    "last": flipped(1),
    "folder": into_folder,
    "link": into_link,
    "other": lambda file, other: replace(file, other.read_bytes()),
}
CASES = [
    (objective, name, how)
    for objective in ("clm", "mlm")
    for name in FILES + MORE[objective]
    for how in DAMAGES
    if how != "other" or name not in ALIKE + MORE[objective]
]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 150


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """An undisturbed run of each objective, with three checkpoints."""
    folder = tmp_path_factory.mktemp("prepared")
    return {objective: tiny_run(folder, objective, *SETTINGS, name=objective) for objective in ("clm", "mlm")}


def linked(run: Run, folder: Path) -> Run:
    """A copy that costs nothing, as it was when it was killed at its end: its files are replaced, not written to."""
    shutil.copytree(run.path, folder, copy_function=os.link)
    for name in ("report.json", "model.safetensors", MANIFEST):
        (folder / name).unlink()
    copy = Run(folder)
    replace(copy.metrics_file, copy.metrics_file.read_bytes())  # which is written to
    replace(copy.recipe_file, dump(dataclasses.replace(load(run.recipe_file), output_dir=str(folder))).encode())
    return copy


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in found if "waiting for data" not in message]


@pytest.mark.parametrize(("objective", "name", "how"), CASES)
def test_every_damage_of_every_file_is_seen(
    prepared: dict[str, Run], tmp_path: Path, objective: str, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = linked(prepared[objective], tmp_path / "run").checkpoints
    assert newest_whole(folder) == folder / NEW
    assert {path.name for path in (folder / NEW).iterdir()} == {*FILES, *MORE[objective]}
    DAMAGES[how](folder / NEW / name, folder / MIDDLE / name)
    assert newest_whole(folder) == folder / MIDDLE
    (said,) = warnings(caplog)
    assert NEW in said
    assert MIDDLE in said
    if name != MANIFEST:  # of another step, or of nothing, it says something else of every file
        assert name in said


def whole_folder(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / NEW)
    shutil.copytree(checkpoints / OLD, checkpoints / NEW)


def all_but(kept: str) -> Callable[[Path], None]:
    def replace_others(checkpoints: Path) -> None:
        for path in (checkpoints / OLD).iterdir():
            if path.name != kept:
                replace(checkpoints / NEW / path.name, path.read_bytes())

    return replace_others


def nothing_in_it(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / NEW)
    (checkpoints / NEW).mkdir()


def a_file(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / NEW)
    (checkpoints / NEW).write_text("")


def a_link_to_nothing(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / NEW)
    (checkpoints / NEW).symlink_to("nowhere")


def an_entry_less(checkpoints: Path) -> None:
    """A file damaged, and the manifest changed so that it does not speak of it."""
    file = checkpoints / NEW / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["files"]["optimizer.bin"]
    replace(file, json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "change",
    [
        *(whole_folder, nothing_in_it, a_file, a_link_to_nothing, an_entry_less),
        *(all_but(name) for name in (*FILES, "none")),
    ],
)
def test_a_folder_of_another_step_is_seen(
    prepared: dict[str, Run], tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = linked(prepared["mlm"], tmp_path / "run").checkpoints
    change(folder)
    assert newest_whole(folder) == folder / MIDDLE
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("objective", "name", "how"),
    [
        ("clm", "progress.json", "other"),
        ("mlm", MANIFEST, "half"),
    ],
)
def test_a_run_goes_back_and_ends_as_if_nothing_had_been(
    prepared: dict[str, Run], tmp_path: Path, objective: str, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    resumed = linked(prepared[objective], tmp_path / "run")
    DAMAGES[how](resumed.checkpoints / NEW / name, resumed.checkpoints / OLD / name)
    train(load(resumed.recipe_file), resume=True)
    assert same_weights(weights(prepared[objective]), weights(resumed))
    assert metrics(prepared[objective]) == metrics(resumed)
    assert len(warnings(caplog)) == 1
    kept = sorted(path.name for path in resumed.checkpoints.iterdir())
    assert kept == [OLD, MIDDLE, NEW], "the damaged one was set aside, and went when another had taken its place"
    assert damage(resumed.path) is None


def test_a_damaged_tokenizer_beside_the_checkpoints_is_of_no_matter(prepared: dict[str, Run], tmp_path: Path) -> None:
    """Two words changed places in it; the checkpoints hold the one that the run learnt with."""
    resumed = linked(prepared["mlm"], tmp_path / "run")
    shutil.rmtree(resumed.checkpoints / NEW)
    file = resumed.path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["the"], words["fox"] = words["fox"], words["the"]
    replace(file, json.dumps(tokenizer).encode())
    train(load(resumed.recipe_file), resume=True)
    assert same_weights(weights(prepared["mlm"]), weights(resumed))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (resumed.path / name).read_bytes() == (prepared["mlm"].path / name).read_bytes()


def test_the_command_goes_back_over_two_damaged_ones(
    prepared: dict[str, Run], tmp_path: Path, hfpretrain: Command
) -> None:
    resumed = linked(prepared["mlm"], tmp_path / "run")
    DAMAGES["last"](resumed.checkpoints / NEW / "random_states_0.pkl", Path())
    DAMAGES["empty"](resumed.checkpoints / MIDDLE / "tokenizer.json", Path())
    done = hfpretrain("train", "run/recipe.yaml", "--resume")
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "damaged" in line]
    assert NEW in said
    assert MIDDLE in said
    assert said.endswith(f"going back to {resumed.checkpoints / OLD}")
    assert same_weights(weights(prepared["mlm"]), weights(resumed))
    assert metrics(prepared["mlm"]) == metrics(resumed)


def test_with_none_whole_the_command_says_what_is_there(
    prepared: dict[str, Run], tmp_path: Path, hfpretrain: Command
) -> None:
    run = linked(prepared["clm"], tmp_path / "run")
    damaged = [(OLD, "config.json", "missing"), (MIDDLE, "optimizer.bin", "half"), (NEW, MANIFEST, "link")]
    for step, name, how in damaged:
        DAMAGES[how](run.checkpoints / step / name, Path())
    before = {path: path.lstat().st_mtime_ns for path in run.path.rglob("*")}
    done = hfpretrain("train", "run/recipe.yaml", "--resume")
    assert done.returncode == 1, done.stderr
    for said in (
        f"{NEW} is damaged (manifest.json is missing)",
        f"{MIDDLE} is damaged (optimizer.bin is not what was saved)",
        f"{OLD} is damaged (config.json is missing)",
        "hint: ",
    ):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "step 1 " not in done.stderr
    assert {path: path.lstat().st_mtime_ns for path in run.path.rglob("*")} == before, "nothing was touched"


def test_damaged_ones_set_aside_do_not_make_a_fresh_start(prepared: dict[str, Run], tmp_path: Path) -> None:
    folder = linked(prepared["clm"], tmp_path / "run").checkpoints
    (folder / NEW).rename(folder / f"damaged-{NEW}")
    shutil.rmtree(folder / OLD)
    shutil.rmtree(folder / MIDDLE)
    with pytest.raises(CheckpointError, match=f"damaged-{NEW} was set aside before"):
        newest_whole(folder)


def test_damaged_ones_stay_until_the_run_has_passed_them(tmp_path: Path) -> None:
    for name in (OLD, MIDDLE, f"damaged-{MIDDLE}", f"damaged-{NEW}"):
        (tmp_path / name).mkdir()
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"damaged-{NEW}", OLD, MIDDLE]


@pytest.mark.parametrize("name", [OLD, f".{OLD}.partial", f"damaged-{OLD}"])
def test_what_a_kill_leaves_of_a_removal_is_removed_later(
    prepared: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = linked(prepared["clm"], tmp_path / "run").checkpoints
    (folder / OLD).rename(folder / name)

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(folder, 2)
    assert len(list(folder.iterdir())) == 3
    prune(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == [MIDDLE, NEW]


ODD = [
    b"",
    b"{",
    b"[]",
    b"5",
    b'"x"',
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"step": ' + b"[" * 100_000,
    b'{"a": "\\ud800"}',
]
ODD_STEPS = [b"NaN", b"-Infinity", b"1e999", b"1" + b"0" * 400, b"9" * 5_000, b'"7"', b"[7]", b"{}", b"null"]


@pytest.mark.parametrize("content", [*ODD, *(b'{"step": ' + step + b"}" for step in ODD_STEPS)])
def test_odd_json_is_damage_and_no_more(prepared: dict[str, Run], tmp_path: Path, content: bytes) -> None:
    run = linked(prepared["clm"], tmp_path / "run")
    for name in (MANIFEST, "progress.json"):
        folder = shutil.copytree(run.checkpoints / NEW, tmp_path / name / NEW, copy_function=os.link)
        replace(folder / name, content)
        if name == "progress.json":
            (folder / MANIFEST).unlink()
            write_manifest(folder, of=NEW)
        assert checkpoint_damage(folder) is not None
    whole = run.metrics_file.read_bytes().splitlines()
    run.metrics_file.write_bytes(b"\n".join([*whole[:5], content, *whole[5:], content]))
    assert Run.metrics(run) == Run.metrics(prepared["clm"])
    assert not list(verify(run.path))[-1].good


def test_odd_lines_of_metrics_do_not_keep_a_run_from_its_end(prepared: dict[str, Run], tmp_path: Path) -> None:
    run = linked(prepared["clm"], tmp_path / "run")
    odd = [*ODD, b'{"step": 12, "loss": "low"}', b'{"step": 12, "loss": 1.0}', b'{"step": 12, "validation_loss": []}']
    run.metrics_file.write_bytes(b"".join(line + b"\n" for line in [*run.metrics_file.read_bytes().splitlines(), *odd]))
    train(load(run.recipe_file), resume=True)
    assert run.report()["loss"] == prepared["clm"].report()["loss"]
    assert damage(run.path) is None


def test_a_whole_checkpoint_is_not_replaced(prepared: dict[str, Run], tmp_path: Path) -> None:
    """A kill between removing it and renaming the new one would leave none."""
    folder = linked(prepared["clm"], tmp_path / "run").checkpoints
    inode = (folder / NEW / "optimizer.bin").stat().st_ino
    beside = folder / ".beside"
    shutil.copytree(folder / OLD, beside)
    commit_folder(beside, folder / NEW)
    assert (folder / NEW / "optimizer.bin").stat().st_ino == inode
    assert not beside.exists()
    DAMAGES["half"](folder / NEW / "optimizer.bin", Path())
    shutil.copytree(folder / MIDDLE, beside)
    commit_folder(beside, folder / NEW)
    assert damage(folder / NEW, of=NEW) is None
    assert {path.name for path in folder.iterdir()} == {OLD, MIDDLE, NEW}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_of_a_finished_run_is_seen(prepared: dict[str, Run], tmp_path: Path, how: str) -> None:
    """Of each file of model, tokenizer, report, recipe and metrics; the card may be edited."""
    run = prepared["clm"]
    assert damage(run.path) is None
    names = set(json.loads((run.path / MANIFEST).read_text())["files"])
    expected = {*ALIKE, *MORE["clm"], "model.safetensors", "report.json", "recipe.yaml", "metrics.jsonl"}
    assert names == expected
    for name in (*names, MANIFEST):
        folder = shutil.copytree(run.path, tmp_path / name, copy_function=os.link, ignore=lambda *_: ["checkpoints"])
        other = prepared["mlm"].path / name
        if how == "other" and not other.exists():  # the other objective has no such file
            assert name == "generation_config.json"
            continue
        DAMAGES[how](folder / name, other)
        what = damage(folder)
        assert what is not None
        assert name == MANIFEST or what.startswith(name)


def test_a_checkpoint_of_another_precision_can_be_restored(prepared: dict[str, Run]) -> None:
    """Only fp16 has a scaler, which the checkpoint then does not hold; here one of a CPU, where there is no fp16."""
    run = prepared["clm"]
    recipe = load(run.recipe_file)
    accelerator = open_accelerator(recipe)
    session = prepare_session(recipe, run, accelerator)
    try:
        scaler = accelerator.scaler = torch.amp.GradScaler("cpu")
        with torch.no_grad():
            next(session.model.parameters()).zero_()
        restore_checkpoint(run.checkpoints / NEW, accelerator, session.model)
        assert next(session.model.parameters()).any()
        assert accelerator.scaler is scaler
    finally:
        accelerator.free_memory()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "report.json", MANIFEST])
def test_resuming_a_finished_run_looks_at_its_files(prepared: dict[str, Run], tmp_path: Path, name: str) -> None:
    """And what its sentence advises helps."""
    run = Run(shutil.copytree(prepared["mlm"].path, tmp_path / "run"))
    recipe = dataclasses.replace(load(run.recipe_file), output_dir=str(run.path))
    run.recipe_file.write_text(dump(recipe) + "# edited\n")
    assert train(recipe, resume=True).state == "finished"
    DAMAGES["middle"](run.path / name, Path())
    with pytest.raises(CheckpointError, match=rf"is finished, and damaged: {name} is not what was saved") as caught:
        train(recipe, resume=True)
    assert f"remove {run.report_file}" in str(caught.value.hint)
    run.report_file.unlink()
    train(recipe, resume=True)
    assert damage(run.path) is None
    assert same_weights(weights(prepared["mlm"]), weights(run))


def test_weights_under_another_name_are_not_replaced_by_new_ones(prepared: dict[str, Run], tmp_path: Path) -> None:
    """As a version of transformers may call them otherwise, whole by the manifest."""
    run = linked(prepared["clm"], tmp_path / "run")
    file = run.checkpoints / NEW / "model.safetensors"
    renamed = {name.replace("ln_f", "norm"): tensor for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(renamed, file, metadata={"format": "pt"})
    (run.checkpoints / NEW / MANIFEST).unlink()
    write_manifest(run.checkpoints / NEW, of=NEW)
    with pytest.raises(CheckpointError, match=r"there are no weights for transformer\.ln_f\.bias") as caught:
        train(load(run.recipe_file), resume=True)
    assert "the versions of the libraries" in str(caught.value.hint)


def test_the_card_of_a_finished_run_may_be_edited_and_its_files_not(prepared: dict[str, Run], tmp_path: Path) -> None:
    shutil.copytree(prepared["mlm"].path, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.card_file.write_text("My own words.")
    run.recipe_file.write_text(run.recipe_file.read_text() + "# for the card\n")
    check_whole(run.path)
    config = run.path / "config.json"
    config.write_text(config.read_text().replace("{", '{"note": "changed on purpose",', 1))
    with pytest.raises(CheckpointError, match=r"config\.json is not what was saved") as caught:
        check_whole(run.path)
    assert f"remove {run.manifest_file}" in str(caught.value.hint)
    run.manifest_file.unlink()
    check_whole(run.path)
    assert isinstance(load_model(run.path), MaskedLM)
