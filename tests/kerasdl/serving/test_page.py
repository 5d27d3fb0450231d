"""The page at `/`: its files, and that they ask nobody but this server."""

import http.client
import re

import pytest
from rest_client import serve

from kerasdl.serving import page
from kerasdl.serving.access import Access, Keys
from kerasdl.serving.repository import ModelRepository

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
KEY = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("path", sorted(page.PATHS))
def test_file(client, path):
    reply = client("GET", path)
    assert reply.status == 200
    kind = "text/html" if path == "/" else TYPES[path.rpartition(".")[2]]
    assert reply.headers["content-type"].partition(";")[0] == kind
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    head = client("HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(reply.body)))


def test_every_file_of_the_folder_is_served_or_is_the_page():
    names = {path.rpartition("/")[2] for path in page.PATHS}
    assert {"", "page.css", "main.js", "icon.svg"} <= names
    assert "index.html" not in names


def test_nothing_from_elsewhere_and_no_text_as_html(client):
    for path in page.PATHS:
        text = client("GET", path).body.decode()
        assert set(re.findall(r"\w+://[\w./-]+", text)) <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage", text), (
            path
        )
        for address in re.findall(r"""(?:src|href)="([^"]*)"|from "([^"]*)"|url\(""", text):
            assert "".join(address).startswith(("/page/", "/docs", "./")), (path, address)
    html = client("GET", "/").body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/page/../page.py", 404),
        ("GET", "/page/..%2fpage.py", 404),
        ("GET", "/page/%2e%2e/page.py", 404),
        ("GET", "/page//etc/passwd", 404),
        ("GET", "/page/index.html", 404),
        ("GET", "/page/", 404),
        ("GET", "/page/main.js/", 404),
        ("POST", "/page/main.js", 404),
    ],
)
def test_no_other_file(client, method, path, status):
    assert client(method, path).status == status


def test_page_needs_no_key_though_models_do(root):
    repository = ModelRepository(root)
    repository.poll()
    keys = Keys([b"secret"])
    with serve(repository, guard=lambda app: Access(app, hosts=frozenset(["127.0.0.1"]), keys=keys)) as keyed:
        assert {keyed(method, path).status for path in page.PATHS for method in ("GET", "HEAD")} == {200}
        for path in ("/openapi.json", "/docs", "/v1/models/pair/metadata", "/page/../openapi.json", "/page/nope.js"):
            assert keyed("GET", path).status == 401, path
        assert keyed("GET", "/openapi.json", headers=KEY).status == 200
        connection = http.client.HTTPConnection("127.0.0.1", keyed.port, timeout=30)
        connection.request("GET", "/", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 400
        connection.close()
