"""What the loaded models take and give, for programs (OpenAPI) and for people (a page), with requests that work."""

import base64
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from kerasdl.serving import page as page_files
from kerasdl.serving import streaming
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.kserve_tensor import DATATYPES
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.servable import Servable
from kerasdl.serving.streaming_request import SETTINGS
from kerasdl.serving.waiting import HTTP_STATUS, json_response, server_version

_LONG_EXAMPLE = 2048
"""Bytes of tensors of which an example has a URL of its own."""

_DEFAULT = "serving_default"
_LEAVES: dict[str, dict[str, Any]] = {
    "float": {"type": "number"},
    "double": {"type": "number"},
    "bool": {"type": "boolean"},
    **{f"int{bits}": {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
       for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": {"type": "integer", "minimum": 0, "maximum": 2**bits - 1} for bits in (8, 32, 64)},
}  # fmt: skip
"""Schema of a number of each data type that JSON carries, by TensorFlow's word."""
_BASE64 = {
    "type": "object",
    "required": ["b64"],
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "additionalProperties": False,
}


class _Tensor(NamedTuple):
    name: str
    dtype: str  # TensorFlow's word
    shape: tuple[int, ...] | None  # -1 for a size that is not known; None for an unknown rank

    @property
    def text(self) -> str:
        return (
            self.dtype
            if self.shape is None
            else f"{self.dtype}[{', '.join('?' if size < 0 else str(size) for size in self.shape)}]"
        )


class _Signature(NamedTuple):
    name: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    example: Mapping[str, np.ndarray] | None


class _Model(NamedTuple):
    name: str
    signatures: list[_Signature]
    stream: str | None  # as `streaming.kind` has it


def routes(predictor: Predictor, *, keyed: bool = False) -> list[Route]:
    """Where the web application tells all this: `/openapi.json`, `/docs`, and the long examples below that.

    Args:
        predictor: of the loaded models.
        keyed: whether clients need a key.
    """

    # No coroutines: what takes long, such as a large example, runs in a thread then.
    def document(_: Request) -> Response:
        return json_response(openapi(predictor, keyed=keyed))

    def docs(request: Request) -> Response:
        return HTMLResponse(page(predictor, str(request.base_url).rstrip("/"), keyed=keyed), headers=page_files.HEADERS)

    def body(request: Request) -> Response:
        try:
            return json_response(example(predictor, **request.path_params))
        except ServingError as error:
            return json_response({"error": error.message}, HTTP_STATUS[error.code])

    return [Route("/openapi.json", document), Route("/docs", docs), Route("/docs/{model}/{signature}.json", body)]


def example(predictor: Predictor, model: str, signature: str) -> dict[str, Any]:
    """The body of a request to `:predict` that works.

    Args:
        predictor: of the loaded models.
        model: name of a model.
        signature: of the model.

    Raises:
        ServingError: NOT_FOUND, when there is none.
    """
    for known in _signatures(predictor.acquire(model, None, None)):
        if known.name == signature and (body := _body(known)) is not None:
            return body
    raise ServingError(Code.NOT_FOUND, f"Model {model} has no example of a signature {signature}")


def openapi(predictor: Predictor, *, keyed: bool) -> dict[str, Any]:
    """An OpenAPI document of the loaded models.

    Args:
        predictor: of the loaded models.
        keyed: whether clients need a key.
    """
    paths: dict[str, Any] = {
        "/healthz": {"get": _operation("The process lives", "text/plain", {"type": "string"})},
        "/readyz": {"get": _operation("Every model answers", "application/json", {"type": "object"})},
    }
    for model, signatures, stream in _models(predictor):
        root = f"/v1/models/{quote(model, safe='')}"
        paths[root] = {"get": _operation("State of the versions", "application/json", {"type": "object"}, model)}
        paths[f"{root}/metadata"] = {"get": _operation("Signatures", "application/json", {"type": "object"}, model)}
        replies = {"anyOf": [_reply_schema(signature) for signature in signatures]}
        predict = _operation("Prediction", "application/json", replies, model)
        content = {
            "schema": {"anyOf": [_request_schema(signature) for signature in signatures]},
            "examples": {signature.name: _link(model, signature) for signature in signatures if signature.example},
        }
        predict["requestBody"] = {"required": True, "content": {"application/json": content}}
        paths[f"{root}:predict"] = {"post": predict}
        root = f"/v2/models/{quote(model, safe='')}"
        paths[root] = {"get": _operation("Metadata (KServe V2)", "application/json", {"type": "object"}, model)}
        infer = _operation("Inference (KServe V2)", "application/json", {"type": "object"}, model)
        bodies = {signature.name: _infer_body(signature) for signature in signatures}
        content = {
            "schema": {"type": "object", "required": ["inputs"]},
            "examples": {name: {"value": body} for name, body in bodies.items() if body},
        }
        infer["requestBody"] = {"required": True, "content": {"application/json": content}}
        paths[f"{root}/infer"] = {"post": infer}
        if stream is not None:
            paths[f"/stream/{quote(model, safe='')}"] = {"post": _stream_operation(model, stream)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Models of kerasdl", "version": server_version()},
        "paths": paths,
    }
    if keyed:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"key": []}]
        for path in ("/healthz", "/readyz"):
            paths[path]["get"]["security"] = []
    return document


