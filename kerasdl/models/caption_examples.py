"""What a captioner learns from: pictures with captions cut into words, and the vocabulary of these."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasdl.data import captioned_pictures, divided, picture_files, vocabulary
from kerasdl.errors import UserError
from kerasdl.metrics import caption_scores


@dataclass(frozen=True)
class Examples:
    """Pictures, as files or as uint8[pictures, size, size, 3], and the captions of each, cut into words."""

    pictures: Sequence[Path] | np.ndarray
    captions: Sequence[Sequence[Sequence[str]]]

    def __len__(self) -> int:
        return len(self.captions)

    def sentences(self) -> list[list[str]]:
        """The captions of each picture, not cut."""
        return [[" ".join(words) for words in several] for several in self.captions]


def facts(found: divided.Divided[Examples], settings: Any) -> dict[str, Any]:
    """What a captioner must know: `words`, the end and those of the training captions, and settings.

    Args:
        found: the examples.
        settings: the configuration, with `min_count`, `image_size`, `max_words`, `beam_width` and `length_penalty`.

    Raises:
        UserError: no word is frequent enough.
    """
    written = itertools.chain(*found.train.sentences())
    words = vocabulary.build_vocabulary(list(written), 100_000, min_count=settings.min_count)
    if not words:
        raise UserError(f"no word stands {settings.min_count} times in the training captions; lower --min-count")
    return {
        "words": ["<end>", *words],  # its id is caption_decoder.END
        "image_size": settings.image_size,
        "max_words": settings.max_words,
        "beam": [settings.beam_width, settings.length_penalty],
    }


def cut(
    images: np.ndarray, captions: Sequence[Sequence[Sequence[str]]], at: tuple[int, int], description: str
) -> divided.Divided[Examples]:
    """Divides pictures and captions, see `Examples`, in their order: `at` is where validation begins, and the test."""
    ends = [0, *at, len(images)]
    train, validation, test = (Examples(images[a:b], captions[a:b]) for a, b in itertools.pairwise(ends))
    return divided.Divided(train, validation, lambda: test, None, description)


def divide(
    found: Mapping[str, captioned_pictures.Captioned], path: Path, *, held_out: divided.HeldOut, own: bool
) -> divided.Divided[Examples]:
    """Divides captioned pictures as far as they are not; without a test split the validation split is the test.

    Captions of punctuation alone are left out, and pictures that have no other.

    Args:
        found: by split, see `captioned_pictures.read`.
        path: where they come from.
        held_out: for validation, if there is no split for it; a fold divides that split, too.
        own: whether they are a person's own, of which a tenth is for the test, if there is no split for it.

    Raises:
        UserError: a part has too few pictures.
    """
    given = dict(found)
    if "test" not in given and "validation" in given:
        given["test"] = given.pop("validation")
    if isinstance(held_out, divided.Fold) and "validation" in given:
        one, other = given["train"], given.pop("validation")
        given["train"] = captioned_pictures.Captioned(one.paths + other.paths, one.captions + other.captions)
    elif "validation" in given:
        held_out = 0
    if own:
        test_ratio = 0 if "test" in given else 0.1
        parts = captioned_pictures.split(given["train"], held_out=held_out, test_ratio=test_ratio, seed=divided.SEED)
        if len(given) > 1:
            picture_files.report_shared({name: part.paths for name, part in (parts | given).items()})
    else:
        parts = captioned_pictures.hold_out(given["train"], held_out, seed=divided.SEED)
    parts = {**parts, **given, "train": parts["train"]}
    train, validation, test = (_examples(parts[name]) for name in ("train", "validation", "test"))
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    divided.check_sizes(path, "pictures", **counts, least_validation=1 if held_out else 0)
    description = f"{path.name}, {len(test):,} pictures held out"
    return divided.Divided(train, validation, lambda: test, None, description)


def _examples(found: captioned_pictures.Captioned) -> Examples:
    words = iter(caption_scores.tokenize_all([caption for several in found.captions for caption in several]))
    captions = [[cut for _ in several if (cut := next(words))] for several in found.captions]
    kept = [i for i, several in enumerate(captions) if several]
    return Examples([found.paths[i] for i in kept], [captions[i] for i in kept])
