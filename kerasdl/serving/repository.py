"""The models below a folder, kept in step with it: the newest version serves, replaced without a gap."""

import enum
import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kerasdl.serving.discovery import find_models
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.servable import Servable

Fingerprint = frozenset[tuple[str, int, int]]


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
    """

    state: State
    error: ServingError | None = None
    servable: Servable | None = None
    fingerprint: Fingerprint = frozenset()


class ModelRepository:
    """Serves the newest loadable version of each model in a folder and follows the folder's changes.

    A new version is loaded before the old one is dropped, and a version that cannot be loaded never replaces
    one that could; then the next older one is taken if none is loaded. Requests under way keep the version
    that they acquired. Used as a context manager, a thread of its own polls the folder.

    Args:
        root: folder with `<model>/<version>/saved_model.pb`.
        report: called after each load with the model's name, the version and the error, None for success.
        begins: called before each load with the model's name and the version.
        poll_seconds: pause between two looks at the folder.
    """

    def __init__(
        self,
        root: Path,
        report: Callable[[str, int, ServingError | None], None] = lambda name, version, error: None,
        begins: Callable[[str, int], None] = lambda name, version: None,
        poll_seconds: float = 1.0,
    ) -> None:
        self._root = root
        self._report, self._begins = report, begins
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._models: dict[str, dict[int, VersionStatus]] = {}
        self._present: set[str] = set()
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
        """Returns the models in the folder that have no loaded version, each with the reason."""
        with self._lock:
            reasons = {}
            for name in sorted(self._present):
                versions = self._models[name]
                if not any(status.servable for status in versions.values()):
                    newest = max(versions)
                    status = versions[newest]
                    reason = status.error.message if status.error else status.state.name
                    reasons[name] = f"version {newest}: {reason}"
            return reasons

    def poll(self) -> None:
        """Looks at the folder once; loads and unloads what its changes ask for."""
        models = self._discover()
        if models is not None:
            for name in list(self._models):
                self._update(name, models.get(name, {}))

    def _follow(self) -> None:
        self.poll()
        while not self._stop.wait(self._poll_seconds):
            self.poll()

    def _discover(self) -> dict[str, dict[int, Path]] | None:
        try:
            models = find_models(self._root)
        except OSError:  # a network folder that is away for a moment is no reason to unload anything
            return None
        with self._lock:
            self._present = set(models)
            for name, folders in models.items():
                self._models.setdefault(name, {}).setdefault(max(folders), VersionStatus(State.START))
        return models

    def _update(self, name: str, folders: dict[int, Path]) -> None:
        serving = None
        for version in sorted(folders, reverse=True):
            if self._stop.is_set():
                return
            if self._is_available(name, version) or self._load(name, version, folders[version]):
                serving = version
                break
        if serving is None and folders:
            return  # nothing new could be loaded: keep what is there
        loaded = [version for version in self._models[name] if self._is_available(name, version)]
        old = [version for version in loaded if version != serving]
        for version in old:
            self._set(name, version, VersionStatus(State.END))
        if old:
            gc.collect()  # a loaded model holds reference cycles; its memory is wanted back now

    def _load(self, name: str, version: int, folder: Path) -> bool:
        fingerprint = _fingerprint(folder)
        before = self._models[name].get(version)
        if before and before.error and before.fingerprint == fingerprint:
            return False
        self._set(name, version, VersionStatus(State.LOADING))
        self._begins(name, version)
        error = None
        try:
            loaded = VersionStatus(State.AVAILABLE, servable=Servable(folder))
        except ServingError as fault:
            error = fault
        except Exception as fault:  # whatever is wrong with a foreign file must not end the server
            code = Code(getattr(fault, "error_code", Code.UNKNOWN))
            error = ServingError(code, str(fault) or type(fault).__name__)
        if error:
            loaded = VersionStatus(State.END, error=error, fingerprint=fingerprint)
        self._set(name, version, loaded)
        self._report(name, version, error)
        return error is None

    def _is_available(self, name: str, version: int) -> bool:
        status = self._models[name].get(version)
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
