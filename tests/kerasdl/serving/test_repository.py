"""Versions that come, go and fail, while requests are under way."""

import gc
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import WARMUP, Servable

X = np.array([[1.0, 2.0]], np.float32)


@pytest.fixture
def put(scales, tmp_path) -> Callable[..., Path]:
    """Publishes `y = factor * x` as a version the way an exporter does: under a temporary name, then renamed."""

    def put(version: int, factor: int, *, model: str = "m", warmup: bytes | None = None) -> Path:
        folder = tmp_path / "models" / model / str(version)
        temporary = shutil.copytree(scales[factor], folder.with_name(f".{version}.tmp"))
        if warmup is not None:
            (temporary / WARMUP).parent.mkdir()
            (temporary / WARMUP).write_bytes(warmup)
        return temporary.rename(folder)

    return put


@pytest.fixture
def reports() -> list[tuple[str, int, bool]]:
    return []


@pytest.fixture
def repository(tmp_path, reports) -> ModelRepository:
    (tmp_path / "models").mkdir()
    return ModelRepository(
        tmp_path / "models", lambda name, version, error: reports.append((name, version, error is None))
    )


def _factor(servable: Servable) -> float:
    return float(servable.run("serving_default", {"x": X})["y"][0, 0])


def _states(repository: ModelRepository, model: str = "m") -> dict[int, str]:
    return {version: status.state.name for version, status in repository.status(model).items()}


def _spoil(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"not a SavedModel")


def test_newest_version_is_served(repository, put, reports):
    put(9, 2)
    put(10, 3)
    repository.poll()
    repository.poll()
    assert _factor(repository.acquire("m")) == 3
    assert _factor(repository.acquire("m", 10)) == 3
    assert reports == [("m", 10, True)]
    with pytest.raises(ServingError, match=r"Specific\(m, 9\)") as caught:
        repository.acquire("m", 9)
    assert caught.value.code == Code.NOT_FOUND


def test_new_version_replaces_the_old_which_finishes_its_requests(repository, put):
    put(1, 1)
    repository.poll()
    held = repository.acquire("m")
    gone = weakref.ref(held)
    put(2, 2)
    repository.poll()
    assert _states(repository) == {2: "AVAILABLE", 1: "END"}
    assert repository.status("m", 1)[1].error is None
    assert _factor(repository.acquire("m")) == 2
    assert _factor(held) == 1
    del held
    gc.collect()
    assert gone() is None


def test_old_version_serves_until_the_new_one_is_loaded(repository, put, monkeypatch):
    put(1, 1)
    repository.poll()
    put(2, 2)
    seen = []
    load = Servable.__init__

    def spy(self, folder, *others):
        seen.append((_factor(repository.acquire("m")), _states(repository)))
        load(self, folder, *others)

    monkeypatch.setattr(Servable, "__init__", spy)
    repository.poll()
    assert seen == [(1.0, {2: "LOADING", 1: "AVAILABLE"})]


def test_corrupt_version_never_replaces_a_good_one(repository, put, reports):
    put(1, 1)
    repository.poll()
    _spoil(put(2, 2))
    repository.poll()
    repository.poll()
    assert _factor(repository.acquire("m")) == 1
    assert _states(repository) == {2: "END", 1: "AVAILABLE"}
    error = repository.status("m", 2)[2].error
    assert error is not None
    assert "saved_model.pb" in error.message
    assert reports == [("m", 1, True), ("m", 2, False)]
    assert repository.unavailable() == {}


def test_corrupt_version_is_tried_again_when_its_files_change(repository, put, scales, reports):
    folder = put(1, 1)
    _spoil(folder)
    repository.poll()
    assert repository.unavailable().keys() == {"m"}
    assert "saved_model.pb" in repository.unavailable()["m"]
    shutil.copy(scales[1] / "saved_model.pb", folder)
    repository.poll()
    assert _factor(repository.acquire("m")) == 1
    assert repository.unavailable() == {}
    assert reports == [("m", 1, False), ("m", 1, True)]