def page(predictor: Predictor, address: str, *, keyed: bool) -> str:
    """A page in HTML of the loaded models.

    Args:
        predictor: of the loaded models.
        address: where clients find the server, `http://host:port`.
        keyed: whether clients need a key.
    """
    curl = 'curl -H "Authorization: Bearer $KEY"' if keyed else "curl"
    models = list(_models(predictor))
    sections = []
    for model, signatures, stream in models:
        parts = [f'<section><h2 id="{escape(quote(model))}">{escape(model)}</h2>']
        for signature in signatures:
            parts.append(f"<h3>{escape(signature.name)}</h3>")
            parts += [_list("takes", signature.inputs), _list("gives", signature.outputs)]
            if signature.example:
                parts.append(_example(signature.name, _command(curl, address, model, signature)))
        if stream is not None:
            url = shlex.quote(f"{address}/stream/{quote(model, safe='')}")
            parts += ["<h3>stream</h3>", "<p>gives the text as it is written, as server-sent events</p>"]
            body = shlex.quote(json.dumps(_STREAM_BODY))
            command = f"{_PHOTO} |\n  {curl} -N -d @- {url}" if stream == "caption" else f"{curl} -N -d {body} {url}"
            parts.append(_example("stream", command))
        sections.append("\n".join([*parts, "</section>"]))
    links = " ".join(f'<a href="#{escape(quote(model.name))}">{escape(model.name)}</a>' for model in models)
    return _PAGE.replace("{links}", links or "No model is loaded.").replace("{sections}", "\n".join(sections))


def _example(name: str, command: str) -> str:
    button = f'<button type="button" aria-label="Copy {escape(name)}">Copy</button>'
    return f'<div class="command">{button}<pre tabindex="0"><code>{escape(command)}</code></pre></div>'


def _command(curl: str, address: str, model: str, signature: _Signature) -> str:
    url = shlex.quote(f"{address}/v1/models/{quote(model, safe='')}:predict")
    found = _link(model, signature)
    if "value" in found:
        return f"{curl} -d {shlex.quote(json.dumps(found['value']))} {url}"
    return f"{curl} -s {shlex.quote(address + found['externalValue'])} |\n  {curl} -d @- {url}"


def _list(word: str, tensors: Iterable[_Tensor]) -> str:
    items = ", ".join(f"<code>{escape(tensor.name)}: {escape(tensor.text)}</code>" for tensor in tensors)
    return f"<p>{word} {items}</p>"


# --- signatures -------------------------------------------------------------------------------------------


