"""Where measurements are kept, and what they ran on.

Speeds are kept apart by the kind of processor: a file of speeds holds one block a kind.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from kerasdl import processor
from kerasdl.files import write_json
from kerasdl.training.run import provenance

RESULTS = Path(__file__).parent / "results"


def write(name: str, protocol: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """Writes `benchmarks/results/<name>.json` with protocol, machine and provenance."""
    return _saved(name, {"protocol": protocol, "machine": machine(), **provenance(), **facts, "rows": rows})


def read(name: str) -> dict[str, Any] | None:
    """The last measurement, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_of_kind(name: str, protocol: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """Writes what was measured into the block of this kind of processor; the blocks of other kinds stay."""
    block = {
        "kind": processor.kind(),
        "simulated": simulated(),
        "protocol": protocol,
        "machine": machine(),
        **provenance(),
        **facts,
        "rows": rows,
    }
    return _saved(name, {"kinds": {**read_kinds(name), label(block["kind"], block["simulated"]): block}})


def read_kinds(name: str) -> dict[str, dict[str, Any]]:
    """The last measurement of each kind of processor, by its label.

    Raises:
        SystemExit: a block was measured on another kind than it stands under.
    """
    kinds = (read(name) or {"kinds": {}})["kinds"]
    for key, block in kinds.items():
        measured = label(block["kind"], block["simulated"])
        if measured != key:
            raise SystemExit(f"{name}.json has figures of {measured} under {key}; move them, or measure anew")
    return kinds


def label(kind: str, simulated: bool) -> str:
    """What the figures of a kind stand under: those of a real processor never mix with simulated ones."""
    return f"{kind}, set by {processor.SWITCH}=avx2" if simulated else kind


def simulated() -> bool:
    """True if the environment makes this processor behave as another kind."""
    return bool(os.environ.get(processor.SWITCH))


def machine() -> str:
    """Processor, cores and kind."""
    kind = label(processor.kind(), simulated())
    try:
        text = subprocess.run(["lscpu", "-J"], capture_output=True, text=True, check=True).stdout
        facts = {row["field"].rstrip(":"): row["data"] for row in json.loads(text)["lscpu"]}
        family = f"family {facts.get('CPU family')} model {facts.get('Model')}"
        return f"{facts.get('Model name', platform.processor())}, {family}, {facts['CPU(s)']} cores, {kind}"
    except (OSError, subprocess.CalledProcessError, KeyError):
        return f"{platform.processor()}, {os.cpu_count()} cores, {kind}"


def _saved(name: str, content: dict[str, Any]) -> Path:
    path = RESULTS / f"{name}.json"
    write_json(path, content)
    print(f"wrote {path}")
    return path
