"""The command line that asks: against a real server of small models, and one that answers as it is told to."""

import base64
import contextlib
import http.server
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow as tf

from kerasdl.serving.__main__ import main
from kerasdl.serving.access import Access, Keys
from kerasdl.serving.repository import ModelRepository

EXPORTS = Path(__file__).parents[3] / "saved_models"
PNG = b"\x89PNG\r\n\x1a\n of no pixels"


def _save(folder: Path) -> None:
    """Four signatures: of pictures, of texts, of numbers, and one that draws."""

    def classify(image_bytes):
        length = tf.cast(tf.strings.length(image_bytes), tf.float32)
        first = length / (length + 3)
        return {
            "label": tf.fill(tf.shape(image_bytes), "ship"),
            "probabilities": tf.stack([first, 1 - first], 1),
            "rank": tf.range(tf.shape(image_bytes)[0]),
        }

    def copy(image_bytes):
        return {"image_bytes": image_bytes}

    def say(text, times, loud):
        said = tf.map_fn(lambda pair: tf.strings.reduce_join(tf.repeat(pair[0], pair[1])), (text, times), tf.string)
        return {"caption": tf.where(loud, said + "!", said)}

    def draw(latent, power, scale):
        total = tf.reduce_sum(latent, 1) ** tf.cast(power, tf.float32) * scale
        return {"image_bytes": tf.fill(tf.shape(power), PNG), "total": total, "latent": latent}

    def add(x):
        return {"total": tf.reduce_sum(x), "all": tf.tile(x, [9])}

    pictures, number = tf.TensorSpec([None], tf.string, "image_bytes"), tf.TensorSpec([None], tf.int32, "power")
    texts = [pictures, number, tf.TensorSpec([None], tf.bool, "loud")]
    texts = [
        tf.TensorSpec([None], spec.dtype, name) for spec, name in zip(texts, ("text", "times", "loud"), strict=True)
    ]
    latent, scale = tf.TensorSpec([None, 3], tf.float32, "latent"), tf.TensorSpec([], tf.float32, "scale")
    functions = {
        "serving_default": (classify, [pictures]),
        "copy": (copy, [pictures]),
        "say": (say, texts),
        "draw": (draw, [latent, number, scale]),
        "add": (add, [tf.TensorSpec([None], tf.float32, "x")]),
    }
    module = tf.Module()
    signatures = {name: tf.function(function, input_signature=specs) for name, (function, specs) in functions.items()}
    tf.saved_model.save(module, str(folder), signatures=signatures)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queried")
    _save(folder / "m 1/7")
    (folder / "chargen").symlink_to(EXPORTS / "chargen")
    repository = ModelRepository(folder)
    repository.poll()
    assert repository.unavailable() == {}
    return repository


@pytest.fixture(scope="module")
def url(serve, repository):
    with serve(repository) as client:
        yield f"http://127.0.0.1:{client.port}"


