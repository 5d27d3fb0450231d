"""Asks a model server from a command line: `python -m kerasdl.serving query http://localhost:8501 cifar10 photo.jpg`.

It knows nothing of the models: what a signature takes and gives is what the server's metadata says of it.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

from kerasdl.command_line import Repeated, guarded, nearest, parse_call
from kerasdl.errors import UserError
from kerasdl.files import as_json, check_output, separate, write_bytes

PROGRAM = "python -m kerasdl.serving query"

_PICTURE = "image_bytes"
_TEXTS = ("text", "prompt")
_FIRST_VALUES = 6
_BUSY = 429
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp"}
_DTYPES = {"float": "float32", "double": "float64", "half": "float16"}


class _ServerError(Exception):
    """A server that cannot be reached, or does not answer though the request may be right."""


class _Tensor(NamedTuple):
    """What the metadata says of an input or output; `rank` is None where it is not known."""

    name: str
    dtype: str
    rank: int | None
    text: str


class _Server(NamedTuple):
    """Where and how to ask."""

    address: str
    headers: Mapping[str, str]
    seconds: float

    def lines(self, path: str, content: Mapping[str, Any] | None = None) -> Iterator[bytes]:
        """The reply line by line, as it comes; to a POST if there is a content."""
        url = self.address + path
        body = None if content is None else json.dumps(content).encode()
        headers = {**self.headers, "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=self.seconds) as reply:
                yield from reply
        except urllib.error.HTTPError as error:
            with error:
                words = f"{url} answered {error.code} {error.reason}: {_message(error.read())}".removesuffix(": ")
            kind = _ServerError if error.code >= 500 or error.code == _BUSY else UserError
            raise kind(words) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _ServerError(f"no answer from {url}: {words}; is the server running?") from None

    def json(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """The reply, parsed."""
        body = b"".join(self.lines(path, content))
        try:
            return json.loads(body)
        except ValueError:
            raise UserError(f"{self.address}{path} answered no JSON; expected a model server") from None


def _message(body: bytes) -> str:
    """What an error reply says, in one line."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode(errors="replace")
    return " ".join(text.split())


def main(arguments: Sequence[str]) -> int:
    """Asks once.

    Args:
        arguments: words of the command line.

    Returns:
        Exit status: 0, 1 if the server failed or cannot be reached, 2 for a mistake of the user.
    """

    def dispatch(words: list[str]) -> int:
        values, named = parse_call(query, words, PROGRAM)
        try:
            query(*values, **named)
        except _ServerError as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
        return 0

    return guarded(dispatch, arguments)