def test_missing_weights_end_the_version_with_the_code_of_tensorflow(repository, put):
    folder = put(1, 1)
    (folder / "variables" / "variables.index").unlink()
    repository.poll()
    status = repository.status("m", 1)[1]
    assert (status.state.name, status.servable) == ("END", None)
    assert status.error is not None
    assert status.error.message


def test_start_falls_back_to_an_older_version(repository, put):
    put(1, 1)
    _spoil(put(2, 2))
    repository.poll()
    assert _factor(repository.acquire("m")) == 1
    assert _states(repository) == {2: "END", 1: "AVAILABLE"}


def test_corrupt_warmup_blocks_the_version(repository, put):
    put(1, 1)
    repository.poll()
    put(2, 2, warmup=b"no records at all, but long enough")
    repository.poll()
    assert _factor(repository.acquire("m")) == 1
    error = repository.status("m", 2)[2].error
    assert error is not None
    assert error.code == Code.DATA_LOSS
    assert "Please verify your warmup data is in TFRecord format." in error.message


def test_removing_a_version_rolls_back_and_removing_all_unloads(repository, put, tmp_path):
    old, new = put(1, 1), put(2, 2)
    repository.poll()
    shutil.rmtree(new)
    repository.poll()
    assert _factor(repository.acquire("m")) == 1
    assert _states(repository) == {2: "END", 1: "AVAILABLE"}
    shutil.rmtree(old)
    repository.poll()
    with pytest.raises(ServingError, match=r"Latest\(m\)"):
        repository.acquire("m")
    assert repository.unavailable() == {}


def test_unreadable_folder_unloads_nothing(repository, put, tmp_path):
    put(1, 1)
    repository.poll()
    (tmp_path / "models").rename(tmp_path / "away")
    repository.poll()
    assert _factor(repository.acquire("m")) == 1


def test_new_model_appears(repository, put):
    put(1, 1)
    repository.poll()
    with pytest.raises(ServingError, match=r"Latest\(other\)"):
        repository.acquire("other")
    put(5, 3, model="other")
    repository.poll()
    assert _factor(repository.acquire("other")) == 3
    assert _factor(repository.acquire("m")) == 1


def test_not_ready_before_the_first_load(repository, put, serve, monkeypatch):
    put(4, 1)
    hold = threading.Event()
    load = Servable.__init__

    def wait(self, folder, *others):
        hold.wait(30)
        load(self, folder, *others)

    monkeypatch.setattr(Servable, "__init__", wait)
    with repository, serve(repository) as client:
        reply = client("GET", "/readyz")
        assert reply.status == 503
        assert reply.json["unavailable"].keys() == {"m"}
        assert client("GET", "/v1/models/m").json["model_version_status"][0]["state"] in ("START", "LOADING")
        assert client.predict("m", {"instances": [[1, 2]]}).status == 404
        hold.set()
        _wait_until(lambda: client("GET", "/readyz").status == 200)


def test_status_of_a_failure_through_the_server(repository, put, serve):
    _spoil(put(1, 1))
    repository.poll()
    with serve(repository) as client:
        reply = client("GET", "/v1/models/m")
        assert reply.status == 200
        (version,) = reply.json["model_version_status"]
        assert (version["version"], version["state"]) == ("1", "END")
        assert version["status"]["error_code"] == "UNKNOWN"
        assert "saved_model.pb" in version["status"]["error_message"]
        assert client("GET", "/readyz").status == 503


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_replacement_under_load_fails_no_request(put, serve, tmp_path):
    put(1, 1)
    repository = ModelRepository(tmp_path / "models", poll_seconds=0.05)
    answers: list[tuple[int, float | None]] = []
    stop = threading.Event()

    with repository, serve(repository) as client:
        _wait_until(lambda: client("GET", "/readyz").status == 200)
        old = weakref.ref(repository.acquire("m"))

        def load() -> None:
            while not stop.is_set():
                reply = client.predict("m", {"instances": [[1, 2]]})
                answers.append((reply.status, reply.json.get("predictions", [[None]])[0][0]))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            _wait_until(lambda: len(answers) > 50)
            put(2, 2)
            _wait_until(lambda: answers[-1] == (200, 2.0))
            seen = len(answers)
            _wait_until(lambda: len(answers) > seen + 50)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        states = client("GET", "/v1/models/m").json["model_version_status"]

    assert set(answers) == {(200, 1.0), (200, 2.0)}
    assert [(version["version"], version["state"]) for version in states] == [("2", "AVAILABLE"), ("1", "END")]
    gc.collect()
    assert old() is None


