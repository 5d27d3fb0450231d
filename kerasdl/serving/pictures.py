"""Pictures in requests: how large they are, from their headers, before a model decodes them."""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image, UnidentifiedImageError

from kerasdl.serving.errors import Code, ServingError

_FORMATS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WEBP"}


def check(values: Iterable[object], max_pixels: int) -> None:
    """Refuses pictures that are too large; other strings pass.

    Args:
        values: of an input; pictures are files as bytes, PNG, JPEG, GIF, BMP or WebP.
        max_pixels: of each.

    Raises:
        ServingError: INVALID_ARGUMENT, when one has more.
    """
    for value in values:
        if isinstance(value, bytes) and (size := _size(value)) is not None and size[0] * size[1] > max_pixels:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"a picture of {size[0]:,} x {size[1]:,} pixels is too large; this server takes {max_pixels:,} at most",
            )


def pixels(values: Iterable[object]) -> int:
    """Pixels of all pictures among the values."""
    sizes = [size for value in values if isinstance(value, bytes) and (size := _size(value)) is not None]
    return sum(width * height for width, height in sizes)


def _size(data: bytes) -> tuple[int, int] | None:
    """Width and height; None for what is no picture, or a broken one, of which the model will tell."""
    kind = next((kind for beginning, kind in _FORMATS.items() if data.startswith(beginning)), None)
    if kind is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            return image.size
    except Image.DecompressionBombError:
        return 2**16, 2**16  # of a size that no model here decodes
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None