def _models(predictor: Predictor) -> Iterator[_Model]:
    """The loaded models with the signatures of their newest version."""
    for model in predictor.repository.names():
        try:
            servable = predictor.acquire(model, None, None)
        except ServingError:
            continue
        if signatures := _signatures(servable):
            yield _Model(model, signatures, streaming.kind(servable))


def _signatures(servable: Servable) -> list[_Signature]:
    """The signatures that take an input; those with an example first."""
    found = [
        _Signature(name, _tensors(definition["inputs"]), _tensors(definition["outputs"]), servable.examples.get(name))
        for name, definition in servable.metadata["signature_def"].items()
        if definition["inputs"]
    ]
    # `serving_default` is most often another name of a signature, which alone is recorded.
    examples = {signature[1:3]: signature.example for signature in found if signature.example is not None}
    found = [signature._replace(example=_sendable(examples.get(signature[1:3]), signature)) for signature in found]
    return sorted(found, key=lambda signature: (signature.name != _DEFAULT, signature.example is None, signature.name))


def _tensors(infos: Mapping[str, Any]) -> tuple[_Tensor, ...]:
    tensors = []
    for name, info in sorted(infos.items()):
        shape = info["tensor_shape"]
        sizes = None if shape["unknown_rank"] else tuple(int(size["size"]) for size in shape["dim"])
        tensors.append(_Tensor(name, info["dtype"].removeprefix("DT_").lower(), sizes))
    return tuple(tensors)


def _sendable(arrays: Mapping[str, np.ndarray] | None, signature: _Signature) -> Mapping[str, np.ndarray] | None:
    """An example if strict JSON can carry it."""
    if arrays is None or any(tensor.dtype not in (*_LEAVES, "string") for tensor in signature.inputs):
        return None
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays.values()):
        return None
    return arrays


# --- requests and replies ---------------------------------------------------------------------------------


def _body(signature: _Signature) -> dict[str, Any] | None:
    if signature.example is None:
        return None
    inputs = {name: _value(name, array) for name, array in signature.example.items()}
    return {"signature_name": signature.name, "inputs": inputs}


def _infer_body(signature: _Signature) -> dict[str, Any] | None:
    """An example for KServe's protocol; None for what its JSON cannot carry, and for what is long."""
    body = _body(signature)
    if signature.example is None or body is None or _size(signature.example) > _LONG_EXAMPLE:
        return None
    words = {tensor.name: DATATYPES[tensor.dtype] for tensor in signature.inputs}
    inputs = []
    for name, array in signature.example.items():
        data = np.array(body["inputs"][name], array.dtype).ravel().tolist()
        if any(isinstance(value, dict) for value in data):
            return None
        inputs.append({"name": name, "datatype": words[name], "shape": list(array.shape), "data": data})
    parameters: dict[str, Any] = {"signature_name": signature.name}
    if any(tensor.name.endswith("_bytes") for tensor in signature.outputs):
        parameters["binary_data_output"] = True
    return {"parameters": parameters, "inputs": inputs}


def _size(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(sum(map(len, array.flat)) if array.dtype == object else array.nbytes for array in arrays.values())


def _value(name: str, array: np.ndarray) -> Any:
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        try:
            text = None if name.endswith("_bytes") else value.decode()
        except UnicodeDecodeError:
            text = None
        texts[index] = {"b64": base64.b64encode(value).decode()} if text is None else text
    return texts.tolist()


def _link(model: str, signature: _Signature) -> dict[str, Any]:
    """The example of a signature, or where to find one that is long."""
    assert signature.example is not None
    if _size(signature.example) <= _LONG_EXAMPLE:
        return {"value": _body(signature)}
    return {"externalValue": f"/docs/{quote(model, safe='')}/{quote(signature.name, safe='')}.json"}


def _operation(summary: str, kind: str, schema: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {kind: {"schema": schema}}},
            "default": {"description": "Why there is no answer", "content": {"application/json": {"schema": error}}},
        },
    }
    if model is not None:
        operation["tags"] = [model]
    return operation


