"""`hfpretrain init`: four answers make a commented recipe that every command accepts."""

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command
from tiny import write_corpus

from hfpretrain.check import check
from hfpretrain.data.columns import guess_columns
from hfpretrain.errors import DataError, UserError
from hfpretrain.init import find_data, parse_name, parse_objective, parse_size, recipe_text, write_recipe
from hfpretrain.recipe import load


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    write_corpus(Path("corpus/one.jsonl"))
    write_corpus(Path("corpus/two.jsonl"), seed=1)
    Path("novel.txt").write_text("A sentence of a novel, one of many.\n\n" * 2000)


@pytest.mark.parametrize(
    ("objective", "data", "size"),
    [("clm", "builtin everyday", "300k"), ("mlm", "corpus", "200k"), ("clm", "novel.txt", "350k")],
)
def test_check_accepts_what_is_written(objective: str, data: str, size: str) -> None:
    write_recipe(parse_objective(objective), find_data(data), parse_size(size), parse_name("mine"))
    told = check(load("mine.yaml")).plain
    assert "mine: valid" in told
    assert "warning" not in told or "tokens for each entry" in told or "seen" in told


@pytest.mark.parametrize("objective", ["clm", "mlm"])
@pytest.mark.parametrize("size", ["100k", "5M", "124M", "7B", 1_100_000_000])
def test_a_recipe_of_every_size_and_kind_of_data_is_valid(objective: str, size: str | int) -> None:
    for number, data in enumerate(("everyday", "corpus/*.jsonl", "org/data-set@v2", "novel.txt")):
        write_recipe(parse_objective(objective), find_data(data), parse_size(str(size)), parse_name(f"r{number}"))
        recipe = load(f"r{number}.yaml")
        assert (recipe.objective, str(recipe.model.size)) == (objective, str(size))
        Path(f"r{number}.yaml").unlink()


def test_every_line_explains_itself_and_comments_are_in_one_column() -> None:
    text = recipe_text("clm", find_data("novel.txt"), "1M")
    assert "##" not in text
    assert {line.rindex("  # ") for line in text.splitlines() if "  # " in line[8:]} == {34}
    assert "# documents: paragraph" in text


