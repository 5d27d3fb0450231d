"""Division of classes into train, validation and test."""

import math
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def divide(classes: Iterable[list[T]], *, validation_ratio: float, test_ratio: float) -> dict[str, list[T]]:
    """Cuts each class, shuffled already, in the same ratio.

    The test part is taken first, and but for classes too small for three parts it does not depend on the validation
    ratio. So a final model that is trained on the validation examples as well is still tested on examples that no
    choice was made by. A class too small for three parts gives its test examples to validation.

    Args:
        classes: the shuffled examples of each class.
        validation_ratio: share for validation, 0 for none. Else each class gives at least one example if it can:
            the first is for train, the second for validation, the third for test.
        test_ratio: share for test, in the same way.

    Returns:
        `train`, `validation` and `test`, class after class.

    Raises:
        ValueError: if a ratio is negative, or nothing is left for train.

    Source: own.
    """
    if min(validation_ratio, test_ratio) < 0 or validation_ratio + test_ratio >= 1:
        raise ValueError(
            f"validation_ratio is {validation_ratio} and test_ratio {test_ratio}; expected shares with a sum"
            " below 1; choose smaller ones."
        )
    parts: dict[str, list[T]] = {"train": [], "validation": [], "test": []}
    for examples in classes:
        validation = min(_share(len(examples), validation_ratio), len(examples) - 1)
        test = min(_share(len(examples), test_ratio), len(examples) - 1 - validation)
        parts["test"] += examples[:test]
        parts["validation"] += examples[test : test + validation]
        parts["train"] += examples[validation + test :]
    return parts


def _share(count: int, ratio: float) -> int:
    return max(1, math.floor(count * ratio + 0.5)) if ratio else 0