_STREAM_BODY = {"prompt": "To be", "length": 200}
_PHOTO = """printf '{"image_bytes": {"b64": "%s"}}' "$(base64 -w0 photo.jpg)\""""
_STREAM_WORDS = {
    "length": "characters",
    "temperature": "0: the likeliest",
    "top_k": "0: all",
    "top_p": "1: all",
    "seed": "same seed, same text",
}


def _stream_operation(model: str, kind: str) -> dict[str, Any]:
    """Of the requests that `streaming_request` reads, and of server-sent events."""
    operation = _operation("Text as it is written", "text/event-stream", {"type": "string"}, model)
    settings = {
        name: {
            "type": "integer" if issubclass(setting.dtype, np.integer) else "number",
            "description": _STREAM_WORDS[name],
            "default": setting.default,
            "minimum": setting.lowest,
            "maximum": setting.highest,
        }
        for name, setting in SETTINGS.items()
    }
    schema = {
        "type": "object",
        "required": ["prompt"],
        "properties": {"prompt": {"type": "string"}, **settings},
        "additionalProperties": False,
    }
    examples = {"stream": {"value": _STREAM_BODY}}
    if kind == "caption":
        schema |= {"required": ["image_bytes"], "properties": {"image_bytes": _BASE64}}
        examples = {}
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }
    return operation


def _request_schema(signature: _Signature) -> dict[str, Any]:
    rows = all(tensor.shape is None or tensor.shape for tensor in signature.inputs)
    forms = {"inputs": _named(signature.inputs)}
    if rows:
        forms["instances"] = {"type": "array", "minItems": 1, "items": _named(signature.inputs, skip=1)}
    required = [] if signature.name == _DEFAULT else ["signature_name"]
    return {
        "title": signature.name,
        "type": "object",
        "properties": {"signature_name": {"const": signature.name}, **forms},
        "oneOf": [{"required": [*required, form]} for form in forms],
    }


def _reply_schema(signature: _Signature) -> dict[str, Any]:
    forms = {"outputs": _named(signature.outputs, bare=True, reply=True)}
    if all(tensor.shape is None or tensor.shape for tensor in signature.outputs):
        forms["predictions"] = {
            "type": "array",
            "items": _named(signature.outputs, skip=1, bare=True, reply=True),
        }
    return {
        "title": signature.name,
        "type": "object",
        "properties": forms,
        "oneOf": [{"required": [form]} for form in forms],
    }


def _named(tensors: Sequence[_Tensor], *, skip: int = 0, bare: bool = False, reply: bool = False) -> dict[str, Any]:
    """Schema of an object with a value for each tensor.

    Args:
        tensors: of a signature.
        skip: dimensions that stand outside.
        bare: whether a single tensor stands without its name.
        reply: whether the server writes it.
    """
    schemas = {tensor.name: _schema(tensor, skip, reply) for tensor in tensors}
    if bare and len(schemas) == 1:
        return next(iter(schemas.values()))
    return {"type": "object", "required": sorted(schemas), "properties": schemas}


def _schema(tensor: _Tensor, skip: int, reply: bool) -> dict[str, Any]:
    schema = _LEAVES.get(tensor.dtype, {})
    if tensor.dtype == "string":
        schema = {"anyOf": [{"type": "string"}, _BASE64]}
        if reply:
            schema = _BASE64 if tensor.name.endswith("_bytes") else {"type": "string"}
    if tensor.shape is None:
        return {}
    for size in reversed(tensor.shape[skip:]):
        limits = {} if size < 0 else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **limits}
    return schema


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Requests</title>
<link rel="icon" href="/page/icon.svg">
<link rel="stylesheet" href="/page/page.css">
<script type="module" src="/page/docs.js"></script>
</head>
<body>
<header><h1>Requests</h1> <a href="/">Models</a> <a href="/openapi.json">OpenAPI</a></header>
<nav aria-label="Models">{links}</nav>
<main>
{sections}
</main>
</body>
</html>
"""
