"""The model config file: what it says, what is refused."""

import logging
import threading
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from kerasdl.errors import UserError
from kerasdl.serving.configuration import Model, followed, models, read
from kerasdl.serving.errors import Code, ServingError

PLATFORM = 'model_platform: "tensorflow"'


def _config(*entries: str) -> ModelServerConfig:
    listed = "".join(f"config {{ {entry} }}" for entry in entries)
    return text_format.Parse(f"model_config_list {{ {listed} }}", ModelServerConfig())


def _policy(text: str) -> ModelServerConfig:
    return _config(f'name: "m" base_path: "/x" {PLATFORM} {text}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Model(Path("/x"))),
        ("model_version_policy { latest {} }", Model(Path("/x"))),
        ("model_version_policy { latest { num_versions: 0 } }", Model(Path("/x"))),
        ("model_version_policy { latest { num_versions: 3 } }", Model(Path("/x"), at_most=3)),
        ("model_version_policy { all {} }", Model(Path("/x"), at_most=None)),
        (
            "model_version_policy { specific { versions: 3 versions: 4 } }",
            Model(Path("/x"), only=frozenset({3, 4}), at_most=None),
        ),
        ('version_labels { key: "stable" value: 3 }', Model(Path("/x"), labels={"stable": 3})),
    ],
)
def test_policy_and_labels(text, expected):
    assert models(_policy(text)) == {"m": expected}


def test_deprecated_model_type():
    assert models(_config('name: "m" base_path: "/x" model_type: TENSORFLOW')) == {"m": Model(Path("/x"))}


def test_no_model_at_all():
    assert models(_config()) == {}


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([f'name: "m" base_path: "/x" {PLATFORM}'] * 2, "Illegal to list model m multiple times in config list"),
        (['name: "m" base_path: "/x"'], "Illegal setting neither model_type (deprecated) nor model_platform"),
        (['name: "m" base_path: "/x" model_type: OTHER'], "Illegal setting neither model_type (deprecated) nor"),
        (
            [f'name: "m" base_path: "/x" model_type: TENSORFLOW {PLATFORM}'],
            "Illegal setting both model_type (deprecated) and model_platform of model m",
        ),
        (['name: "m" base_path: "/x" model_platform: "torch"'], "Model m requests unsupported platform torch"),
        ([f'name: "m" base_path: "x/y" {PLATFORM}'], "Expected model m to have an absolute path; got base_path()=x/y"),
        ([f'name: "m" base_path: "gs://x" {PLATFORM}'], "to have an absolute path; got base_path()=gs://x"),
        ([f'name: "m" {PLATFORM}'], "Expected model m to have an absolute path; got base_path()="),
    ],
)
def test_mistakes(entries, text):
    with pytest.raises(ServingError) as caught:
        models(_config(*entries))
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert text in caught.value.message


def test_custom_configuration_is_refused():
    config = ModelServerConfig()
    config.custom_model_config.type_url = "a/b"
    with pytest.raises(ServingError, match="custom_model_config is not supported"):
        models(config)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (
            b"model_config_list { config { nam: 3 } }",
            "{path} is no ModelServerConfig in text format: 1:30 : Message type",
        ),
        (b"\xff", "{path} is no ModelServerConfig in text format: "),
    ],
)
def test_file_that_cannot_be_read(content, text, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path, ModelServerConfig())
    assert str(caught.value).startswith(text.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_followed_file_is_handed_on_and_its_mistakes_are_told_once(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_text("model_config_list {")
    readings = threading.Semaphore(0)
    seen = []

    def reload(config: ModelServerConfig) -> None:
        seen.append(config)
        readings.release()

    with caplog.at_level(logging.ERROR), followed(path, 0.01, reload):
        assert not readings.acquire(timeout=0.2)
        config = _policy("")
        (tmp_path / "new").write_text(str(config))
        (tmp_path / "new").rename(path)
        assert all(readings.acquire(timeout=30) for _ in range(2))
    assert seen[0] == config
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [f"{path} is not taken over"]


def test_a_file_that_is_read_once_is_not_followed(tmp_path):
    before = threading.active_count()
    with followed(tmp_path / "nowhere", 0, lambda config: None):
        assert threading.active_count() == before
