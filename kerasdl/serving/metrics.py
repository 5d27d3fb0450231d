"""Counts and times of requests for Prometheus, under the names of TensorFlow Serving."""

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric

from kerasdl.errors import UserError
from kerasdl.serving.configuration import message_type, read
from kerasdl.serving.errors import Code

_PREFIX = ":tensorflow:serving:"
_MICROSECONDS = [10 * 1.8**power for power in range(33)]
_EXAMPLES = [2.0**power for power in range(15)]

# TensorFlow Serving's monitoring_config.proto, which its package for Python lacks.
_SCHEMA = """
name: "monitoring_config.proto" package: "tensorflow.serving" syntax: "proto3"
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 label: LABEL_OPTIONAL type: TYPE_BOOL }
  field { name: "path" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
}
message_type {
  name: "MonitoringConfig"
  field {
    name: "prometheus_config" number: 1 label: LABEL_OPTIONAL
    type: TYPE_MESSAGE type_name: ".tensorflow.serving.PrometheusConfig"
  }
}
"""


def monitoring_path(path: Path) -> str | None:
    """Reads a monitoring config file, `prometheus_config { enable: true path: "/metrics" }`.

    Returns:
        Where the metrics are told; None if they are not.

    Raises:
        UserError: unreadable or malformed.
    """
    config: Any = read(path, message_type(_SCHEMA, "MonitoringConfig")())
    if not config.prometheus_config.enable:
        return None
    found = config.prometheus_config.path or "/monitoring/prometheus/metrics"
    if not found.startswith("/"):
        raise UserError(f"{path}: the path of prometheus_config is {found}; expected one that begins with /")
    return found


class _Histogram:
    def __init__(self, name: str, documentation: str, labels: Sequence[str], limits: Sequence[float]) -> None:
        self._name, self._documentation, self._labels, self._limits = _PREFIX + name, documentation, labels, limits
        self._cells: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def add(self, labels: tuple[str, ...], value: float) -> None:
        counts, total = self._cells.get(labels, ([0] * (len(self._limits) + 1), 0.0))
        counts[bisect.bisect_left(self._limits, value)] += 1
        self._cells[labels] = counts, total + value

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        limits = [*(f"{limit:g}" for limit in self._limits), "+Inf"]
        for labels, (counts, total) in self._cells.items():
            family.add_metric(labels, list(zip(limits, itertools.accumulate(counts), strict=True)), total)
        return family


class Metrics:
    """Gathers what is measured; safe to use from many threads.

    What a client may choose freely is no label: it would take memory for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()

        def latency(name: str, of: str, *labels: str) -> _Histogram:
            documentation = f"Distribution of wall time (in microseconds) for {of}."
            return _Histogram(name, documentation, labels, _MICROSECONDS)

        self._request = latency("request_latency", "TensorFlow Serving request", "model_name", "API", "entrypoint")
        self._runtime = latency("runtime_latency", "TensorFlow runtime", "model_name", "API", "runtime")
        self._warmup = latency("model_warmup_latency", "warming up the model", "model_path", "status")
        self._examples = _Histogram(
            "request_example_counts", "The number of examples per request.", ["model"], _EXAMPLES
        )

    def request(self, model: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Counts a request, and its time if it succeeded.

        Args:
            model: name of a model; empty for what names none that is known.
            api: `predict`, `classify`, `regress`, or `stream`, which TensorFlow Serving does not have.
            entrypoint: `REST` or `GRPC`.
            code: how it ended.
            seconds: how long it took.
        """
        with self._lock:
            self._requests[model, code.name] += 1
            if code is Code.OK:
                self._request.add((model, api, entrypoint), seconds * 1e6)

    def runtime(self, model: str, api: str, runtime: str, seconds: float) -> None:
        """Takes the time that the graph of a model ran.

        Args:
            model: its name.
            api: as for `request`.
            runtime: what ran it.
            seconds: how long.
        """
        with self._lock:
            self._runtime.add((model, api, runtime), seconds * 1e6)

    def examples(self, model: str, count: int) -> None:
        """Takes the number of examples in a request of a model."""
        with self._lock:
            self._examples.add((model,), count)

    def warmup(self, path: Path, status: str, seconds: float) -> None:
        """Takes the time of a warm-up.

        Args:
            path: folder of the version.
            status: name of the canonical code with which it ended.
            seconds: how long it took.
        """
        with self._lock:
            self._warmup.add((str(path), status), seconds * 1e6)

    def collect(self) -> Iterator[Metric]:
        """What was measured so far, as Prometheus' client wants it."""
        with self._lock:
            count = Metric(f"{_PREFIX}request_count", "The total number of requests.", "counter")
            for (model, status), value in self._requests.items():
                count.add_sample(count.name, {"model_name": model, "status": status}, value)
            families = [count]
            families += [
                histogram.family() for histogram in (self._request, self._runtime, self._warmup, self._examples)
            ]
        yield from families

    def page(self) -> bytes:
        """What was measured so far, in Prometheus' text format."""
        # The client lets the name of every counter end in `_total`, but not its samples.
        return generate_latest(self).replace(b"request_count_total ", b"request_count ")
