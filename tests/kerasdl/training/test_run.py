import json

import pytest

from kerasdl import processor
from kerasdl.errors import UserError
from kerasdl.training import run


def test_create_and_read(tmp_path, monkeypatch):
    folder = run.create(tmp_path, "cifar10", {"epochs": 3}, {"class_names": ["a", "b"]})
    config, recorded = run.read(folder, "cifar10")
    assert config == {"epochs": 3}
    assert recorded["data"] == {"class_names": ["a", "b"]}
    assert {"time", "command", "commit", "versions", "machine", "precision"} <= set(recorded)
    assert run.elsewhere(recorded) == run.elsewhere({}) == ""
    monkeypatch.setattr(processor, "machine", lambda: recorded["machine"] | {"threads": 99})
    assert run.elsewhere(recorded) == f"threads {recorded['machine']['threads']} (here 99)"
    assert folder.parent == tmp_path / "cifar10"


def test_folders_of_the_same_second_are_different(tmp_path):
    assert len({run.new_folder(tmp_path / "a") for _ in range(3)}) == 3


def test_damage_and_strangers_are_named(tmp_path):
    folder = run.create(tmp_path, "vae", {}, {})
    with pytest.raises(UserError, match="is a run of vae, not of cifar10; give it to vae"):
        run.read(folder, "cifar10")
    with pytest.raises(UserError, match=r"has no run\.json"):
        run.read(tmp_path, "cifar10")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        run.read(folder, "vae")
    (folder / "config.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match=r"is not readable JSON .*; restore it"):
        run.read(folder, "vae")
