"""What a captioner learns from: its parts, its words, and what it must know."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kerasdl.data.captioned_pictures import Captioned
from kerasdl.data.divided import Fold
from kerasdl.errors import UserError
from kerasdl.models import caption_examples
from kerasdl.models.caption_examples import Examples


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Forty pictures with two captions each."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / f"{i}.png")
    paths = tuple(root / f"{i}.png" for i in range(40))
    return Captioned(paths, tuple((f"Picture number {i}!", f"It is {i}.") for i in range(40)))


def parts(found):
    return [found.train, found.validation, found.test()]


def part(captioned, *indices):
    return Captioned(*(tuple(several[i] for i in indices) for several in (captioned.paths, captioned.captions)))


def test_own_pictures_are_divided_and_keep_their_captions(captioned):
    found = caption_examples.divide({"train": captioned}, Path("own.csv"), held_out=0.2, own=True)
    assert all(map(len, parts(found)))
    assert found.description == f"own.csv, {len(found.test())} pictures held out"
    pairs = {path: said for one in parts(found) for path, said in zip(one.pictures, one.captions, strict=True)}
    assert len(pairs) == sum(map(len, parts(found))) == 40
    assert all(pairs[path][1] == ["it", "is", path.stem] for path in captioned.paths)


@pytest.mark.parametrize("own", [True, False])
def test_without_a_test_split_the_validation_split_is_the_test(captioned, own):
    given = {"train": part(captioned, *range(30)), "validation": part(captioned, *range(30, 40))}
    found = caption_examples.divide(given, Path("own"), held_out=0.2, own=own)
    assert found.test().pictures == [*captioned.paths[30:]]
    assert len(found.train) + len(found.validation) == 30
    assert len(found.validation) > 0
    whole = caption_examples.divide(given, Path("own"), held_out=0, own=own)
    assert [len(one) for one in parts(whole)] == [30, 0, 10]
    assert set(given) == {"train", "validation"}  # it is not changed


@pytest.mark.parametrize("own", [True, False])
def test_a_fold_divides_the_validation_split_too(captioned, own):
    given = {"train": part(captioned, *range(25)), "validation": part(captioned, *range(25, 30))}
    given["test"] = part(captioned, *range(30, 40))
    folds = [caption_examples.divide(given, Path("own"), held_out=Fold(number, 2), own=own) for number in (1, 2)]
    assert sorted(path for fold in folds for path in fold.validation.pictures) == sorted(captioned.paths[:30])
    assert all(fold.test().pictures == [*captioned.paths[30:]] for fold in folds)
    assert set(given) == {"train", "validation", "test"}  # it is not changed


def test_pictures_without_a_word_are_left_out_and_too_few_refused(captioned):
    train = part(captioned, *range(4))
    said = Captioned(train.paths, (("...", "A dog."), ("!",), ("?", "-"), ("Two dogs.",)))
    given = {"train": said, "validation": part(captioned, 5), "test": part(captioned, 6)}
    found = caption_examples.divide(given, Path("own"), held_out=0.2, own=False)
    assert found.train.captions == [[["a", "dog"]], [["two", "dogs"]]]
    assert found.train.pictures == [train.paths[0], train.paths[3]]
    assert found.train.sentences() == [["a dog"], ["two dogs"]]
    given["test"] = Captioned(captioned.paths[6:7], (("!",),))
    with pytest.raises(UserError, match="too few pictures: 2 to train on, 1 to validate and 0 to test"):
        caption_examples.divide(given, Path("own"), held_out=0.2, own=False)


def test_a_captioner_knows_the_frequent_words_of_the_training_captions():
    captions = [[["a", "dog"]], [["a", "cat"]], [["new", "new"]]]
    found = caption_examples.cut(np.zeros((3, 4, 4, 3), np.uint8), captions, (2, 2), "drawn")
    assert [len(one) for one in parts(found)] == [2, 0, 1]
    assert isinstance(found.test(), Examples)
    settings = SimpleNamespace(min_count=2, image_size=4, max_words=9, beam_width=3, length_penalty=0.5)
    facts = caption_examples.facts(found, settings)
    assert facts == {"words": ["<end>", "a"], "image_size": 4, "max_words": 9, "beam": [3, 0.5]}
    settings.min_count = 3
    with pytest.raises(UserError, match="no word stands 3 times in the training captions; lower --min-count"):
        caption_examples.facts(found, settings)
