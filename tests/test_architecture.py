"""The rules of the house that a machine can hold."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"kerasdl": {"kerasdl"}, "apps": {"kerasdl", "apps"}, "tuning": {"kerasdl", "apps", "tuning"}}
OURS = {"kerasdl", "apps", "tuning", "tests", "benchmarks"}
APPLICATIONS = sorted(path.stem for path in (ROOT / "apps").glob("[!_]*"))


def imports(path, *, whole=False):
    """The modules that a file imports, `whole` with what it takes of them, such as kerasdl.data.tfds."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if whole else [node.module]


def violations(package, sources):
    return [
        f"{path}: {name}" for path, names in sources for name in names if name.split(".")[0] in OURS - ALLOWED[package]
    ]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    sources = [(path, list(imports(path))) for path in (ROOT / package).rglob("*.py")]
    assert sources
    assert violations(package, sources) == []


def test_a_wrong_import_would_be_seen():
    assert violations("kerasdl", [("x.py", ["keras", "apps.cifar10"])]) == ["x.py: apps.cifar10"]


# Each floor of kerasdl stands on those before it; modules of one line know nothing of each other.
FLOORS = (
    ("errors",),
    ("files", "interruptions", "processor"),
    ("command_line",),
    ("startup", "fast", "frozen"),
    ("training",),
    ("data",),
    ("blocks", "metrics"),
    ("decoding", "figures"),
    ("models", "export"),
    ("model_card", "serving"),
)
HEIGHT = {floor: height for height, floors in enumerate(FLOORS) for floor in floors}


def wrong_arrows(sources):
    """Imports between floors that do not lead down."""
    for module, names in sources:
        for name in names:
            above, below = (name.split(".")[1] for name in (module, name))
            if above != below and HEIGHT[above] <= HEIGHT[below]:
                yield f"{module}: {name}"


def test_nothing_in_kerasdl_points_up():
    sources = []
    for path in (ROOT / "kerasdl").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = [name for name in imports(path, whole=True) if name.startswith("kerasdl.")]
        sources.append((module, names))
    assert {module.split(".")[1] for module, _ in sources} - {"__init__"} == set(HEIGHT)
    assert list(wrong_arrows(sources)) == []


def test_an_arrow_up_would_be_seen():
    assert list(wrong_arrows([("kerasdl.blocks.x", ["kerasdl.models.gan", "kerasdl.fast"])])) == [
        "kerasdl.blocks.x: kerasdl.models.gan"
    ]


UNREACHED = {"AdditiveAttention", "MultiplicativeAttention"}  # of the translator, an application that is to come


def names_in(node):
    """Everything that a piece of code calls by a name."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name | ast.Attribute):
            yield part.id if isinstance(part, ast.Name) else part.attr


def unreached(applications, library, blocks):
    """Public functions and classes of blocks that no application comes to, by any way through the library."""
    used = {}
    for path in library:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            for name in [node.name] if hasattr(node, "name") else targets:
                used.setdefault(name, set()).update(names_in(node))
    reached, todo = set(), {name for path in applications for name in names_in(ast.parse(path.read_text("utf-8")))}
    while todo:
        reached |= todo
        todo = {name for known in todo for name in used.get(known, ())} - reached
    for path in blocks:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if named and node.name not in reached:
                yield node.name


def test_every_block_is_reached_by_an_application(tmp_path):
    library, blocks = list((ROOT / "kerasdl").rglob("*.py")), list((ROOT / "kerasdl/blocks").glob("*.py"))
    applications = list((ROOT / "apps").glob("*.py"))
    assert set(unreached(applications, library, blocks)) == UNREACHED
    (tmp_path / "block.py").write_text("def forgotten():\n    return forgotten\n")
    assert list(unreached(applications, library, [tmp_path / "block.py"])) == ["forgotten"]


def test_tyro_is_used_in_command_lines_only():
    users = {
        path.name for package in ALLOWED for path in (ROOT / package).rglob("*.py") if "tyro" in set(imports(path))
    }
    assert users == {"__main__.py", "command_line.py"}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_has_one_name_everywhere(name):
    assert (ROOT / f"tuning/{name}.py").is_file()
    assert (ROOT / f"tests/apps/test_{name}.py").is_file()
    versions = [path for path in (ROOT / "saved_models" / name).glob("*") if path.is_dir()]
    assert all((path / "MODEL_CARD.md").is_file() for path in versions)  # none for want of public data
    docstring = ast.get_docstring(ast.parse((ROOT / f"apps/{name}.py").read_text()))
    assert "**Source**" in docstring
    assert "**Expect**" in docstring


def test_applications_fulfil_the_contract_for_the_type_checker(tmp_path):
    check = tmp_path / "contract.py"
    lines = [f"from apps import {name}\n_{name}: Application = {name}\n" for name in APPLICATIONS]
    check.write_text("from apps._contract import Application\n" + "".join(lines))
    run = subprocess.run(
        [sys.executable, "-m", "mypy", str(check)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    check.write_text("import json\nfrom apps._contract import Application\n_: Application = json\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", str(check)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0, "the check above cannot fail"


@pytest.mark.parametrize("name", APPLICATIONS)
def test_fields_are_explained(name):
    module = importlib.import_module(f"apps.{name}")
    source = ast.parse(Path(module.__file__).read_text())
    config = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    body = [node for node in config.body if isinstance(node, ast.AnnAssign | ast.Expr)][1:]
    for field, text in zip(body[::2], body[1::2], strict=True):
        assert isinstance(field, ast.AnnAssign)
        assert isinstance(text, ast.Expr), f"{ast.unparse(field)} has no docstring"


def test_no_path_of_a_machine_and_no_mark_of_unfinished_work():
    words = ["TO" + "DO", "FIX" + "ME", "/ro" + "ot/", "/wo" + "rk/", "shared" + "/data"]
    files = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.toml"], cwd=ROOT, capture_output=True, text=True)
    listed = files.stdout.split()
    assert listed
    found = [(name, word) for name in listed for word in words if word in (ROOT / name).read_text("utf-8")]
    assert found == []
