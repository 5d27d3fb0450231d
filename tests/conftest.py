"""Settings of every test: two threads, silence, real data only where the environment names them; goldens."""

import json
import os
import sys
from pathlib import Path

import pytest

from kerasdl import processor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
processor.configure()
ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/golden/ anew instead of comparing with it"
    )


@pytest.fixture
def golden(request):
    """`golden(name, facts, rel)`: compares numbers with those of tests/golden/<name>.json, to a relative tolerance."""

    def compare(name, facts, rel):
        path = ROOT / "tests" / "golden" / f"{name}.json"
        command = f"python -m pytest '{request.node.nodeid}' --write-golden"
        kept = json.loads(path.read_text()) if path.exists() else {}
        if request.config.getoption("--write-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(kept | facts, indent=1) + "\n")
        else:
            for key, value in facts.items():
                assert key in kept, f"{path} has no {key}; write it: {command}"
                words = isinstance(value, list) and any(isinstance(item, str) for item in value)
                expected = kept[key] if words else pytest.approx(kept[key], rel=rel, abs=rel)
                assert value == expected, (
                    f"{key} of {path}; if it should change, say why in CHANGELOG.md, then: {command}"
                )

    return compare


@pytest.fixture
def data_dir() -> Path:
    """The TFDS folder of real data."""
    place = os.environ.get("KERASDL_DATA_DIR")
    if not place:
        pytest.skip("KERASDL_DATA_DIR is not set: it names the TFDS folder of the real data sets")  # absent data
    return Path(place)


@pytest.fixture(scope="session")
def python() -> list[str]:
    """The start of a command line that runs in the repository."""
    return [sys.executable]
