"""What stands beside an export: its model card, configuration and metrics."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl.export import Endpoint, size_bytes
from kerasdl.files import write_json, write_text


def write_documents(
    folder: Path,
    *,
    title: str,
    summary: str,
    endpoints: Mapping[str, Endpoint],
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    split: str,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any],
    limits: Sequence[str],
    sources: Sequence[str],
    parameters: int,
) -> None:
    """Writes config.json, metrics.json and MODEL_CARD.md into a version folder.

    Args:
        folder: the version folder (possibly still under its temporary name).
        title: heading of the card.
        summary: what the model does, one or two sentences.
        endpoints: see `write`.
        config: the training configuration.
        metrics: measured on the loaded export.
        split: what `metrics` were measured on, such as `CIFAR-10 test, 10,000 images`.
        notes: what is to be known beside the metrics, a sentence each.
        facts: provenance of the run: time, command, commit, versions.
        limits: what the model is not for, a sentence each.
        sources: papers and data, a citation each.
        parameters: number of weights.
    """
    write_json(folder / "config.json", config)
    write_json(folder / "metrics.json", {"split": split, **metrics})
    rows = "\n".join(f"| {name} | {_rounded(value)} |" for name, value in metrics.items())
    signature_rows = "\n".join(
        f"| `{name}` | {', '.join(f'`{key}: {_spec(spec)}`' for key, spec in endpoint.inputs.items())} | "
        f"{_outputs(folder, name)} | {endpoint.meaning} |"
        for name, endpoint in endpoints.items()
    )
    first = next(iter(endpoints))
    application = title.split()[0]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.items())
    card = f"""# {title}

{summary}

- Trained: {facts["time"]}, commit {facts["commit"]}, {versions}
- Command: `{facts["command"]}`
- Size: {size_bytes(folder) / 2**20:.1f} MiB, {parameters:,} weights

## Metrics

Measured by `python -m apps {application} export` on the loaded export; split: {split}.

| metric | value |
|---|---|
{rows}
{"".join(f"{chr(10)}{note}{chr(10)}" for note in notes)}
## Signatures

| signature | inputs | outputs | meaning |
|---|---|---|---|
{signature_rows}

The first one is also `serving_default`. With TensorFlow alone:

```python
import tensorflow as tf
model = tf.saved_model.load("saved_models/{application}/1")
{_python_example(first, endpoints[first])}
```

Over HTTP, from `python -m kerasdl.serving saved_models` or TensorFlow Serving:

```sh
{_curl_example(application, endpoints[first])}
```

## Limits

{_list(limits)}

## Sources

{_list(sources)}

## Configuration

| field | value |
|---|---|
{settings}
"""
    write_text(folder / "MODEL_CARD.md", card)


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _rounded(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _spec(spec: tf.TensorSpec) -> str:
    shape = ", ".join("batch" if i == 0 else str(size or "?") for i, size in enumerate(spec.shape))
    return f"{spec.dtype.name}[{shape}]"


def _outputs(folder: Path, signature: str) -> str:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    described = []
    for name, info in sorted(model.meta_graphs[0].signature_def[signature].outputs.items()):
        spec = tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
        described.append(f"`{name}: {_spec(spec)}`")
    return ", ".join(described)


def _python_example(signature: str, endpoint: Endpoint) -> str:
    def value(key: str) -> str:
        if key.endswith("_bytes"):
            return '[open("picture.jpg", "rb").read()]'
        return repr(np.asarray(endpoint.example[key]).tolist())

    given = ", ".join(f"{key}=tf.constant({value(key)})" for key in endpoint.inputs)
    return f'answer = model.signatures["{signature}"]({given})'


def _curl_example(application: str, endpoint: Endpoint) -> str:
    key = next(iter(endpoint.inputs))
    url = f"http://localhost:8501/v1/models/{application}:predict"
    if not key.endswith("_bytes"):
        example = json.dumps({"inputs": {name: np.asarray(value).tolist() for name, value in endpoint.example.items()}})
        return f"curl -d '{example}' {url}"
    return (
        f"""printf '{{"instances": [{{"{key}": {{"b64": "%s"}}}}]}}' "$(base64 -w0 picture.jpg)" |\n"""
        f"    curl -d @- {url}"
    )