def test_memory_is_given_back(repository, heavy, tmp_path):
    def resident_mib() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    used = []
    for version in range(1, 9):
        shutil.copytree(heavy, tmp_path / "models" / "m" / str(version), copy_function=os.link)
        repository.poll()
        assert _factor(repository.acquire("m", version)) == 1
        used.append(resident_mib())
    assert used[-1] - used[2] < 40, used  # five leaked versions would be 80 MiB


# --- configurations ---------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path) -> Callable[..., ModelServerConfig]:
    """A configuration of models by name and further words of the config file."""

    def config(**entries: str) -> ModelServerConfig:
        config = ModelServerConfig()
        config.model_config_list.SetInParent()
        for name, words in entries.items():
            entry = config.model_config_list.config.add(name=name, base_path=str(tmp_path / "models" / name))
            entry.model_platform = "tensorflow"
            text_format.Merge(words, entry)
        return config

    return config


def _specific(*versions: int) -> str:
    return f"model_version_policy {{ specific {{ {' '.join(f'versions: {version}' for version in versions)} }} }}"


def _label(**labels: int) -> str:
    return " ".join(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items())


LATEST_2 = "model_version_policy { latest { num_versions: 2 } }"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {3: "AVAILABLE"}),
        (LATEST_2, {3: "AVAILABLE", 2: "AVAILABLE"}),
        ("model_version_policy { all {} }", {3: "AVAILABLE", 2: "AVAILABLE", 1: "AVAILABLE"}),
        (_specific(1, 2), {2: "AVAILABLE", 1: "AVAILABLE"}),
    ],
)
def test_policy(put, config, policy, expected):
    for version in (1, 2, 3):
        put(version, version)
    repository = ModelRepository(config(m=policy))
    repository.poll()
    assert _states(repository) == expected
    assert _factor(repository.acquire("m")) == max(expected)
    assert {version: _factor(repository.acquire("m", version)) for version in expected} == {v: v for v in expected}


def test_new_version_pushes_out_the_oldest_of_two_and_a_corrupt_one_does_not(put, config):
    put(1, 1)
    put(2, 2)
    repository = ModelRepository(config(m=LATEST_2))
    repository.poll()
    put(3, 3)
    repository.poll()
    assert _states(repository) == {3: "AVAILABLE", 2: "AVAILABLE", 1: "END"}
    _spoil(put(4, 1))
    repository.poll()
    assert _states(repository) == {4: "END", 3: "AVAILABLE", 2: "AVAILABLE", 1: "END"}


def test_reload_replaces_everything(put, config):
    put(1, 1)
    put(2, 2)
    put(1, 3, model="other")
    repository = ModelRepository(config(m="", other=""))
    repository.poll()
    held = repository.acquire("m")
    repository.reload(config(m=_specific(1)))
    assert _states(repository) == {2: "END", 1: "AVAILABLE"}
    assert _states(repository, "other") == {1: "END"}
    assert (_factor(held), _factor(repository.acquire("m"))) == (2, 1)
    assert repository.unavailable() == {}
    repository.reload(ModelServerConfig())
    assert _factor(repository.acquire("m")) == 1
    repository.reload(config())
    assert _states(repository) == {2: "END", 1: "END"}


def test_reload_takes_the_place_of_a_folder(repository, put, config):
    put(1, 1)
    put(1, 2, model="other")
    repository.poll()
    repository.reload(config(other=""))
    repository.poll()
    assert _states(repository) == {1: "END"}
    assert _factor(repository.acquire("other")) == 2


