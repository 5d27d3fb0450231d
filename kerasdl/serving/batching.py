"""Requests of a signature, computed together: which may be, how many, and what each of them gets back."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from kerasdl.frozen import Cancellation
from kerasdl.serving.batch_parameters import Parameters
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.workers import Call, Workers

Arrays = Mapping[str, np.ndarray]

MAX_BYTES = 16 * 2**20
"""Inputs of a batch: activations of larger ones would not fit into the processor's caches, or into memory."""


MAX_BATCHES = 128
"""Largest batches that one request may fill."""


class Computes(Protocol):
    """What runs a signature."""

    def run(self, signature: str, inputs: Arrays, cancellation: Cancellation | None = None) -> dict[str, np.ndarray]:
        """The outputs of the inputs."""


class _Batch:
    """Requests that are computed together."""

    def __init__(self, wanted: int) -> None:
        self._cancellation, self.wanted, self._lock = Cancellation(), wanted, threading.Lock()

    def attempt(self) -> Cancellation:
        """What ends the next call. TensorFlow cancels that of a call that fails itself, so none serves twice."""
        with self._lock:
            self._cancellation = Cancellation()
            if not self.wanted:
                self._cancellation.cancel()
            return self._cancellation

    def leave(self) -> None:
        """One of them is not waited for any more; the work of none that is ends."""
        with self._lock:
            self.wanted -= 1
            if not self.wanted:
                self._cancellation.cancel()


class _Request:
    """A request that waits for its batch, or a part of one; ends by `cancel`, as a `Cancellation`."""

    def __init__(self, servable: Computes, inputs: Arrays, key: object) -> None:
        self.servable, self.inputs, self.key = servable, inputs, key
        self.rows = len(next(iter(inputs.values())))
        self.bytes = sum(_bytes(array) for array in inputs.values())
        texts = sum(_bytes(array) for name, array in inputs.items() if not name.endswith("_bytes"))
        self.length = texts / self.rows  # of an example; that of a picture's file says nothing
        self.since = time.monotonic()
        self.call: Call[dict[str, np.ndarray]] = Call(self)
        self.batch: _Batch | None = None  # before the call is under way

    def cancel(self) -> None:
        if self.batch is not None:
            self.batch.leave()


def _bytes(array: np.ndarray) -> int:
    return sum(map(len, array.flat)) if array.dtype == object else array.nbytes


