"""Settings of every test: two threads, silence, real data only where the environment names them."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parent.parent


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
