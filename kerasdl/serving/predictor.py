"""Runs the signatures of loaded models for all transports: limited, in batches where that changes no answer."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np

from kerasdl.serving import pictures
from kerasdl.serving.batching import Parameters, Queue
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.limits import Limits
from kerasdl.serving.servable import Servable
from kerasdl.serving.workers import Call, Workers


class Predictor:
    """Takes requests.

    Args:
        workers: whose threads compute.
        limits: of requests.
        parameters: of batches.
        every: put together the requests of all signatures with a batch dimension, as TensorFlow Serving does, not
            only of those whose export says that their examples do not depend on each other.
    """

    def __init__(
        self, workers: Workers, limits: Limits, parameters: Parameters | None = None, *, every: bool = False
    ) -> None:
        self._workers, self._limits = workers, limits
        self._parameters, self._every = parameters or Parameters(target_seconds=limits.batch_seconds), every
        self._queues: weakref.WeakKeyDictionary[Servable, dict[str, Queue]] = weakref.WeakKeyDictionary()

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
        self._check_size(servable, signature, inputs)
        alike = servable.batched.get(signature)
        if alike is None and self._every and servable.has_batch(signature):
            alike = ()
        lengths = {len(array) for array in inputs.values()} if alike is not None else set()
        if alike is None or len(lengths) != 1 or lengths == {0}:
            return self._workers.submit(model, lambda cancellation: servable.run(signature, inputs, cancellation))
        queues = self._queues.setdefault(servable, {})
        if signature not in queues:
            queues[signature] = Queue(self._workers, model, signature, alike, self._parameters)
        return queues[signature].submit(servable, inputs)

    def _check_size(self, servable: Servable, signature: str, inputs: Mapping[str, np.ndarray]) -> None:
        """What is not refused here fits into memory: activations take a hundred times what a request does."""
        for name, spec in servable.inputs(signature).items():
            array = inputs[name]
            if spec.shape.rank and spec.shape[0] is None and len(array) > self._limits.max_examples:
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f'Input "{name}" holds {len(array):,} examples; this server takes '
                    f"{self._limits.max_examples:,} in a request at most",
                )
            if array.dtype == object:
                pictures.check(array.flat, round(self._limits.max_megapixels * 1e6))