class Queue:
    """Requests of one signature of a loaded model.

    A batch is what waits when the one before it is done, so that a request that comes alone is computed at once; one
    that does not fit to those that are computed goes beside them. Where many wait, texts are computed with others
    about as long as the one that waits longest. Of a batch that fails each half is computed again, down to the request
    at fault, which alone gets the error.

    Args:
        workers: whose threads compute.
        model: name, for the threads.
        signature: its name.
        alike: inputs in which all examples of a batch must agree.
        parameters: of batches.
    """

    def __init__(
        self, workers: Workers, model: str, signature: str, alike: Sequence[str], parameters: Parameters
    ) -> None:
        self._workers, self._model, self._signature = workers, model, signature
        self._alike, self._parameters = alike, parameters
        self._limit = parameters.max_batch_size
        self._waiting: deque[_Request] = deque()
        self._computing: Counter[object] = Counter()  # batches by what their requests have in common
        self._changed = threading.Condition()

    def submit(self, servable: Computes, inputs: Arrays) -> Call[dict[str, np.ndarray]]:
        """Hands in a request.

        Args:
            servable: computes.
            inputs: an array for each input, all of the same number of examples, one or more.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, when too much waits; INVALID_ARGUMENT, when the request is too large.
        """
        rows, most = len(next(iter(inputs.values()))), self._parameters.max_batch_size
        if rows > MAX_BATCHES * most:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"The request holds {rows:,} examples; this server takes {MAX_BATCHES * most:,} in a request at most",
            )
        self._check_room(rows)
        if rows <= most:
            request = _Request(servable, inputs, self._key(inputs))
            self._workers.admit(self._model, request.call)
            self._enter(request)
            return request.call
        parts = _Parts(self, servable, inputs, rows)
        self._workers.admit(self._model, parts.call)
        parts.go_on()
        return parts.call

    def part(self, servable: Computes, inputs: Arrays, start: int) -> Call[dict[str, np.ndarray]]:
        """Hands in a part of a large request, as large as a batch may be now.

        Args:
            servable: computes.
            inputs: of the whole request.
            start: place of its first example.
        """
        some = {name: array[start : start + self._limit] for name, array in inputs.items()}
        request = _Request(servable, some, self._key(some))
        self._enter(request)
        return request.call

    def _enter(self, request: _Request) -> None:
        with self._changed:
            self._waiting.append(request)
            free = self._computing[request.key] < self._parameters.num_batch_threads
            self._changed.notify()
        if free:
            self._workers.start(self._model, self._compute_all)

    def _check_room(self, rows: int) -> None:
        batches = self._parameters.max_enqueued_batches
        if batches is not None:
            with self._changed:
                waiting = sum(request.rows for request in self._waiting)
            if waiting + rows > batches * self._parameters.max_batch_size:
                raise ServingError(Code.RESOURCE_EXHAUSTED, "The batch scheduling queue is full; try again later")

    def _key(self, inputs: Arrays) -> object:
        """What examples that are computed together have in common; nothing equals the key of one that differs."""
        agreed = []
        for name in self._alike:
            values = inputs[name]
            if (values != values[:1]).any():
                return object()
            agreed.append(tuple(values[:1].ravel().tolist()))
        padded = self._parameters.pad_variable_length_inputs
        shapes = [array.ndim if padded else array.shape[1:] for _, array in sorted(inputs.items())]
        return (*agreed, *shapes)

    def _compute_all(self) -> None:
        """Computes batch after batch until nothing waits."""
        while requests := self._take():
            key = requests[0].key
            batch = _Batch(len(requests))
            started = []
            for request in requests:
                request.batch = batch
                if request.call.future.set_running_or_notify_cancel():
                    started.append(request)
                else:
                    batch.leave()
            if started:
                began = time.monotonic()
                self._compute(started, batch)
                self._learn(sum(request.rows for request in started), time.monotonic() - began)
            with self._changed:
                self._computing[key] -= 1
                if not self._computing[key]:
                    del self._computing[key]

    def _take(self) -> list[_Request]:
        """The request that waits longest, with others that fit to it; none at the end."""
        wait = self._parameters.batch_timeout_micros / 1e6
        with self._changed:
            while True:
                places, full = self._fitting()
                if not places:
                    return []
                first = self._waiting[places[0]]
                left = first.since + wait - time.monotonic()
                if full or left <= 0:
                    taken = [self._waiting[place] for place in places]
                    for place in reversed(places):
                        del self._waiting[place]
                    self._computing[first.key] += 1
                    return taken
                self._changed.wait(left)

    def _fitting(self) -> tuple[list[int], bool]:
        """Places of a batch among those that wait, and whether no more would go in."""
        places: list[int] = []
        key, rows, size, length = None, 0, 0, 0.0
        crowded = len(self._waiting) >= self._limit // 2
        for place, request in enumerate(self._waiting):
            if not places:
                if self._computing[request.key] >= self._parameters.num_batch_threads:
                    continue
                key, length = request.key, request.length
            elif request.key != key or rows + request.rows > self._limit or size + request.bytes > MAX_BYTES:
                continue
            elif crowded and not length / 2 <= request.length <= 2 * length:
                continue  # a model pads texts to the longest of a batch, and there are enough others
            places.append(place)
            rows, size = rows + request.rows, size + request.bytes
            if rows >= self._limit or size >= MAX_BYTES:
                return places, True
        return places, False

    def _learn(self, rows: int, seconds: float) -> None:
        """Fewer at once after a batch that took too long, more after a full one that did not."""
        target, most = self._parameters.target_seconds, self._parameters.max_batch_size
        if seconds > target and rows > 1:
            self._limit = max(1, int(rows * target / seconds))
        elif rows >= self._limit:
            self._limit = min(most, self._limit + max(1, self._limit // 4))

    def _compute(self, requests: list[_Request], batch: _Batch) -> None:
        try:
            outputs = self._outputs(requests, batch.attempt())
        except ServingError as error:
            if len(requests) == 1 or not batch.wanted:
                for request in requests:
                    request.call.future.set_exception(error)
                return
            middle = len(requests) // 2
            self._compute(requests[:middle], batch)
            self._compute(requests[middle:], batch)
        except Exception as error:
            for request in requests:
                request.call.future.set_exception(error)
        else:
            for request, own in zip(requests, outputs, strict=True):
                request.call.future.set_result(own)

    def _outputs(self, requests: list[_Request], cancellation: Cancellation) -> list[dict[str, np.ndarray]]:
        """What each request gets."""
        servable = requests[0].servable
        rows = sum(request.rows for request in requests)
        size = next((size for size in self._parameters.allowed_batch_sizes if size >= rows), rows)
        if len(requests) == 1 and size == rows:
            return [servable.run(self._signature, requests[0].inputs, cancellation)]
        names = requests[0].inputs
        inputs = {name: _together([request.inputs[name] for request in requests], size) for name in names}
        outputs = servable.run(self._signature, inputs, cancellation)
        if any(array.ndim == 0 or len(array) != size for array in outputs.values()):
            if len(requests) == 1:  # it was filled up
                return [servable.run(self._signature, requests[0].inputs, cancellation)]
            raise ServingError(Code.FAILED_PRECONDITION, "an output has not one row for each example of a batch")
        ends = np.cumsum([request.rows for request in requests])
        return [
            {name: array[end - request.rows : end] for name, array in outputs.items()}
            for request, end in zip(requests, ends, strict=True)
        ]


def _together(arrays: list[np.ndarray], size: int) -> np.ndarray:
    """Arrays one behind the other, filled up to a size by repeating the first example."""
    if len({array.shape[1:] for array in arrays}) > 1:
        longest = np.max([array.shape[1:] for array in arrays], axis=0)
        arrays = [
            np.pad(
                array,
                [(0, 0), *((0, most - own) for most, own in zip(longest, array.shape[1:], strict=True))],
                constant_values=array.flat[0] if array.size else (b"" if array.dtype == object else 0),
            )
            for array in arrays
        ]
    missing = size - sum(len(array) for array in arrays)
    return np.concatenate([*arrays, *[arrays[0][:1]] * missing])


class _Parts:
    """A request that is larger than a batch: one part after the other, so that small requests come in between.

    Args:
        queue: computes the parts.
        servable: computes.
        inputs: of the whole request.
        rows: its examples.
    """

    def __init__(self, queue: Queue, servable: Computes, inputs: Arrays, rows: int) -> None:
        self._queue, self._servable, self._inputs, self._rows = queue, servable, inputs, rows
        self._answers: list[dict[str, np.ndarray]] = []
        self._done, self._left = 0, False
        self._part: Call[dict[str, np.ndarray]] | None = None
        self.call: Call[dict[str, np.ndarray]] = Call(self)
        self.call.future.set_running_or_notify_cancel()  # so that `cancel` comes here

    def go_on(self) -> None:
        """Begins the next part."""
        self._part = part = self._queue.part(self._servable, self._inputs, self._done)
        part.future.add_done_callback(self._ended)
        if self._left:
            part.cancel()

    def cancel(self) -> None:
        """Ends the request."""
        self._left = True
        if self._part is not None:
            self._part.cancel()

    def _ended(self, future: Future[dict[str, np.ndarray]]) -> None:
        if future.cancelled():
            self.call.future.set_exception(ServingError(Code.CANCELLED, "Nobody waits for the answer"))
        elif (error := future.exception()) is not None:
            self.call.future.set_exception(error)
        else:
            answer = future.result()
            self._answers.append(answer)
            self._done += len(next(iter(answer.values())))
            if self._done < self._rows:
                self.go_on()
                return
            names = self._answers[0]
            self.call.future.set_result({name: np.concatenate([one[name] for one in self._answers]) for name in names})