@pytest.fixture
def ask(url, capsys):
    """`ask(*words)`: what a query prints; or its status and line, if that is to be a failure."""

    def asked(*words, model="m 1", status=0, url=url):
        assert main(["query", url, model, *map(str, words)]) == status
        output, errors = capsys.readouterr()
        if not status:
            assert errors == ""
            return output
        assert errors.startswith("error: " if status == 2 else "failed: ")
        assert errors.count("\n") == 1
        return errors

    return asked


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Two of one name, of 7 and of 27 bytes."""
    paths = [tmp_path / "a/one.jpg", tmp_path / "b/one.jpg"]
    for path, size in zip(paths, (7, 27), strict=True):
        path.parent.mkdir()
        path.write_bytes(b"\xff\xd8\xff" + bytes(size - 3))
    return paths


def test_pictures(ask, pictures):
    one, two = pictures
    assert ask(one) == f"{one}: ship 70.0%, rank 0\n"
    assert ask(*pictures) == f"{one}: ship 70.0%, rank 0\n{two}: ship 90.0%, rank 1\n"
    found = [json.loads(line) for line in ask(two, one, "--format", "json").splitlines()]
    assert [list(row) for row in found] == [["input", "label", "probabilities", "rank"]] * 2
    assert [(row["input"], row["rank"]) for row in found] == [(str(two), 0), (str(one), 1)]
    assert found[0]["probabilities"] == pytest.approx([0.9, 0.1])


def test_standard_input(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xd8\xff\x00\x00\x00\x00")))
    assert ask("-") == "-: ship 70.0%, rank 0\n"


@pytest.mark.parametrize("where", [["--version", "7"], []])
def test_texts(ask, tmp_path, where):
    say = [*where, "--signature", "say", "--set", "times=2"]
    assert ask(*say, "loud=false", "--text", "Héy ") == "Héy Héy \n"
    assert ask(*say, "loud=false", "--text", "a\n") == "a\na\n\n"
    (tmp_path / "texts").write_text("\ufeffone\n\n[two]\n", encoding="utf-8")
    words = [*say, "--set", "loud=[true, false, true]", "--text", '"', "--text-file", tmp_path / "texts"]
    assert ask(*words) == '"\\"": ""!\n"one": oneone\n"[two]": [two][two]!\n'
    assert ask(*say, "loud=true", 'text=["a", "b"]', "--format", "json") == '{"caption": "aa!"}\n{"caption": "bb!"}\n'
    assert ask(*say, "loud=true", "text=true") == "truetrue!\n"


def test_pictures_are_written_and_nothing_is_overwritten(ask, pictures, tmp_path):
    output = tmp_path / "drawn"
    words = ["--signature", "copy", "--output", output]
    one, two = pictures
    assert ask(*words, one, two) == f"{one}: {output}/one.jpg\n{two}: {output}/one-2.jpg\n"
    assert [(output / name).read_bytes() for name in ("one.jpg", "one-2.jpg")] == [p.read_bytes() for p in pictures]
    assert f"{output}/one.jpg exists, and nothing is overwritten" in ask(*words, two, status=2)
    assert (output / "one.jpg").read_bytes() == one.read_bytes()
    assert "name a folder for them by --output" in ask("--signature", "copy", one, status=2)
    row = json.loads(ask("--signature", "copy", one, "--format", "json"))
    assert base64.b64decode(row["image_bytes"]["b64"]) == one.read_bytes()


def test_numbers_of_every_rank(ask, tmp_path):
    draw = ["--signature", "draw", "--output", tmp_path / "out", "--set", "latent=[1, 2, 3]", "scale=0.5"]
    assert ask(*draw, "power=[1, 2]") == (
        f"{tmp_path}/out/m 1.png, total 3\nlatent: [3] 1, 2, 3\n"
        f"{tmp_path}/out/m 1-2.png, total 18\nlatent: [3] 1, 2, 3\n"
    )
    assert (tmp_path / "out/m 1.png").read_bytes() == PNG
    assert ask("--signature", "add", "--set", "x=[1, 2.25]") == (
        "total 3.25\nall: [18] 1, 2.25, 1, 2.25, 1, 2.25, ...\n"
    )
    assert json.loads(ask("--signature", "add", "--set", "x=[1]", "--format", "json")) == {"total": 1, "all": [1] * 9}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--signature", "cpy"], "cpy is no signature of m 1; did you mean copy?"),
        ([], "serving_default of m 1 also takes image_bytes: string[batch] (picture files)"),
        (
            ["--signature", "draw", "--output", "out"],
            "draw of m 1 also takes latent: float32[batch, 3] (--set latent=...), power: int32[batch] "
            "(--set power=...), scale: float32[] (--set scale=...)",
        ),
        (["--signature", "say", "--set", "times=2", "loud=true"], "say of m 1 also takes text: string[batch] (--text)"),
        (["--signature", "say", "--set", "times=x"], "--set times=x does not fit; expected times: int32[batch]"),
        (["--signature", "say", "--set", "times=1.5"], "--set times=1.5 does not fit"),
        (["--signature", "say", "--set", "times=true"], "--set times=true does not fit"),
        (["--signature", "say", "--set", "times=[1, [2.5]]"], "does not fit"),
        (["--signature", "say", "--set", "loud=1"], "--set loud=1 does not fit; expected loud: bool[batch]"),
        (["--signature", "say", "--set", "text=[1]"], "--set text=[1] does not fit; expected text: string[batch]"),
        (["--signature", "say", "--set", "time=1"], "say of m 1 takes no time; it takes loud: bool[batch], text: "),
        (["--signature", "say", "--set", "times"], "--set times has no value; expected name=value"),
        (["--signature", "say", "--set", "times=1", "--set", "times=2"], "times was given twice"),
        (["--signature", "say", "--text", "a", "--set", "text=b"], "text was given twice"),
        (
            ["--signature", "say", "--text", "a", "--text", "b", "--set", "times=[1, 2, 3]", "loud=true"],
            "the inputs have different numbers of examples (text 2, times 3); give as many of each",
        ),
        (
            ["--signature", "say", "--text", "a", "--set", "times=[[1]]", "loud=true"],
            "the value of times has 2 dimensions; expected times: int32[batch]",
        ),
        (["--signature", "add", "{file}"], "add of m 1 takes no picture files; it takes x: float32[batch]"),
        (["--text", "a"], "serving_default of m 1 takes no --text; it takes image_bytes: string[batch]"),
        (["{file}/nope"], "{file}/nope: Not a directory; give another path, or check this one"),
        (["--text-file", "{file}"], "{file} is no text in UTF-8"),
        (["--output", "out"], "serving_default of m 1 gives no pictures; leave out --output"),
        (["--output", "{file}"], "{file} is no folder; expected one"),
        (["--version", "8"], "/v1/models/m%201/versions/8/metadata answered 404 Not Found: Servable not found"),
        (
            ["--label", "a b"],
            "/labels/a%20b/metadata answered 400 Bad Request: Unrecognized servable version label: a b",
        ),
        (["--version", "7", "--label", "a"], "--version and --label both name a version"),
        (["--timeout", "0"], "--timeout is 0.0; expected seconds, above 0"),
        (["--stream", "--text", "a"], "m 1 writes no text piece by piece; leave out --stream"),
        (["--stream", "{file}"], "--stream takes a text and --set alone"),
        (
            ["--signature", "draw", "--output", "out", "--set", "latent=[1]", "power=1", "scale=1"],
            "has shape [1, 1], but",
        ),
        (["--tex", "a"], "did you mean --text"),
    ],
)
def test_mistakes_are_one_line(ask, tmp_path, words, text):
    file = tmp_path / "file"
    file.write_bytes(b"\xff")
    assert text.format(file=file) in ask(*(word.format(file=file) for word in words), status=2)


def test_stream(ask):
    text = ask("--set", "prompt=To be", "length=40", "--stream", model="chargen")
    settings = ["temperature=0.8", "top_k=0", "top_p=1", "seed=0", "length=40"]
    assert len(text) == 41
    assert text == ask("--text", "To be", "--set", *settings, model="chargen")
    lines = ask("--text", "To be", "--set", "length=40", "--stream", "--format", "json", model="chargen").splitlines()
    *pieces, last = map(json.loads, lines)
    assert ("".join(piece["text"] for piece in pieces), last) == (text[:-1], {"characters": 40})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "chargen also takes prompt: string[batch] (--text)"),
        (["--text", "a", "--text", "b"], "--stream takes one text"),
        (["--text", "a", "--set", "length=0"], 'answered 400 Bad Request: "length" is 0; expected an integer from 1'),
        (
            ["--text", "a", "--set", "start=0"],
            "chargen takes no start; it takes prompt: string[batch], length: int32[batch], ",
        ),
    ],
)
def test_mistakes_of_a_stream(ask, words, text):
    assert text in ask("--stream", *words, model="chargen", status=2)


METADATA = {
    name: {
        kind: {key: {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1"}]}} for key in keys}
        for kind, keys in (("inputs", inputs), ("outputs", ("text",)))
    }
    for name, inputs in (
        ("serving_default", ["text"]),
        ("begin", ["prompt"]),
        ("advance", ["state", "start"]),
    )
}
METADATA = {"metadata": {"signature_def": {"signature_def": METADATA}}}


@contextlib.contextmanager
def told(status: int, body: bytes, metadata=METADATA):
    """A server that answers so, and the headers that it was sent."""
    headers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status, body):
            headers.append(self.headers)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.reply(200, json.dumps(metadata).encode())

        def do_POST(self):
            if status:
                self.reply(status, body)
            else:
                time.sleep(1)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", headers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words", "failure", "text"),
    [
        (503, b'{"error": "busy\\nnow"}', [], 1, ":predict answered 503 Service Unavailable: busy now"),
        (429, b"", [], 1, ":predict answered 429 Too Many Requests\n"),
        (401, b"no", [], 2, ":predict answered 401 Unauthorized: no"),
        (200, b"<html>", [], 2, ":predict answered no JSON; expected a model server"),
        (0, b"", ["--timeout", "0.3"], 1, ":predict: timed out; is the server running?"),
        (200, b'data: {"text": "a"}\n\n', ["--stream"], 1, "failed: the stream broke off"),
        (200, b'event: error\ndata: {"error": "why"}\n\n', ["--stream"], 1, "failed: why"),
    ],
)
def test_failures_of_the_server(ask, status, body, words, failure, text):
    with told(status, body) as (url, _):
        assert text in ask("--text", "a", *words, url=url, model="m", status=failure)


def test_key_and_address_with_a_path(ask):
    with told(200, b'{"outputs": ["b"]}') as (url, headers):
        assert ask("--text", "a", "--api-key", "k", url=f"{url}/below/", model="m") == "b\n"
        assert ask("--text", "a", url=url, model="m") == "b\n"
    assert [one["Authorization"] for one in headers] == ["Bearer k", "Bearer k", None, None]


def test_key_of_a_real_server(ask, serve, repository):
    stream = ["--stream", "--text", "a", "--set", "length=9"]
    with serve(repository, guard=lambda app: Access(app, keys=Keys([b"secret"]))) as client:
        url = f"http://127.0.0.1:{client.port}"
        assert "metadata answered 401 Unauthorized" in ask(*stream, url=url, model="chargen", status=2)
        assert client("POST", "/stream/chargen", '{"prompt": "a"}').status == 401
        assert len(ask(*stream, "--api-key", "secret", url=url, model="chargen")) == 10


def test_what_is_no_model_server(ask):
    with told(200, b"", {}) as (url, _):
        assert f"{url} answered no metadata of m" in ask(url=url, model="m", status=2)
    assert f"no answer from {url}/v1/models/m/metadata: Connection refused" in ask(url=url, model="m", status=1)
    for wrong in ("localhost:8501", "file:///etc/passwd", "http://"):
        assert f"{wrong} is no address of a server" in ask(url=wrong, model="m", status=2)


def test_a_query_needs_no_tensorflow():
    with told(200, b'{"outputs": ["b"]}') as (url, _):
        program = (
            "import sys, kerasdl.serving.__main__ as server\n"
            f"status = server.main(['query', '{url}', 'm', '--text', 'a'])\n"
            "sys.exit(10 * status + ('tensorflow' in sys.modules))"
        )
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, b"b\n", b"")


def test_a_folder_of_that_name_is_served(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["./query"]) == 2
    assert capsys.readouterr().err.startswith("error: query is not a folder")
