"""Numpy re-implementation of the wide part, text by text, with sets and Python's integers.

A text is a list of ids without padding.
"""

import itertools
import math


def features(text, vocabulary_size, buckets):
    """The set of rows: words, then the buckets of pairs."""
    found = set(text)
    for first, second in itertools.pairwise(text):
        mixed = (first * 0x5851F42D + second * 0x4C957F2D) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 0x5851F42D) & 0xFFFFFFFF
        found.add(vocabulary_size + ((mixed * buckets) >> 32))
    return found


def log_count_ratio(sets, labels, positive, size, smoothing):
    """Wang and Manning 2012, equation 2: one class against the rest; [size]."""
    p = [smoothing + sum(f in s for s, y in zip(sets, labels, strict=True) if y == positive) for f in range(size)]
    q = [smoothing + sum(f in s for s, y in zip(sets, labels, strict=True) if y != positive) for f in range(size)]
    return [math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)]
