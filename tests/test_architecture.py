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


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            yield node.module


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


def test_tyro_is_used_in_command_lines_only():
    users = {
        path.name for package in ALLOWED for path in (ROOT / package).rglob("*.py") if "tyro" in set(imports(path))
    }
    assert users == {"__main__.py", "command_line.py"}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_has_one_name_everywhere(name):
    assert (ROOT / f"tuning/{name}.py").is_file()
    assert (ROOT / f"tests/apps/test_{name}.py").is_file()
    assert (ROOT / f"saved_models/{name}/1/MODEL_CARD.md").is_file()
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
