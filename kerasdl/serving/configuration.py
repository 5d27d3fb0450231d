"""Which models and versions to serve, as TensorFlow Serving's model config file says; needs no TensorFlow."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.message import Message
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig, ModelType

from kerasdl.errors import UserError
from kerasdl.serving.errors import Code, ServingError

M = TypeVar("M", bound=Message)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """What is to be served of one model.

    Attributes:
        base_path: folder that holds the version folders.
        only: versions that may be served; None for any.
        at_most: how many are served, the newest first; None for all.
        labels: further names of versions.
    """

    base_path: Path
    only: frozenset[int] | None = None
    at_most: int | None = 1
    labels: Mapping[str, int] = field(default_factory=dict)

    def candidates(self, versions: Iterable[int]) -> list[int]:
        """Those of the versions that may be served, the newest first."""
        return sorted((version for version in versions if self.only is None or version in self.only), reverse=True)


def models(config: ModelServerConfig) -> dict[str, Model]:
    """Reads the models of a configuration, by name.

    Raises:
        ServingError: INVALID_ARGUMENT, in the words of TensorFlow Serving.
    """
    if config.HasField("custom_model_config"):
        raise _invalid("A custom_model_config is not supported; expected a model_config_list")
    found: dict[str, Model] = {}
    for entry in config.model_config_list.config:
        if entry.name in found:
            raise _invalid(f"Illegal to list model {entry.name} multiple times in config list")
        found[entry.name] = _model(entry)
    return found


def message_type(schema: str, name: str) -> type[Message]:
    """A message of TensorFlow Serving's that its package for Python lacks.

    Args:
        schema: its file, as the text of a `FileDescriptorProto`.
        name: of the message.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(text_format.Parse(schema, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


def read(path: Path, message: M) -> M:
    """Reads a file in protocol buffers' text format into a message, which it returns.

    Raises:
        UserError: unreadable or malformed.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        kind = message.DESCRIPTOR.name
        raise UserError(f"{path} is no {kind} in text format: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def followed(path: Path, seconds: float, reload: Callable[[ModelServerConfig], None]) -> Iterator[None]:
    """While the context lasts, a thread reads a model config file at intervals and hands it on.

    A mistake in the file is logged, once, and changes nothing.

    Args:
        path: file.
        seconds: pause between two readings; 0 for none at all.
        reload: takes the configuration.
    """
    stop = threading.Event()

    def follow() -> None:
        told = ""
        while not stop.wait(seconds):
            mistake = ""
            try:
                reload(read(path, ModelServerConfig()))
            except (UserError, ServingError) as error:
                mistake = f"{path} is not taken over: {error}"
            if mistake and mistake != told:
                _log.error("%s", mistake)
            told = mistake

    if not seconds:
        yield
        return
    thread = threading.Thread(target=follow, name="model-config-file")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _model(entry: ModelConfig) -> Model:
    if entry.model_type and entry.model_platform:
        raise _invalid(f"Illegal setting both model_type (deprecated) and model_platform of model {entry.name}")
    platform = entry.model_platform or ("tensorflow" if entry.model_type == ModelType.TENSORFLOW else "")
    if not platform:
        raise _invalid(f"Illegal setting neither model_type (deprecated) nor model_platform of model {entry.name}")
    if platform != "tensorflow":
        raise _invalid(f"Model {entry.name} requests unsupported platform {platform}")
    base_path = Path(entry.base_path)
    if not base_path.is_absolute():
        raise _invalid(f"Expected model {entry.name} to have an absolute path; got base_path()={entry.base_path}")
    policy = entry.model_version_policy
    choice = policy.WhichOneof("policy_choice") or "latest"
    return Model(
        base_path,
        only=frozenset(policy.specific.versions) if choice == "specific" else None,
        at_most=max(policy.latest.num_versions, 1) if choice == "latest" else None,
        labels=dict(entry.version_labels),
    )


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)
