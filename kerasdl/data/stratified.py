"""Division of examples into train, validation and test, in which each stays where it is whatever others there are."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence

from kerasdl.data.divided import Fold, HeldOut


def divide(
    contents: Sequence[str], labels: Sequence[Hashable], *, held_out: HeldOut, test_ratio: float, seed: int
) -> dict[str, list[int]]:
    """Gives each example a part by a hash of its content, which stands for a random number with these probabilities.

    So the part of an example follows from itself: not from its name or place, nor from what is added or removed.
    Equal contents come into one part, whatever their labels. The test part does not depend on what is held out, so
    that a final model that is trained on the validation examples as well is still tested on examples that no choice
    was made by. The exception is a class of which a part would get nothing: that part takes the example that is
    nearest to it; a class of two contents gives its second one to validation, or to test if there is no validation.

    Args:
        contents: of each example: what tells it from others, such as a text or the checksum of a file.
        labels: of each example.
        held_out: for validation. If it is a share above 0, each class gives at least one content if it can: the first
            is for train, the second for validation, the third for test. A fold has an equal part of each class; what
            is added may move examples from fold to fold.
        test_ratio: share for test, in the same way.
        seed: another seed gives another division.

    Returns:
        `train`, `validation` and `test`: positions in ascending order.

    Raises:
        ValueError: if a ratio is negative, or nothing is left for train.
        UserError: there are fewer contents than folds.

    Source: own.
    """
    if isinstance(held_out, Fold):
        parts = divide(contents, labels, held_out=0, test_ratio=test_ratio, seed=seed)
        in_fold = _fold([contents[i] for i in parts["train"]], [labels[i] for i in parts["train"]], held_out, seed)
        train, validation = (
            [i for i, held in zip(parts["train"], in_fold, strict=True) if held is wanted] for wanted in (False, True)
        )
        return {"train": train, "validation": validation, "test": parts["test"]}
    validation_ratio = held_out
    if min(validation_ratio, test_ratio) < 0 or validation_ratio + test_ratio >= 1:
        raise ValueError(
            f"held_out is {validation_ratio} and test_ratio {test_ratio}; expected shares with a sum"
            " below 1; choose smaller ones."
        )
    drawn = {content: _uniform(seed, content) for content in dict.fromkeys(contents)}
    both = validation_ratio + test_ratio
    part = {
        content: "test" if number < test_ratio else "validation" if number < both else "train"
        for content, number in drawn.items()
    }
    for own in _classes(contents, labels, drawn):
        names = [part[content] for content in own]
        least = 1 if validation_ratio else 0
        most = len(own) - 2 if len(own) > 2 else max(0, len(own) - 1 - least)
        num_test = min(max(names.count("test"), 1 if test_ratio else 0), most)
        wanted = max(len(own) - names.count("train") - num_test, least)
        num_validation = min(wanted, max(0, len(own) - num_test - 1)) if validation_ratio else 0
        for index, content in enumerate(own):
            in_test, held = index < num_test, index < num_test + num_validation
            part[content] = "test" if in_test else "validation" if held else "train"
    return {
        name: [index for index, content in enumerate(contents) if part[content] == name]
        for name in ("train", "validation", "test")
    }


def _fold(contents: Sequence[str], labels: Sequence[Hashable], fold: Fold, seed: int) -> list[bool]:
    """Whether each example is in a fold: classes are dealt out to the folds one after the other, content by content."""
    drawn = {content: _uniform(seed, content) for content in dict.fromkeys(contents)}
    fold.check(len(drawn))
    dealt = [content for own in _classes(contents, labels, drawn) for content in own]
    members = {*dealt[fold.number - 1 :: fold.count]}
    return [content in members for content in contents]


def _classes(contents: Sequence[str], labels: Sequence[Hashable], drawn: Mapping[str, float]) -> list[list[str]]:
    """The contents of each class, the lowest number drawn first; one with several labels is in the first alone."""
    classes: dict[Hashable, set[str]] = {}
    for content, label in zip(contents, labels, strict=True):
        classes.setdefault(label, set()).add(content)
    found: list[list[str]] = []
    taken: set[str] = set()
    for _, members in sorted(classes.items(), key=lambda item: repr(item[0])):  # in no order of the examples
        found.append(sorted(members - taken, key=drawn.__getitem__))
        taken |= members
    return found


def _uniform(seed: int, content: str) -> float:
    digest = hashlib.sha256(f"{seed}/{content}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
