"""Made-up reviews: well formed, balanced, and out of reach of counting words."""

import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from kerasdl.data.synthetic import reviews

GOOD, BAD = {"good", "great", "lovely"}, {"bad", "dull", "awful"}
NEGATED = re.compile(r"(is not|was never|is hardly) ")


@pytest.fixture(scope="module")
def written():
    return reviews(2000, seed=0)


def test_the_label_is_what_the_verdict_says(written):
    texts, labels = written
    assert labels.dtype == np.int32
    assert labels.sum() == 1000
    seen = set()
    for text, label in zip(texts, labels, strict=True):
        (verdict,) = [s for s in text.split(" . ") if set(s.split()) & (GOOD | BAD)]
        good, negated = bool(set(verdict.split()) & GOOD), bool(NEGATED.search(verdict))
        assert (good != negated) == label
        seen.add((good, negated))
        assert 10 <= len(text.split()) <= 45
    assert len(seen) == 4


@pytest.mark.parametrize(("longest", "below"), [(1, 0.56), (2, 0.76)])
def test_counting_words_or_pairs_is_not_enough(written, longest, below):
    texts, labels = written
    counts = CountVectorizer(ngram_range=(1, longest), token_pattern=r"\S+", binary=True).fit_transform(texts)
    score = LogisticRegression(max_iter=1000).fit(counts[:1500], labels[:1500]).score(counts[1500:], labels[1500:])
    assert score < below


def test_few_reviews_stand_twice(written):
    assert len(set(written[0])) > 1950


def test_the_seed_decides_the_reviews():
    texts, labels = reviews(50, seed=1)
    again, same = reviews(50, seed=1)
    assert texts == again
    assert (labels == same).all()
    assert texts != reviews(50, seed=2)[0]
    assert reviews(0, seed=0)[0] == []
