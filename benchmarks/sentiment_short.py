"""Accuracy on short reviews, which IMDB has none of: plain sentences, sentences with a negation, one-liners.

    python -m benchmarks.sentiment_short saved_models/sentiment      (about 3 minutes)

`short_reviews.csv` was written for this measurement: 290 sentences, half of each kind positive. Nothing is trained or
chosen on it. Beside the export stands a logistic regression on TF-IDF of words and pairs of words, which learned the
same 25,000 labelled reviews.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from benchmarks import _results, sentiment_baselines
from kerasdl import export
from kerasdl.data import tfds
from kerasdl.models import teacher

FILE = Path(__file__).parent / "short_reviews.csv"


def main() -> None:
    """Measures and writes benchmarks/results/sentiment_short.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an export of sentiment trained on IMDB")
    parser.add_argument("--data-dir", type=Path, help="TFDS folder; else KERASDL_DATA_DIR, else TFDS' own default")
    arguments = parser.parse_args()
    with FILE.open(encoding="utf-8", newline="") as file:
        reviews = list(csv.DictReader(file))
    texts = [review["text"] for review in reviews]
    labels = np.array([review["label"] == "positive" for review in reviews], int)
    kinds = np.array([review["kind"] for review in reviews])
    probabilities = {"ours": teacher.probabilities(export.signatures(arguments.model), texts)}
    seen, seen_labels = tfds.texts(sentiment_baselines.NAME, "train", arguments.data_dir)
    vectorizer = CountVectorizer(tokenizer=lambda row: row, lowercase=False, token_pattern=None,
                                 ngram_range=(1, 2), dtype=np.float64)  # fmt: skip
    train = vectorizer.fit_transform(sentiment_baselines.words(seen))
    test = vectorizer.transform(sentiment_baselines.words(texts))
    probabilities["tf_idf_bigrams_regression"] = sentiment_baselines.tf_idf(train, seen_labels, test)[1]
    rows = []
    for name, found in probabilities.items():
        right = found.argmax(1) == labels
        of_kind = {f"accuracy_{kind}": round(float(right[kinds == kind].mean()), 4) for kind in dict.fromkeys(kinds)}
        rows.append({"model": name, "accuracy": round(float(right.mean()), 4), **of_kind})
        print(rows[-1], flush=True)
    counts = {kind: int((kinds == kind).sum()) for kind in dict.fromkeys(kinds)}
    _results.write(
        "sentiment_short",
        f"{FILE.name}, {len(texts)} sentences, half of each kind positive",
        rows,
        counts=counts,
        model=str(arguments.model),
    )


if __name__ == "__main__":
    main()
