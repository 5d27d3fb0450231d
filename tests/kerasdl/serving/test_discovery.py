"""What counts as an exported model."""

from pathlib import Path

import pytest

from kerasdl.serving.discovery import find_models


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()


def test_only_integer_folders_with_a_saved_model_count(tmp_path):
    for version in ("1", "0012", str(2**63 - 1)):
        _touch(tmp_path / "good" / version / "saved_model.pb")
    for name in ("1.tmp", ".2", "-3", "x", "²", "1_0", str(2**63), "9" * 200):
        _touch(tmp_path / "good" / name / "saved_model.pb")
    _touch(tmp_path / "good" / "4" / "variables" / "variables.index")
    _touch(tmp_path / "empty" / "notes.txt")
    _touch(tmp_path / ".hidden" / "1" / "saved_model.pb")
    (tmp_path / "file").touch()
    assert find_models(tmp_path) == {
        "good": {
            1: tmp_path / "good" / "1",
            12: tmp_path / "good" / "0012",
            2**63 - 1: tmp_path / "good" / str(2**63 - 1),
        }
    }


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_models(tmp_path / "nope")