def test_reload_loads_before_it_unloads(put, config, monkeypatch):
    put(1, 1)
    put(2, 2)
    repository = ModelRepository(config(m=_specific(1)))
    repository.poll()
    seen = []
    load = Servable.__init__

    def spy(self, folder, *others):
        seen.append(_states(repository))
        load(self, folder, *others)

    monkeypatch.setattr(Servable, "__init__", spy)
    repository.reload(config(m=_specific(2)))
    assert seen == [{2: "LOADING", 1: "AVAILABLE"}]
    assert _states(repository) == {2: "AVAILABLE", 1: "END"}


def test_reload_with_a_mistake_changes_nothing(put, config):
    put(1, 1)
    repository = ModelRepository(config(m=""))
    repository.poll()
    broken = config(other="")
    broken.model_config_list.config[0].base_path = "relative"
    with pytest.raises(ServingError) as caught:
        repository.reload(broken)
    assert caught.value.code == Code.INVALID_ARGUMENT
    repository.poll()
    assert _factor(repository.acquire("m")) == 1


def test_version_that_cannot_be_loaded_does_not_replace_the_named_one(put, config):
    put(1, 1)
    _spoil(put(2, 2))
    repository = ModelRepository(config(m=_specific(1)))
    repository.poll()
    repository.reload(config(m=_specific(2)))
    assert _states(repository) == {2: "END", 1: "AVAILABLE"}


def test_broken_entry_stops_no_other(put, config, caplog):
    put(1, 1)
    (put(7, 1, model="empty")).rename(put(1, 1, model="x").parent / "2")
    repository = ModelRepository(config(away="", empty="", m="", x=_specific(2, 5)))
    repository.poll()
    repository.poll()
    assert _factor(repository.acquire("m")) == 1
    assert repository.unavailable().keys() == {"away", "empty"}
    assert "no version below" in repository.unavailable()["empty"]
    messages = sorted(record.getMessage() for record in caplog.records)
    assert [message.partition(" /")[0] for message in messages] == [
        "away: cannot read",
        "empty: no version below",
        "x: no version 5 below",
    ]
    put(8, 3, model="empty")
    put(9, 3, model="away")
    repository.poll()
    assert repository.unavailable() == {}


def test_warning_is_repeated(put, config, caplog, monkeypatch):
    put(1, 1)
    repository = ModelRepository(config(away=""))
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for seconds, count in ((0, 1), (59, 1), (2, 2), (59, 2)):
        now[0] += seconds
        repository.poll()
        assert len(caplog.records) == count


def test_base_path_that_is_away_unloads_nothing(put, config, tmp_path):
    put(1, 1)
    repository = ModelRepository(config(m=""))
    repository.poll()
    (tmp_path / "models" / "m").rename(tmp_path / "away")
    repository.poll()
    assert _factor(repository.acquire("m")) == 1


def test_another_base_path_that_is_away_is_not_taken_for_the_old_one(put, config, tmp_path, monkeypatch):
    folder = put(1, 1)
    _spoil(folder)
    repository = ModelRepository(config(m=""), retry_seconds=0)
    repository.poll()
    moved = config(m="")
    moved.model_config_list.config[0].base_path = str(tmp_path / "away")
    loads: list[Path] = []
    load = Servable.__init__

    def spy(self, folder, *others):
        loads.append(folder)
        load(self, folder, *others)

    monkeypatch.setattr(Servable, "__init__", spy)
    repository.reload(moved)
    assert loads == []
    shutil.rmtree(folder)
    put(2, 2)
    (tmp_path / "models" / "m").rename(tmp_path / "away")
    repository.poll()
    assert _states(repository) == {2: "AVAILABLE", 1: "END"}


