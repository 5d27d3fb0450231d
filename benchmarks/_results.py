"""Where measurements are kept, and what they ran on."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from kerasdl.files import write_json
from kerasdl.training.run import provenance

RESULTS = Path(__file__).parent / "results"


def write(name: str, protocol: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """Writes `benchmarks/results/<name>.json` with protocol, machine and provenance."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"protocol": protocol, "machine": machine(), **provenance(), **facts, "rows": rows})
    print(f"wrote {path}")
    return path


def read(name: str) -> dict[str, Any] | None:
    """The last measurement, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def machine() -> str:
    """Processor and cores."""
    try:
        text = subprocess.run(["lscpu", "-J"], capture_output=True, text=True, check=True).stdout
        facts = {row["field"].rstrip(":"): row["data"] for row in json.loads(text)["lscpu"]}
        wide = "AVX-512 bf16" if "avx512_bf16" in facts.get("Flags", "") else "no AVX-512 bf16"
        family = f"family {facts.get('CPU family')} model {facts.get('Model')}"
        return f"{facts.get('Model name', platform.processor())}, {family}, {facts['CPU(s)']} cores, {wide}"
    except (OSError, subprocess.CalledProcessError, KeyError):
        return platform.processor()
