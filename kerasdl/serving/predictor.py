"""Runs the signatures of loaded models for all transports: limited, in batches where that changes no answer."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kerasdl import processor
from kerasdl.frozen import Cancellation
from kerasdl.serving import pictures
from kerasdl.serving.apart import Apart
from kerasdl.serving.batch_parameters import Parameters
from kerasdl.serving.batching import Queue
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.lane import Deadlines, Lane
from kerasdl.serving.limits import Limits
from kerasdl.serving.metrics import Metrics
from kerasdl.serving.pace import Pace, Quickest
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import Servable
from kerasdl.serving.workers import Call, Workers

_PATIENCE = 5
"""Times that a call which is quick by itself may take longer than `--long-seconds`; quick is as much below it."""


class Predictor:
    """Takes requests.

    Attributes:
        repository: the loaded models.
        limits: of requests.
        workers: whose threads compute.
        metrics: what is measured.
        apart: a process for what would hold up all others.

    Args:
        repository: models to serve.
        limits: of requests.
        metrics: receives what is measured.
        parameters: of batches.
        every: put together the requests of all signatures with a batch dimension, as TensorFlow Serving does, not
            only of those whose export says that their examples do not depend on each other.
        per_model: let `batching_params.pbtxt` in the folder of a version set the parameters of its batches.
    """

    def __init__(
        self,
        repository: ModelRepository,
        limits: Limits,
        metrics: Metrics | None = None,
        parameters: Parameters | None = None,
        *,
        every: bool = False,
        per_model: bool = False,
    ) -> None:
        self.repository, self.limits, self.metrics = repository, limits, metrics or Metrics()
        self.workers = Workers(processor.num_cores(), limits.max_waiting)
        self.apart, self._pace = Apart(), Pace(limits.timeout_seconds)
        self._long = LongCalls(limits.long_seconds)
        self._parameters, self._every, self._per_model = parameters or Parameters(), every, per_model
        self._queues: weakref.WeakKeyDictionary[Servable, dict[str, Queue]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def acquire(self, model: str, version: int | None, label: str | None) -> Servable:
        """Returns a loaded model: the newest version, or that of a number or label.

        Raises:
            ServingError: there is none.
        """
        if label is not None:
            version = self.repository.labelled(model, label)
        return self.repository.acquire(model, version)

    def unavailable(self) -> dict[str, str]:
        """The models that cannot answer now, each with the reason."""
        return self.repository.unavailable() | self.workers.full()

    def close(self, seconds: float) -> bool:
        """Ends all work; gives whether that was done within a time."""
        self.apart.close()
        ended = self.workers.close(seconds)
        self._long.close()
        return ended

    def submit(
        self, model: str, servable: Servable, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> Call[dict[str, np.ndarray]]:
        """Hands in a request.

        Args:
            model: its name, whose threads compute.
            servable: the loaded version.
            signature: to be run.
            inputs: array for each of its inputs; strings as object arrays of bytes.

        Returns:
            A call whose future receives an array for each output.

        Raises:
            ServingError: INVALID_ARGUMENT, when the inputs do not fit the signature or are beyond a limit;
                RESOURCE_EXHAUSTED, when too much waits.
        """
        servable.check(signature, inputs)
        for array in inputs.values():
            if array.dtype == object:
                pictures.check(array.flat, round(self.limits.max_megapixels * 1e6))
        self.metrics.examples(model, max((len(array) for array in inputs.values() if array.ndim), default=1))
        alike = servable.batched.get(signature)
        if alike is None and self._every and servable.has_batch(signature):
            alike = ()
        # Small requests that were put together with large ones, or wait for them, must not go where there is less time.
        measured = _Measured(servable, model, self.metrics, None if alike == () else self._long)
        lengths = {len(array) for array in inputs.values()} if alike is not None else set()
        if alike is None or len(lengths) != 1 or lengths == {0}:
            self._check_examples(servable, signature, inputs)

            def work(cancellation: Cancellation) -> dict[str, np.ndarray]:
                def run(given: Mapping[str, np.ndarray], expected: float) -> tuple[dict[str, np.ndarray], float]:
                    return measured.run(signature, given, cancellation, expected), measured.seconds

                return self._pace.run(servable, signature, inputs, run)

            return self.workers.submit(model, work)
        return self._queue(model, servable, signature, alike).submit(measured, inputs)

    def _queue(self, model: str, servable: Servable, signature: str, alike: Sequence[str]) -> Queue:
        with self._lock:
            queues = self._queues.setdefault(servable, {})
            if signature not in queues:
                parameters = self._parameters
                if self._per_model and servable.batching is not None:
                    parameters = servable.batching
                parameters = replace(parameters, target_seconds=self.limits.batch_seconds)
                queues[signature] = Queue(self.workers, model, signature, alike, parameters)
            return queues[signature]

    def _check_examples(self, servable: Servable, signature: str, inputs: Mapping[str, np.ndarray]) -> None:
        """What is computed at once must fit into memory: activations take a hundred times what a request does."""
        for name, spec in servable.inputs(signature).items():
            if spec.shape.rank and spec.shape[0] is None and len(inputs[name]) > self.limits.max_examples:
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f'Input "{name}" holds {len(inputs[name]):,} examples; this server takes '
                    f"{self.limits.max_examples:,} in a request at most",
                )


class LongCalls:
    """Where calls that take long go, and after how long.

    Attributes:
        seconds: that a call may take beside others.
        lane: where it goes then.
        quickest: how long calls took.

    Args:
        seconds: see there.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.lane, self.quickest = seconds, Lane(), Quickest()
        self._deadlines, self._patient = Deadlines(seconds), Deadlines(_PATIENCE * seconds)

    def deadlines(self, servable: Servable, signature: str, inputs: Mapping[str, np.ndarray]) -> Deadlines:
        """A call that is quick by itself only waits for others, and would wait longer behind those that take long."""
        quick = self.quickest.seconds(servable, signature, inputs) <= self.seconds / _PATIENCE
        return self._patient if quick else self._deadlines

    def close(self) -> None:
        """Ends the process, and all waits."""
        self.lane.close()
        self._deadlines.close()
        self._patient.close()