def test_labels(put, config):
    for version in (1, 2):
        put(version, version)
    both = _specific(1, 2)
    with pytest.raises(ServingError, match="Request to assign label to version 1 of model m, which is not"):
        ModelRepository(config(m=both + _label(stable=1)))
    repository = ModelRepository(config(m=both))
    repository.poll()
    repository.reload(config(m=both + _label(stable=1, canary=2)))
    assert (repository.labelled("m", "stable"), repository.labelled("m", "canary")) == (1, 2)
    with pytest.raises(ServingError) as caught:
        repository.reload(config(m=both + _label(stable=3)))
    assert caught.value.code == Code.FAILED_PRECONDITION
    assert repository.labelled("m", "stable") == 1
    repository.reload(config(m=both + _label(stable=2)))
    assert repository.labelled("m", "stable") == 2
    for model, label in (("m", "canary"), ("nope", "stable")):
        with pytest.raises(ServingError, match=f"Unrecognized servable version label: {label}") as caught:
            repository.labelled(model, label)
        assert caught.value.code == Code.INVALID_ARGUMENT


def test_free_labels_are_free_only_when_they_are_new(put, config):
    put(1, 1)
    repository = ModelRepository(config(m=_label(stable=1)), free_labels=True)
    repository.poll()
    repository.reload(config(m=_label(stable=1, next=2)))
    assert repository.labelled("m", "next") == 2
    with pytest.raises(ServingError, match="Request to assign label to version 3"):
        repository.reload(config(m=_label(stable=3)))


def test_labels_in_urls(put, config, serve):
    for version in (1, 2):
        put(version, version)
    repository = ModelRepository(config(m=_specific(1, 2) + _label(stable=1, next=3)), free_labels=True)
    repository.poll()
    with serve(repository) as client:
        assert client.predict("m", {"instances": [[1, 2]]}).json == {"predictions": [[2.0, 4.0]]}
        assert client.predict("m/labels/stable", {"instances": [[1, 2]]}).json == {"predictions": [[1.0, 2.0]]}
        assert client.predict("m/labels/st%61ble", {"instances": [[1, 2]]}).status == 200
        assert client("GET", "/v1/models/m/labels/stable/metadata").json["model_spec"]["version"] == "1"
        assert client("GET", "/v1/models/m/metadata").json["model_spec"]["version"] == "2"
        states = client("GET", "/v1/models/m/labels/stable").json["model_version_status"]
        assert [state["version"] for state in states] == ["2", "1"]
        reply = client.predict("m/labels/next", {"instances": [[1, 2]]})
        assert (reply.status, reply.json) == (404, {"error": "Servable not found for request: Specific(m, 3)"})
        assert client.predict("m/labels/old", {"instances": [[1, 2]]}).status == 400


def test_failed_load_is_retried_a_few_times_at_intervals(put, tmp_path, reports, monkeypatch):
    _spoil(put(1, 1))
    repository = ModelRepository(
        tmp_path / "models",
        lambda name, version, error: reports.append((name, version, error is None)),
        max_retries=2,
        retry_seconds=60,
    )
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counts = []
    for seconds in (0, 59, 2, 59, 2, 120):
        now[0] += seconds
        repository.poll()
        counts.append(len(reports))
    assert counts == [1, 1, 2, 2, 3, 3]


def test_retry_succeeds_with_the_same_files(put, tmp_path, monkeypatch):
    put(1, 1)
    repository = ModelRepository(tmp_path / "models", retry_seconds=0)
    load = Servable.__init__
    failures = [MemoryError("for a moment")]

    def fail_once(self, folder, *others):
        if failures:
            raise failures.pop()
        load(self, folder, *others)

    monkeypatch.setattr(Servable, "__init__", fail_once)
    repository.poll()
    assert _states(repository) == {1: "END"}
    repository.poll()
    assert _states(repository) == {1: "AVAILABLE"}


def test_single_look_at_the_folder(put, tmp_path):
    put(1, 1)
    with ModelRepository(tmp_path / "models", poll_seconds=0) as repository:
        _wait_until(lambda: repository.unavailable() == {})
        put(2, 2)
        time.sleep(1.5)
        assert _states(repository) == {1: "AVAILABLE"}
