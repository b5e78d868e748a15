"""The house: imports point down, and heavy libraries are imported late, so that help comes at once."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hfpretrain"

# Lower floors first. A module imports from lower floors, and from its own where one line names several packages' parts.
FLOORS = [
    ["errors", "files", "secrets"],
    ["failures", "process"],
    ["recipe"],
    ["terminal"],
    ["hardware", "hub", "metrics", "place", "run", "shipped"],
    ["data"],
    ["modeling"],
    ["inference", "scaling"],
    ["evaluation", "export", "preparation", "publish"],
    ["report"],
    ["training"],
    ["check", "init", "launching", "sweep", "ui", "verify"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
# Rooms that are parts of another one's module, for length's sake.
PARTS = {
    "recipe_blocks": "recipe",
    "recipe_contents": "recipe",
    "recipe_continuing": "recipe",
    "recipe_loading": "recipe",
    "recipe_stages": "recipe",
    "recipe_types": "recipe",
    "strict_yaml": "recipe",
    "amounts": "recipe",
    "model_files": "hub",
    "card": "publish",
    "cli_about": "cli",
    "cli_check": "cli",
    "cli_data": "cli",
    "cli_evaluate": "cli",
    "cli_experiments": "cli",
    "cli_export": "cli",
    "cli_init": "cli",
    "cli_models": "cli",
    "cli_options": "cli",
    "cli_report": "cli",
    "cli_runs": "cli",
    "cli_train": "cli",
    "cli_ui": "cli",
    "check_data": "check",
    "check_gpus": "check",
    "chips": "hardware",
    "export_check": "export",
    "export_gguf": "export",
    "export_onnx": "export",
}
LIGHT = [
    "cli",
    "recipe",
    "errors",
    "failures",
    "process",
    "secrets",
    "__init__",
    *(part for part, of in PARTS.items() if of == "recipe"),
]
HEAVY = {"torch", "transformers", "datasets", "accelerate", "pydantic", "evaluate", "numpy", "pyarrow"}


def modules() -> list[tuple[str, ast.Module]]:
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def floor(module: str) -> int:
    room = module.split(".")[0]
    room = PARTS.get(room, room)
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported(tree: ast.Module, *, top_only: bool = False) -> set[str]:
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "hfpretrain"
            found |= {f"hfpretrain.{alias.name}" for alias in node.names} if inside else {node.module}
    return found


def test_every_module_has_a_floor_and_says_what_it_is_for() -> None:
    for name, tree in modules():
        assert floor(name) >= 0
        assert ast.get_docstring(tree), f"{name} does not say what it is for"


def test_imports_point_down() -> None:
    wrong = []
    for name, tree in modules():
        for target in imported(tree):
            if not target.startswith("hfpretrain."):
                continue
            target = target.removeprefix("hfpretrain.")
            same_room = PARTS.get(name.split(".")[0], name.split(".")[0]) == PARTS.get(
                target.split(".")[0], target.split(".")[0]
            )
            if floor(target) > floor(name) or (floor(target) == floor(name) and not same_room):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_files_are_rooms() -> None:
    long = {str(path.name): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 400 and not name.endswith("_words.py")} == {}


def test_light_modules_import_nothing_heavy_at_the_top() -> None:
    for name, tree in modules():
        if name in LIGHT:
            assert not {target.split(".")[0] for target in imported(tree, top_only=True)} & HEAVY, name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\n"
        "sys.argv = ['hfpretrain', '--help']\n"
        "from hfpretrain.cli import app\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    app()\n"
        "print(*sorted(sys.modules))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(out.split())


def test_what_is_installed_is_all_there_is() -> None:
    """An installation in place has everything; one from a wheel has what pyproject.toml names."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    inside = {f"hfpretrain.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert set(settings["packages"]) == {"hfpretrain", "hfpretrain.recipes", *inside}
    recipes = PACKAGE.parent / "recipes"
    shipped = {path for pattern in settings["package-data"]["hfpretrain.recipes"] for path in recipes.glob(pattern)}
    assert {path for path in recipes.rglob("*.*") if path.is_file()} - shipped == {recipes / "quickstart.sh"}