def test_the_column_of_the_text_is_found() -> None:
    rows = [{"id": "a1", "content": "a long text, " * 9, "pages": 3}, {"id": "a2", "content": "b", "pages": 4}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rows.json").write_text(json.dumps(rows))
    Path("lists.json").write_text(json.dumps({"id": ["x"], "words": ["some words"]}))
    Path("rows.csv").write_text('id,the text\n7,"a text, with a comma"\n')
    with gzip.open("rows.jsonl.gz", "wt") as file:
        file.write('{"title": "x", "whatever": "much longer than the title"}\n')
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    Path("pairs.jsonl").write_text('{"prompt": "one", "completion": "two"}\n')
    Path("numbers.jsonl").write_text('{"a": 1, "b": 2}\n')
    Path("damaged.jsonl").write_text('{"a": 1, "b"\n')
    found = {path.name: guess_columns(path) for path in map(Path, ("rows.jsonl", "rows.json", "rows.parquet"))}
    assert set(found.values()) == {("content",)}
    assert guess_columns(Path("lists.json")) == ("words",)
    assert guess_columns(Path("rows.csv")) == ("the text",)
    assert guess_columns(Path("rows.jsonl.gz")) == ("whatever",)
    assert guess_columns(Path("pairs.jsonl")) == ("prompt", "completion")
    assert guess_columns(Path("novel.txt")) == ()
    for name, said in (("numbers.jsonl", "the columns are: a, b"), ("damaged.jsonl", "cannot be read")):
        with pytest.raises(DataError, match=said):
            guess_columns(Path(name))
    Path("long.csv").write_text(f"id,text\n1,{'a word ' * 30_000}\n")
    assert guess_columns(Path("long.csv")) == ("text",)
    write_recipe("clm", find_data("pairs.jsonl"), "1M", parse_name("p"))
    (source,) = load("p.yaml").data.sources
    assert (source.prompt_column, source.completion_column) == ("prompt", "completion")


@pytest.mark.parametrize(
    "name",
    [
        *("a ## b.txt", "no", "-x: #1 {y} 'z' \"w\".txt", "ünï 👩‍👧.txt", "tab\there.txt", "line\nbreak.txt"),
        *("a\u2028\ufeffb.txt", "a[1].txt", "%s \\ back.txt"),
    ],
)
def test_a_name_of_any_kind_is_the_same_in_the_recipe(name: str) -> None:
    place = Path(name) / "\x7fone.txt" if name == "no" else Path(name)
    place.parent.mkdir(exist_ok=True)
    place.write_text("A sentence of a novel, one of many.\n\n" * 2000)
    write_recipe("clm", find_data(name), "1M", parse_name("mine"))
    (source,) = load("mine.yaml").data.sources
    assert source.files == name


def test_a_name_that_no_recipe_can_hold_is_a_sentence(hfpretrain: Command) -> None:
    Path(os.fsdecode(b"caf\xe9.txt")).write_text("A sentence of a novel, one of many.\n\n" * 2000)
    done = hfpretrain("init", "--data", os.fsdecode(b"caf\xe9.txt"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not UTF-8" in done.stderr and "Traceback" not in done.stderr
    assert not list(Path().glob("*.yaml"))


def test_a_data_set_of_the_hub_may_have_dots() -> None:
    for name in ("org/data-1.5", "org/data@v1.0"):
        assert find_data(name).told.startswith("the data set org/data")
    with pytest.raises(DataError, match=r"no file or folder corpus/three\.jsonl"):
        find_data("corpus/three.jsonl")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--objective", "bert"), "clm (next word) or mlm"),
        (("--data", "no-such.jsonl"), "no file or folder no-such.jsonl"),
        (("--size", "many"), "not a number of parameters"),
        (("--size", "5k"), "not between 100k and 20B"),
        (("--name", "a/b"), "letters, digits"),
        (("--name", "there"), "there.yaml is there already"),
    ],
)
def test_a_wrong_flag_is_a_sentence_and_nothing_is_written(
    hfpretrain: Command, flags: tuple[str, ...], said: str
) -> None:
    Path("there.yaml").write_text("mine")
    done = hfpretrain("init", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in Path().glob("*.yaml")] == ["there.yaml"]
    assert Path("there.yaml").read_text() == "mine"


def test_without_a_terminal_nothing_is_asked(hfpretrain: Command) -> None:
    done = hfpretrain("init", "--data", "corpus")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("recipe", "corpus-clm-1m.yaml", "next", "hfpretrain", "check", "corpus-clm-1m.yaml"),
        *("hfpretrain", "train", "corpus-clm-1m.yaml"),
    ]
    assert "objective: clm, as no --objective is given" in done.stderr
    assert hfpretrain("init", "--data", "corpus").stdout.startswith("recipe  corpus-clm-1m-2.yaml")


def test_on_a_terminal_it_asks_and_asks_again() -> None:
    ours, theirs = pty.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "hfpretrain", "init", "--size", "200k"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, b"nonsense\nmlm\nnowhere.txt\ncorpus\n\n")  # the name is as suggested
    out, err = asked.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert asked.returncode == 0, err
    assert "'nonsense' is none" in err
    assert "no file or folder nowhere.txt" in err
    assert "size" not in err
    assert out.startswith("recipe  corpus-mlm-200k.yaml")
    assert load("corpus-mlm-200k.yaml").objective == "mlm"


def test_a_file_that_comes_meanwhile_is_not_written_over() -> None:
    file = parse_name("mine")
    file.write_text("other")
    with pytest.raises(UserError, match="there already"):
        write_recipe("clm", find_data("novel.txt"), "1M", file)
    assert file.read_text() == "other"
