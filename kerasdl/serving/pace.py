"""How long signatures take: what cannot be answered in time is refused at once, and what is quick stays where it is."""

from __future__ import annotations

import io
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from kerasdl.serving import pictures
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.servable import Servable

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, float], tuple[dict[str, np.ndarray], float]]
"""Of inputs and the seconds that they may be expected to take, gives outputs and the seconds that they took."""

LARGE = 1_000_000
"""Pixels of a request of which it is asked whether they can be answered in time."""
_SIDE = 500
_AGAIN_SECONDS = 60.0
_KNOWN_SIZES = 1000
_DOUBT = 1.5  # a measurement beside other work takes longer


@dataclass
class _Known:
    seconds_per_pixel: float | None = None
    at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Pace:
    """Knows the time that each signature takes for a pixel, from one picture of 500 x 500 and from all that come.

    Args:
        timeout_seconds: in which an answer must be there.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._known: weakref.WeakKeyDictionary[Servable, dict[str, _Known]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def run(self, servable: Servable, signature: str, inputs: Arrays, run: Run) -> dict[str, np.ndarray]:
        """Runs a signature, unless that takes far too long.

        Args:
            servable: the model.
            signature: its name.
            inputs: arrays by name.
            run: runs it; gives the seconds that it took, too.

        Raises:
            ServingError: INVALID_ARGUMENT, when its pictures are too large.
        """
        pixels = pictures.pixels(value for array in inputs.values() if array.dtype == object for value in array.flat)
        if pixels < _SIDE**2:
            return run(inputs, 0.0)[0]
        with self._lock:
            known = self._known.setdefault(servable, {}).setdefault(signature, _Known())
        if pixels >= LARGE:
            self._check(known, pixels, servable.examples.get(signature), run)
        outputs, seconds = run(inputs, pixels * (known.seconds_per_pixel or 0.0))
        _learn(known, seconds / pixels)
        return outputs

    def _check(self, known: _Known, pixels: int, example: Arrays | None, run: Run) -> None:
        with known.lock:
            pace = known.seconds_per_pixel
            late = pace is None or pixels * pace > self._timeout * _DOUBT
            if late and example is not None and time.monotonic() >= known.at:
                _learn(known, _measured(example, run))
                known.at = time.monotonic() + _AGAIN_SECONDS
        pace = known.seconds_per_pixel
        if pace is not None and pixels * pace > self._timeout * _DOUBT:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"{pixels:,} pixels would take about {pixels * pace:.0f} seconds; this server answers within "
                f"{self._timeout:g} seconds, which is enough for {int(self._timeout / pace):,} pixels",
            )


def _learn(known: _Known, seconds_per_pixel: float) -> None:
    before = known.seconds_per_pixel
    known.seconds_per_pixel = seconds_per_pixel if before is None else min(before, seconds_per_pixel)


def _measured(example: Arrays, run: Run) -> float:
    """Seconds for a pixel, beyond what a small picture takes."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)).save(file, "PNG")
    larger = {
        name: np.array([file.getvalue()] * len(array), object)
        if array.dtype == object and pictures.pixels(array.flat)
        else array
        for name, array in example.items()
    }
    seconds = [run(inputs, 0.0)[1] for inputs in (example, larger)]
    return max(seconds[1] - seconds[0], 0.0) / _SIDE**2


class Quickest:
    """The shortest time that calls took, by the model and signature and the sizes of the inputs."""

    def __init__(self) -> None:
        self._seconds: weakref.WeakKeyDictionary[Servable, dict[object, float]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def seconds(self, servable: Servable, signature: str, inputs: Arrays) -> float:
        """That of calls about as large; infinity when there was none."""
        with self._lock:
            return self._seconds.get(servable, {}).get(_sizes(signature, inputs), math.inf)

    def learn(self, servable: Servable, signature: str, inputs: Arrays, seconds: float) -> None:
        """Takes note of a call."""
        with self._lock:
            known, sizes = self._seconds.setdefault(servable, {}), _sizes(signature, inputs)
            known[sizes] = min(seconds, known.pop(sizes, math.inf))
            if len(known) > _KNOWN_SIZES:
                known.pop(next(iter(known)))


def _sizes(signature: str, inputs: Arrays) -> object:
    """Equal for calls whose pixels, lengths of texts, numbers and largest counts are within a factor of 2 each."""
    sizes = []
    for name, array in sorted(inputs.items()):
        size = array.size
        if array.dtype == object:
            size = pictures.pixels(array.flat) or sum(map(len, array.flat))
        most = int(np.abs(array.astype(float)).max()) if array.dtype.kind in "iu" and array.size else 0
        sizes.append((name, size.bit_length(), most.bit_length()))
    return signature, *sizes