def query(
    url: str,
    model: str,
    pictures: tuple[str, ...] = (),
    *,
    text: Repeated[tuple[str, ...]] = (),
    text_file: Path | None = None,
    set: Repeated[tuple[tuple[str, ...], ...]] = (),
    signature: str = "serving_default",
    version: int | None = None,
    label: str | None = None,
    stream: bool = False,
    format: Literal["text", "json"] = "text",
    output: Path | None = None,
    api_key: str | None = None,
    timeout: float = 60.0,
) -> None:
    """Ask a model of a running server.

    Args:
        url: address of the server, http://localhost:8501.
        model: its name.
        pictures: files for the input image_bytes; - is standard input.
        text: a text for the input text, or prompt.
        text_file: UTF-8 file with such a text on each line.
        set: other inputs as name=value; a value is a number, a text, or a list in JSON.
        signature: what the model is to do.
        version: number of the version to ask, in place of the newest.
        label: label of the version to ask.
        stream: show a text as it is written.
        format: text for people; json: one object a line.
        output: folder for the pictures that the model gives; nothing is overwritten.
        api_key: key that the server wants to see.
        timeout: longest wait for the server in seconds.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UserError(f"{url} is no address of a server; expected one such as http://localhost:8501")
    if timeout <= 0:
        raise UserError(f"--timeout is {timeout}; expected seconds, above 0")
    if version is not None and label is not None:
        raise UserError("--version and --label both name a version; give one of them")
    check_output(output, folder=True)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    server = _Server(url.rstrip("/"), headers, timeout)
    target = quote(model, safe="")
    if version is not None:
        target += f"/versions/{version}"
    if label is not None:
        target += f"/labels/{quote(label, safe='')}"
    texts = [*text, *(_lines_of(text_file) if text_file is not None else [])]
    assignments = [word for words in set for word in words]
    try:
        metadata = server.json(f"/v1/models/{target}/metadata")["metadata"]["signature_def"]["signature_def"]
    except (KeyError, TypeError):
        raise UserError(f"{url} answered no metadata of {model}; expected a model server") from None

    if stream:
        if pictures or signature != "serving_default" or output is not None:
            raise UserError("--stream takes a text and --set alone; leave out pictures, --signature and --output")
        asked = _streamed(metadata, model, texts, assignments)
        _show_stream(server.lines(f"/stream/{target}", asked), format)
        return
    definition = metadata[nearest(signature, metadata, f"signature of {model}")]
    takes, gives, what = _tensors(definition["inputs"]), _tensors(definition["outputs"]), f"{signature} of {model}"
    if _PICTURE in gives and output is None and format == "text":
        raise UserError(f"{what} gives pictures; name a folder for them by --output")
    if _PICTURE not in gives and output is not None:
        raise UserError(f"{what} gives no pictures; leave out --output")
    asked = _given(takes, what, pictures, texts, assignments)
    _require(takes, asked, takes, what)
    body = {"signature_name": signature, "inputs": _batch(asked, takes)}
    outputs = server.json(f"/v1/models/{target}:predict", body)["outputs"]
    if len(gives) == 1:  # which stands there without its name
        outputs = {next(iter(gives)): outputs}
    if output is not None:
        drawn = outputs[_PICTURE]
        stems = [Path(name).stem for name in pictures] if len(pictures) == len(drawn) else [model] * len(drawn)
        outputs[_PICTURE] = _written(drawn, stems, output)
    _show(outputs, pictures, texts, format)


# --- what is asked -----------------------------------------------------------------------------------------


def _tensors(infos: Mapping[str, Any]) -> dict[str, _Tensor]:
    found = {}
    for name, info in sorted(infos.items()):
        word = info["dtype"].removeprefix("DT_").lower()
        dtype, shape = _DTYPES.get(word, word), info["tensor_shape"]
        if shape.get("unknown_rank"):
            found[name] = _Tensor(name, dtype, None, f"{name}: {dtype}")
            continue
        sizes = [int(size["size"]) for size in shape.get("dim", [])]
        words = [str(size) if size >= 0 else "?" if place else "batch" for place, size in enumerate(sizes)]
        found[name] = _Tensor(name, dtype, len(sizes), f"{name}: {dtype}[{', '.join(words)}]")
    return found


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error})") from None
    return [line for line in lines if line.strip()]


def _given(
    takes: Mapping[str, _Tensor], what: str, pictures: Sequence[str], texts: Sequence[str], assignments: Sequence[str]
) -> dict[str, Any]:
    """The values that were given, by input; those of pictures and texts as lists."""
    known = ", ".join(tensor.text for tensor in takes.values())
    given: dict[str, Any] = {}
    if pictures:
        if _PICTURE not in takes:
            raise UserError(f"{what} takes no picture files; it takes {known}")
        contents = [sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes() for name in pictures]
        given[_PICTURE] = [{"b64": base64.b64encode(content).decode()} for content in contents]
    if texts:
        name = next((name for name in _TEXTS if name in takes and takes[name].dtype == "string"), None)
        if name is None:
            raise UserError(f"{what} takes no --text; it takes {known}")
        given[name] = [*texts]
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set {word} has no value; expected name=value")
        if name not in takes:
            raise UserError(f"{what} takes no {name}; it takes {known}")
        if name in given:
            raise UserError(f"{name} was given twice; give one value, or a list in JSON")
        given[name] = _value(takes[name], value)
    return given


def _streamed(
    metadata: Mapping[str, Any], model: str, texts: Sequence[str], assignments: Sequence[str]
) -> dict[str, Any]:
    """The body of a request for a stream."""
    if len(texts) > 1:
        raise UserError("--stream takes one text; give one, or leave out --stream")
    own = {"state", "start"}  # which the server carries from piece to piece
    takes = {
        name: tensor
        for signature in ("begin", "advance")
        for name, tensor in _tensors(metadata.get(signature, {}).get("inputs", {})).items()
    }
    if not {"prompt", *own} <= takes.keys():
        raise UserError(f"{model} writes no text piece by piece; leave out --stream")
    takes = {name: tensor for name, tensor in takes.items() if name not in own}
    given = _given(takes, model, (), texts, assignments)
    _require(["prompt"], given, takes, model)
    return {**given, "prompt": texts[0] if texts else given["prompt"]}


def _value(tensor: _Tensor, text: str) -> Any:
    """A text of the command line as JSON value, each of its leaves as the data type has it."""
    words = f"--set {tensor.name}={text} does not fit; expected {tensor.text}"
    try:
        value = json.loads(text)
    except ValueError:
        if tensor.dtype == "string":
            return text
        raise UserError(words) from None
    if tensor.dtype == "string" and not isinstance(value, list):
        return text
    whole = tensor.dtype.startswith(("int", "uint"))
    kinds = {"string": str, "bool": bool}.get(tensor.dtype, int if whole else (int, float))
    if not all(
        isinstance(leaf, kinds) and isinstance(leaf, bool) == (tensor.dtype == "bool") for leaf in _leaves(value)
    ):
        raise UserError(words)
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _shape(value: Any) -> list[int]:
    """Of nested lists, by their first items."""
    return [len(value), *(_shape(value[0]) if value else [])] if isinstance(value, list) else []


def _require(names: Iterable[str], given: Mapping[str, Any], takes: Mapping[str, _Tensor], what: str) -> None:
    missing = [takes[name] for name in sorted(names) if name not in given]
    if missing:
        how = {_PICTURE: "picture files", **dict.fromkeys(_TEXTS, "--text")}
        words = (f"{tensor.text} ({how.get(tensor.name, f'--set {tensor.name}=...')})" for tensor in missing)
        raise UserError(f"{what} also takes {', '.join(words)}")


def _batch(given: Mapping[str, Any], takes: Mapping[str, _Tensor]) -> dict[str, Any]:
    """The values with as many examples each; one that stands for a single example counts for all."""
    depths = {name: len(_shape(value)) for name, value in given.items()}
    whole = {name: len(value) for name, value in given.items() if takes[name].rank == depths[name] > 0}
    if len({*whole.values()}) > 1:
        words = ", ".join(f"{name} {count}" for name, count in whole.items())
        raise UserError(f"the inputs have different numbers of examples ({words}); give as many of each")
    count = next(iter(whole.values()), 1)
    batch = {}
    for name, value in given.items():
        rank = takes[name].rank
        if rank is not None and depths[name] not in (rank, rank - 1):
            raise UserError(f"the value of {name} has {depths[name]} dimensions; expected {takes[name].text}")
        batch[name] = [value] * count if rank is not None and depths[name] == rank - 1 else value
    return batch


# --- what is shown -----------------------------------------------------------------------------------------


def _show_stream(lines: Iterator[bytes], format: str) -> None:
    event = ""
    for line in lines:
        field, _, rest = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            event = rest
        elif field == "data":
            content = json.loads(rest)
            if event == "error":
                if format == "text":
                    print()
                raise _ServerError(content["error"])
            if format == "json":
                print(as_json(content), flush=True)
            else:
                print(content.get("text", "\n"), end="", flush=True)
            if event == "done":
                return
    raise _ServerError("the stream broke off")


def _show(outputs: dict[str, Any], pictures: Sequence[str], texts: Sequence[str], format: str) -> None:
    lengths = {len(value) if isinstance(value, list) else -1 for value in outputs.values()}
    rows = [outputs]  # if they do not have a row for each example
    if len(lengths) == 1 and -1 not in lengths:
        rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    names = pictures or texts
    if len(names) != len(rows):
        names = [""] * len(rows)
    for name, row in zip(names, rows, strict=True):
        if format == "json":
            print(as_json({"input": name, **row} if name else row))
            continue
        answer = _answer(row)
        head = f"{name}:" if pictures else f"{json.dumps(name, ensure_ascii=False)}:"
        if name and (pictures or len(rows) > 1):
            answer = f"{head}\n{answer}" if "\n" in answer else f"{head} {answer}"
        print(answer)


def _answer(row: Mapping[str, Any]) -> str:
    """The outputs of one example for people: those of one value in a line, each array in a line of its own."""
    values, arrays = [], []
    probabilities = row.get("probabilities")
    labelled = isinstance(row.get("label"), str) and bool(probabilities)
    for name, value in row.items():
        if name == "label" and labelled:
            values.append(f"{value} {max(_leaves(probabilities)):.1%}")
        elif isinstance(value, list) and not (name == "probabilities" and labelled):
            first = [_leaf(leaf) for leaf in itertools.islice(_leaves(value), _FIRST_VALUES + 1)]
            first[_FIRST_VALUES:] = ["..."] * (len(first) > _FIRST_VALUES)
            arrays.append(f"{name}: [{', '.join(map(str, _shape(value)))}] {', '.join(first)}".rstrip())
        elif isinstance(value, str):
            values.append(value)
        elif not isinstance(value, list):
            values.append(f"{name} {_leaf(value)}")
    return "\n".join([*([", ".join(values)] if values else []), *arrays])


def _leaf(value: Any) -> str:
    if isinstance(value, dict):
        return f"({len(base64.b64decode(value['b64'])):,} bytes)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _written(contents: Sequence[Mapping[str, str]], stems: Sequence[str], folder: Path) -> list[str]:
    """The paths of pictures in a folder."""
    pictures = [base64.b64decode(content["b64"]) for content in contents]
    suffixes = [
        next((suffix for start, suffix in _SUFFIXES.items() if picture.startswith(start)), "") for picture in pictures
    ]
    paths = separate([folder / f"{stem}{suffix}" for stem, suffix in zip(stems, suffixes, strict=True)])
    for path, picture in zip(paths, pictures, strict=True):
        write_bytes(path, picture)
    return [str(path) for path in paths]
