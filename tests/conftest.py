"""Settings of every test: a thread an operation, silence, real data only where the environment names them; goldens."""

import gc
import json
import os
import sys
from pathlib import Path

# Files of tests run beside each other, a process a core: threads that wait for each other cost a quarter of the time.
# NumPy and TensorFlow read these when they are imported.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ.get("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest

from kerasdl import processor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
processor.configure()
ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/golden/ anew instead of comparing with it"
    )
    parser.addoption(
        "--whole-splits", action="store_true", help="measure the exports on whole test splits, as their cards have it"
    )


def pytest_collection_modifyitems(items):
    """Applications and searches, which train, come before the parts, so that no long file is left to one process."""
    items.sort(key=lambda item: "kerasdl" in item.path.relative_to(ROOT).parts)


@pytest.fixture
def golden(request):
    """`golden(name, facts, rel)`: compares numbers with those of tests/golden/<name>.json, to a tolerance."""

    def compare(name, facts, rel=0.0, abs=None):
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
                expected = kept[key] if words else pytest.approx(kept[key], rel=rel, abs=rel if abs is None else abs)
                assert value == expected, (
                    f"{key} of {path}; if it should change, say why in CHANGELOG.md, then: {command}"
                )

    return compare


@pytest.fixture(scope="module", autouse=True)
def _seldom_garbage():
    """What a file leaves behind is freed, or not looked through again for garbage: a second each time."""
    yield
    if "keras" in sys.modules:
        from kerasdl.training import memory

        memory.release()
    gc.freeze()


class Card:
    """What the card of an export says, beside what was measured: on a part of the test split unless it is asked for."""

    def __init__(self, whole, golden):
        self._whole, self._golden = whole, golden

    def rows(self, count, some):
        """Indices of the examples to measure: all of `count`, or the first `some`."""
        return np.arange(count if self._whole else some)

    def compare(self, folder, measured, **tolerances):
        """By two absolute tolerances of each figure: the card's on the whole split, the golden's on a part."""
        recorded = json.loads((folder / "metrics.json").read_text())
        for name, (of_whole, of_part) in tolerances.items():
            if self._whole:
                assert measured[name] == pytest.approx(recorded[name], abs=of_whole), name
            else:
                self._golden(f"{folder.parent.name}_part", {name: measured[name]}, abs=of_part)


@pytest.fixture
def card(request, golden):
    """`card.rows(...)`, then `card.compare(...)`."""
    return Card(request.config.getoption("--whole-splits"), golden)


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
