"""The whole way in two minutes: trains, evaluates, exports, serves and asks, without a download."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from kerasdl.errors import UserError

ROOT = Path("runs/demo")


def run(*words: str) -> None:
    """Shows and runs one command."""
    print(f"\n$ python {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], check=True)


def main() -> None:
    """Runs the commands that a person would."""
    run("-m", "apps", "cifar10", "train", "--tiny", "--runs", str(ROOT))
    trained = max((ROOT / "cifar10").iterdir(), key=lambda path: path.stat().st_mtime)
    run("-m", "apps", "cifar10", "evaluate", str(trained))
    exports = ROOT / "saved_models"
    run("-m", "apps", "cifar10", "export", str(trained), "--saved-models", str(exports))
    version = max((exports / "cifar10").iterdir(), key=lambda path: int(path.name))
    answer = serve_and_ask(exports)
    print(f"\n{json.dumps(answer)}\n\nfigures: {trained / 'figures'}\nmodel card: {version / 'MODEL_CARD.md'}")


def serve_and_ask(exports: Path) -> dict[str, object]:
    """Starts the server on a free port, sends one drawn picture over HTTP, stops the server.

    Returns:
        The parsed reply.
    """
    import base64
    import io

    from PIL import Image

    from kerasdl.data import synthetic

    images, labels = synthetic.shapes(1, size=64, num_classes=8, seed=7)
    encoded = io.BytesIO()
    Image.fromarray(images[0]).save(encoded, "PNG")
    row = {"image_bytes": {"b64": base64.b64encode(encoded.getvalue()).decode()}}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "kerasdl.serving", str(exports), "--rest-port", str(port)]
    print(f"\n$ python {' '.join(command)} &", flush=True)
    with tempfile.TemporaryFile() as log, subprocess.Popen([sys.executable, *command], stderr=log) as server:
        try:
            _wait(f"http://127.0.0.1:{port}/readyz", server)
            url = f"http://127.0.0.1:{port}/v1/models/cifar10:predict"
            print(f'$ curl -d \'{{"instances": [{{"image_bytes": {{"b64": "..."}}}}]}}\' {url}')
            print(f"(the picture shows a {synthetic.SHAPE_NAMES[labels[0]]})")
            with urllib.request.urlopen(url, json.dumps({"instances": [row]}).encode(), timeout=60) as reply:
                return json.load(reply)
        finally:
            server.send_signal(signal.SIGTERM)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise UserError(f"the server stopped with status {server.returncode}")
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:  # refused, not ready (503), or too busy to answer within a second
            time.sleep(0.2)
        else:
            return
    raise UserError("the server was not ready within 60 seconds")


if __name__ == "__main__":
    main()
