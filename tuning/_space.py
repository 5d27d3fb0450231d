"""What the search spaces share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def around(values: Iterable[Any], given: Any) -> dict[str, Any]:
    """The values of a choice with the one that the configuration has, which is tried first.

    Args:
        values: numbers or words.
        given: that of the configuration, one of them or not.

    Returns:
        Arguments for `hp.Choice`.
    """
    return {"values": sorted({*values, given}), "default": given}
