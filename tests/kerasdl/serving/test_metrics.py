"""What Prometheus is told."""

import json
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kerasdl.errors import UserError
from kerasdl.serving.errors import Code
from kerasdl.serving.metrics import Metrics, monitoring_path
from kerasdl.serving.repository import ModelRepository

PATH = "/monitoring/prometheus/metrics"
LATENCY = ":tensorflow:serving:request_latency"
GOOD = '{"instances": [[1.0, 2.0]]}'


def _samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {  # the parser lets every counter end in `_total`
        (sample.name.removesuffix("_total"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def _key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f":tensorflow:serving:{name}", frozenset(labels.items())


def test_nothing_is_told_but_the_names_of_tensorflow_serving():
    metrics = Metrics()
    metrics.request("m", "predict", "REST", Code.OK, 1e-3)
    types = [line for line in metrics.page().decode().splitlines() if line.startswith("# TYPE")]
    assert types == [
        "# TYPE :tensorflow:serving:request_count counter",
        "# TYPE :tensorflow:serving:request_latency histogram",
        "# TYPE :tensorflow:serving:runtime_latency histogram",
        "# TYPE :tensorflow:serving:model_warmup_latency histogram",
        "# TYPE :tensorflow:serving:request_example_counts histogram",
    ]
    lines = [line for line in metrics.page().decode().splitlines() if not line.startswith("#")]
    assert lines[0] == ':tensorflow:serving:request_count{model_name="m",status="OK"} 1.0'
    assert {line.partition("{")[0] for line in lines[1:]} == {f"{LATENCY}_{end}" for end in ("bucket", "sum", "count")}


def test_requests_are_counted_by_status_and_timed_if_they_succeed():
    metrics = Metrics()
    for code, seconds in ((Code.OK, 10e-6), (Code.OK, 17e-6), (Code.OK, 1e9), (Code.INVALID_ARGUMENT, 5.0)):
        metrics.request("m", "predict", "REST", code, seconds)
    samples = _samples(metrics.page())
    assert samples[_key("request_count", model_name="m", status="OK")] == 3
    assert samples[_key("request_count", model_name="m", status="INVALID_ARGUMENT")] == 1
    labels = {"model_name": "m", "API": "predict", "entrypoint": "REST"}
    assert samples[_key("request_latency_count", **labels)] == 3
    assert samples[_key("request_latency_sum", **labels)] == pytest.approx(1e15)
    buckets = {dict(found)["le"]: value for (name, found), value in samples.items() if name == f"{LATENCY}_bucket"}
    assert list(buckets)[:5] == ["10", "18", "32.4", "58.32", "104.976"]
    assert [float(limit) for limit in list(buckets)[:-1]] == pytest.approx([10 * 1.8**k for k in range(33)], rel=1e-5)
    assert [buckets["10"], buckets["18"], buckets["32.4"], buckets["+Inf"]] == [1, 2, 2, 3]


def test_the_other_histograms():
    metrics = Metrics()
    metrics.runtime("m", "predict", "TF2", 0.5)
    metrics.warmup(Path("/models/m/1"), "OK", 0.25)
    metrics.examples("m", 3)
    metrics.examples("m", 20_000)
    samples = _samples(metrics.page())
    assert samples[_key("runtime_latency_sum", model_name="m", API="predict", runtime="TF2")] == 5e5
    assert samples[_key("model_warmup_latency_sum", model_path="/models/m/1", status="OK")] == 2.5e5
    assert samples[_key("request_example_counts_sum", model="m")] == 20_003
    assert samples[_key("request_example_counts_bucket", model="m", le="2")] == 0
    assert samples[_key("request_example_counts_bucket", model="m", le="4")] == 1
    assert samples[_key("request_example_counts_bucket", model="m", le="16384")] == 1
    assert samples[_key("request_example_counts_bucket", model="m", le="+Inf")] == 2


def test_names_with_quotes_survive():
    metrics = Metrics()
    name = 'a"b\\c\nd'
    metrics.request(name, "predict", "REST", Code.OK, 1e-3)
    assert _samples(metrics.page())[_key("request_count", model_name=name, status="OK")] == 1


def test_threads_lose_nothing():
    metrics = Metrics()

    def count() -> None:
        for _ in range(500):
            metrics.request("m", "predict", "GRPC", Code.OK, 1e-3)
            metrics.examples("m", 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = _samples(metrics.page())
    assert samples[_key("request_count", model_name="m", status="OK")] == 2000
    assert samples[_key("request_example_counts_count", model="m")] == 2000


def test_requests_through_the_server(serve, root):
    repository = ModelRepository(root)
    repository.poll()
    with serve(repository, metrics_path=PATH, max_body_mib=100 / 2**20) as client:
        assert _samples(client("GET", PATH).body) == {}
        for path, body in (
            ("pair:predict", GOOD),
            ("pair/versions/3:predict", GOOD),
            ("pair:predict", "{"),
            ("pair:predict", GOOD + " " * 100),
            ("pair/versions/9:predict", GOOD),
            ("pair:classify", '{"examples": [{}]}'),
            ("odd:predict", json.dumps({"signature_name": "half", "instances": [1.0]})),
            ("echo:predict", json.dumps({"signature_name": "float16", "inputs": [1.0]})),
            *((f"unknown{index}:predict", GOOD) for index in range(3)),
        ):
            client("POST", f"/v1/models/{path}", body)
        for path in ("/v1/models/pair", "/v1/models/pair/metadata", "/nowhere", "/v1/models/pair:explain"):
            client("GET", path)
        reply = client("GET", PATH)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain")
    samples = _samples(reply.body)
    counts = {found: value for (name, found), value in samples.items() if name == ":tensorflow:serving:request_count"}
    assert counts == {
        frozenset({("model_name", model), ("status", status)}): value
        for model, status, value in (
            ("pair", "OK", 2),
            ("pair", "INVALID_ARGUMENT", 3),
            ("pair", "NOT_FOUND", 1),
            ("odd", "INVALID_ARGUMENT", 1),
            ("echo", "UNIMPLEMENTED", 1),
            ("", "NOT_FOUND", 3),
        )
    }
    labels = {"model_name": "pair", "API": "predict", "entrypoint": "REST"}
    assert {found for name, found in samples if name == f"{LATENCY}_count"} == {frozenset(labels.items())}
    assert samples[_key("request_latency_count", **labels)] == 2
    assert 50 < samples[_key("request_latency_sum", **labels)] < 30e6


@pytest.mark.parametrize("path", [f"{PATH}?x=1", f"{PATH}?"])
def test_path_with_a_query(serve, root, path):
    with serve(ModelRepository(root), metrics_path=PATH) as client:
        reply = client("GET", path)
    assert reply.status == 400
    assert reply.headers["content-type"] == "text/plain"
    assert reply.body.decode() == f"Unexpected path: {path}. Should be {PATH}"


def test_no_metrics_unless_asked_for(client):
    assert client("GET", PATH).status == 404


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", None),
        ("prometheus_config {}", None),
        ('prometheus_config { path: "/x" }', None),
        ("prometheus_config { enable: true }", PATH),
        ('prometheus_config { enable: true path: "/x" }', "/x"),
    ],
)
def test_monitoring_config_file(content, expected, tmp_path):
    path = tmp_path / "file"
    path.write_text(content)
    assert monitoring_path(path) == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("prometheus_config { on: true }", "is no MonitoringConfig in text format"),
        ('prometheus_config { enable: true path: "x" }', "expected one that begins with /"),
    ],
)
def test_mistake_in_a_monitoring_config_file(content, text, tmp_path):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(UserError, match=text):
        monitoring_path(path)
