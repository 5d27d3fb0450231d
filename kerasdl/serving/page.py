"""The page at `/`: files that ask this server from a browser. They hold no answers, so they need no key."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": "text/html"}
_FILES = {"/": _FOLDER / "index.html"} | {
    f"/page/{path.name}": path
    for path in sorted(_FOLDER.iterdir())
    if path.suffix in _TYPES and path.name != "index.html"
}

PATHS = frozenset(_FILES)
"""Paths of the files."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of a page that takes everything from this server and that no other page may frame."""


def routes() -> list[Route]:
    """Where the web application gives the files: `/` and `/page/NAME`, and no other path."""

    def file(request: Request) -> Response:
        path = _FILES[request.scope["path"]]
        # Files of two versions of the server must not meet in a browser.
        headers = {**HEADERS, "Cache-Control": "no-store"}
        return FileResponse(path, headers=headers, media_type=_TYPES[path.suffix])

    return [Route(path, file) for path in _FILES]