class _Measured:
    """Runs a servable, and takes the time; what takes long is begun anew in the process for it."""

    def __init__(self, servable: Servable, model: str, metrics: Metrics, long: LongCalls | None) -> None:
        self._servable, self._model, self._metrics, self._long = servable, model, metrics, long
        self.seconds = 0.0  # of the last call

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        cancellation: Cancellation | None = None,
        expected_seconds: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """As that of the servable; what is expected to take long begins in the process for it."""
        began = time.monotonic()
        cancellation, gone = cancellation or Cancellation(), threading.Event()
        cancellation.then(gone.set)
        outputs: dict[str, np.ndarray] | None = None
        long = self._long if self._servable.is_prepared(signature) else None
        if long is None:
            outputs = self._servable.run(signature, inputs, cancellation)
        elif expected_seconds <= long.seconds:
            outputs = self._watched(signature, inputs, cancellation, gone, long)
        self.seconds = time.monotonic() - began
        if long is not None:
            if outputs is None:
                outputs, self.seconds = long.lane.run(self._servable.folder, signature, inputs, gone)
            long.quickest.learn(self._servable, signature, inputs, self.seconds)
        assert outputs is not None
        self._metrics.runtime(self._model, "predict", "TF2", self.seconds)
        return outputs

    def _watched(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        cancellation: Cancellation,
        gone: threading.Event,
        long: LongCalls,
    ) -> dict[str, np.ndarray] | None:
        """The outputs; None when they were not there in time."""
        own, late = Cancellation(), threading.Event()
        cancellation.then(own.cancel)

        def end() -> None:
            late.set()
            own.cancel()

        entry = long.deadlines(self._servable, signature, inputs).add(end)
        try:
            return self._servable.run(signature, inputs, own)
        except ServingError as error:
            if error.code is not Code.CANCELLED or gone.is_set() or not late.is_set():
                raise
        finally:
            entry.clear()
        return None
