"""The loaded models, kept in step with their folders: a new version replaces the old without a gap."""

import enum
import gc
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from kerasdl.serving import configuration
from kerasdl.serving.discovery import find_models, find_versions
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.metrics import Metrics
from kerasdl.serving.servable import Servable

Fingerprint = frozenset[tuple[str, int, int]]

_WARNING_SECONDS = 60.0

_log = logging.getLogger(__name__)


class State(enum.Enum):
    """Life of a version, in the words of TensorFlow Serving."""

    START = enum.auto()
    LOADING = enum.auto()
    AVAILABLE = enum.auto()
    END = enum.auto()


@dataclass(frozen=True)
class VersionStatus:
    """What is known of one version.

    Attributes:
        state: where it is in its life.
        error: why it ended, if a failure ended it.
        servable: the loaded model while AVAILABLE.
        fingerprint: its files when loading failed; a change of them is a reason to try again.
        attempts: how often the same files failed.
        retry_at: monotonic time of the next attempt with the same files, in seconds.
    """

    state: State
    error: ServingError | None = None
    servable: Servable | None = None
    fingerprint: Fingerprint = frozenset()
    attempts: int = 0
    retry_at: float = math.inf


class ModelRepository:
    """Serves the versions that a configuration asks for, or the newest of each model in a folder; follows changes.

    A new version is loaded before the old one is dropped, and a version that cannot be loaded never replaces
    one that could; where the newest are asked for, an older one then takes its place. Requests under way keep the
    version that they acquired. Used as a context manager, a thread of its own polls the folders.

    Args:
        source: folder with `<model>/<version>/saved_model.pb`, of which the newest versions serve, or a configuration.
        report: called after each load with the model's name, the version and the error, None for success.
        begins: called before each load with the model's name and the version.
        poll_seconds: pause between two looks at the folders; 0 for one look alone.
        max_retries: how often a load that failed is tried again while its files stay the same.
        retry_seconds: pause before such a retry.
        free_labels: whether a label that is new may name a version that is not loaded.
        metrics: receives how long warm-ups take.

    Raises:
        ServingError: as `reload`.
    """

    def __init__(
        self,
        source: Path | ModelServerConfig,
        report: Callable[[str, int, ServingError | None], None] = lambda name, version, error: None,
        begins: Callable[[str, int], None] = lambda name, version: None,
        poll_seconds: float = 1.0,
        *,
        max_retries: int = 5,
        retry_seconds: float = 60.0,
        free_labels: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self._report, self._begins = report, begins
        self._poll_seconds = poll_seconds
        self._max_retries, self._retry_seconds = max_retries, retry_seconds
        self._free_labels, self._metrics = free_labels, metrics
        self._lock = threading.Lock()  # of what requests read, for a moment
        self._changing = threading.Lock()  # of changes, while models load
        self._models: dict[str, dict[int, VersionStatus]] = {}
        self._wanted: dict[str, configuration.Model] = {}
        self._folders: dict[str, dict[int, Path]] = {}  # of the wanted models, as last seen
        self._root = source if isinstance(source, Path) else None
        if not isinstance(source, Path):
            self._wanted = self._checked(source)
        self._warned: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="model-repository")

    def __enter__(self) -> Self:
        self._discover()  # now, so that no question finds the repository empty before the thread has looked
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def acquire(self, name: str, version: int | None = None) -> Servable:
        """Returns a loaded model, which stays usable for as long as the caller holds it.

        Args:
            name: model.
            version: its version; None for the newest that is loaded.

        Raises:
            ServingError: NOT_FOUND, when it is not loaded.
        """
        with self._lock:
            versions = self._models.get(name, {})
            for number in sorted(versions, reverse=True) if version is None else [version]:
                status = versions.get(number)
                if status and status.servable:
                    return status.servable
        which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {which}")

    def labelled(self, name: str, label: str) -> int:
        """Returns the version of a model that has a label; it need not be loaded.

        Raises:
            ServingError: INVALID_ARGUMENT, when there is none.
        """
        model = self._wanted.get(name)
        if model is None or label not in model.labels:
            raise ServingError(Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        return model.labels[label]

    def names(self) -> list[str]:
        """The models that were ever to be served."""
        with self._lock:
            return sorted(self._models)

    def known(self, name: str) -> bool:
        """Whether a model of this name was ever to be served."""
        return name in self._models

    def status(self, name: str, version: int | None = None) -> dict[int, VersionStatus]:
        """Returns the state of every version that was ever looked at, or of one; newest first.

        Raises:
            ServingError: NOT_FOUND, when the model or the version is unknown.
        """
        with self._lock:
            versions = dict(self._models.get(name, {}))
        if version is None:
            if not versions:
                raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
            return dict(sorted(versions.items(), reverse=True))
        if version not in versions:
            raise ServingError(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
        return {version: versions[version]}

    def unavailable(self) -> dict[str, str]:
        """Returns the models that should be served and have no loaded version, each with the reason."""
        with self._lock:
            reasons = {}
            for name, model in sorted(self._wanted.items()):
                versions = self._models.get(name, {})
                if not versions:
                    reasons[name] = f"no version below {model.base_path}"
                elif not any(status.servable for status in versions.values()):
                    newest = max(versions)
                    status = versions[newest]
                    reason = status.error.message if status.error else status.state.name
                    reasons[name] = f"version {newest}: {reason}"
            return reasons

    def poll(self) -> None:
        """Looks at the folders once; loads and unloads what their changes ask for."""
        with self._changing:
            self._discover()
            self._settle()

    def reload(self, config: ModelServerConfig) -> None:
        """Replaces the whole configuration; returns when every load has succeeded or failed.

        Models that are left out are unloaded. An empty message changes nothing. A loaded version stays as it is, also
        when the folder of its model is another one now.

        Args:
            config: the new configuration.

        Raises:
            ServingError: INVALID_ARGUMENT for a mistake in it; FAILED_PRECONDITION for a label of a version that is
                not loaded. Then nothing has changed.
        """
        if config.WhichOneof("config") is None:
            return
        with self._changing:
            wanted, before = self._checked(config), self._wanted
            for name in before:
                if name not in wanted or wanted[name].base_path != before[name].base_path:
                    self._folders.pop(name, None)  # seen in another place
            with self._lock:
                self._root, self._wanted = None, wanted
            self._discover()
            self._settle()

    def _checked(self, config: ModelServerConfig) -> dict[str, configuration.Model]:
        wanted = configuration.models(config)
        for name, model in wanted.items():
            before = self._wanted[name].labels if name in self._wanted else {}
            for label, version in model.labels.items():
                free = self._free_labels and before.get(label, version) == version
                if not free and not self._is_available(name, version):
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {name}, "
                        "which is not currently available for inference",
                    )
        return wanted

    def _follow(self) -> None:
        self.poll()
        while not self._stop.wait(self._poll_seconds or 1.0):
            if self._poll_seconds:
                self.poll()
            else:
                with self._changing:
                    self._settle()  # a load may be due again

    def _discover(self) -> None:
        # What cannot be read is as it was: a network folder that is away for a moment is no reason to unload anything.
        if self._root is not None:
            try:
                self._folders = find_models(self._root)
            except OSError:
                return
            wanted = {name: configuration.Model(self._root / name) for name in self._folders}
        else:
            wanted = self._wanted
            for name, model in wanted.items():
                try:
                    self._folders[name] = find_versions(model.base_path)
                except OSError as error:
                    self._warn(f"{name}: cannot read {model.base_path}: {error.strerror}")
                    continue
                found = model.candidates(self._folders[name])
                missing = sorted((model.only or frozenset()).difference(found))
                if missing:
                    self._warn(f"{name}: no version {', '.join(map(str, missing))} below {model.base_path}")
                elif not found:
                    self._warn(f"{name}: no version below {model.base_path}; expected <integer version>/saved_model.pb")
        with self._lock:
            self._wanted = wanted
            for name, model in wanted.items():
                versions = self._models.setdefault(name, {})
                for version in model.candidates(self._folders.get(name, {}))[: model.at_most]:
                    versions.setdefault(version, VersionStatus(State.START))

    def _warn(self, message: str) -> None:
        """Says what does not go away by itself again and again, but not at every look."""
        now = time.monotonic()
        if now >= self._warned.get(message, -math.inf) + _WARNING_SECONDS:
            self._warned[message] = now
            _log.warning("%s", message)

    def _settle(self) -> None:
        for name in list(self._models):
            if name not in self._wanted:
                self._unload(name, keep=set())
        names = [name for name in self._models if name in self._wanted and name in self._folders]
        loading = [name for name in names if not self._has_newest(name)]
        for name in names:
            if name not in loading:
                self._update(name)
        # Half of a load computes in C++, without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="load") as pool:
            list(pool.map(self._update, loading))

    def _has_newest(self, name: str) -> bool:
        model = self._wanted[name]
        newest = model.candidates(self._folders[name])[: model.at_most]
        return all(self._is_available(name, version) for version in newest)

    def _update(self, name: str) -> None:
        model, folders = self._wanted[name], self._folders[name]
        serving: set[int] = set()
        candidates = model.candidates(folders)
        for version in candidates:
            if self._stop.is_set():
                return
            if len(serving) == model.at_most:
                break
            if self._is_available(name, version) or self._load(name, version, folders[version]):
                serving.add(version)
        if serving or not candidates:  # else nothing new could be loaded: keep what is there
            self._unload(name, keep=serving)

    def _unload(self, name: str, keep: set[int]) -> None:
        old = [version for version in self._models[name] if self._is_available(name, version) and version not in keep]
        for version in old:
            self._set(name, version, VersionStatus(State.END))
        if old:
            gc.collect()  # a loaded model holds reference cycles; its memory is wanted back now

    def _load(self, name: str, version: int, folder: Path) -> bool:
        fingerprint = _fingerprint(folder)
        before = self._models[name].get(version)
        attempts = 1
        if before and before.error and before.fingerprint == fingerprint:
            if before.attempts > self._max_retries or time.monotonic() < before.retry_at:
                return False
            attempts += before.attempts
        self._set(name, version, VersionStatus(State.LOADING))
        self._begins(name, version)
        error = None
        try:
            loaded = VersionStatus(State.AVAILABLE, servable=Servable(folder, self._metrics))
        except ServingError as fault:
            error = fault
        except Exception as fault:  # whatever is wrong with a foreign file must not end the server
            code = Code(getattr(fault, "error_code", Code.UNKNOWN))
            error = ServingError(code, str(fault) or type(fault).__name__)
        if error:
            retry_at = time.monotonic() + self._retry_seconds
            loaded = VersionStatus(
                State.END, error=error, fingerprint=fingerprint, attempts=attempts, retry_at=retry_at
            )
        self._set(name, version, loaded)
        self._report(name, version, error)
        return error is None

    def _is_available(self, name: str, version: int) -> bool:
        status = self._models.get(name, {}).get(version)
        return status is not None and status.servable is not None

    def _set(self, name: str, version: int, status: VersionStatus) -> None:
        with self._lock:
            self._models[name][version] = status


def _fingerprint(folder: Path) -> Fingerprint:
    found = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError:  # removed meanwhile
                continue
            found.add((path, status.st_mtime_ns, status.st_size))
    return frozenset(found)
