"""Linear baselines on the IMDB test split, beside which the sentiment application is read: NB-SVM, TF-IDF + regression.

    python -m benchmarks.sentiment_baselines      (about 5 minutes)

Both see the 25,000 labelled training reviews and their word uni- and bigrams, cut as the application cuts them. Their
settings are the papers' and scikit-learn's defaults: nothing is chosen on the test split.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from benchmarks import _results
from kerasdl.data import tfds
from kerasdl.data.vocabulary import WordVocabulary
from kerasdl.metrics import classification

NAME = "imdb_reviews/plain_text"


def words(texts: list[str]) -> list[list[str]]:
    """The application's words."""
    parts = [WordVocabulary.tokenize(texts[i : i + 1000]).to_list() for i in range(0, len(texts), 1000)]
    return [[word.decode() for word in row] for part in parts for row in part]


def nb_svm(train: sparse.csr_matrix, labels: np.ndarray, test: sparse.csr_matrix) -> tuple[np.ndarray, None]:
    """Features scaled by the log-count ratio, squared-hinge SVM, its weights drawn towards their mean size.

    Source: Wang and Manning 2012, "Baselines and Bigrams", sections 2.1 to 2.3 (alpha 1, beta 0.25, C 1).
    """
    present, present_test = train.sign(), test.sign()
    p, q = (np.asarray(present[labels == label].sum(0)).ravel() + 1 for label in (1, 0))
    ratio = sparse.diags_array(np.log((p / p.sum()) / (q / q.sum())))
    model = LinearSVC(C=1.0, dual=True, random_state=0).fit(present @ ratio, labels)
    weights = model.coef_[0]
    weights = 0.75 * np.abs(weights).mean() + 0.25 * weights
    return (present_test @ ratio @ weights + model.intercept_ > 0).astype(int), None


def tf_idf(train: sparse.csr_matrix, labels: np.ndarray, test: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression on TF-IDF with sublinear counts."""
    weigh = TfidfTransformer(sublinear_tf=True).fit(train)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(weigh.transform(train), labels)
    shares = model.predict_proba(weigh.transform(test))
    return shares.argmax(1), shares


def main() -> None:
    """Measures and writes benchmarks/results/sentiment_baselines.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="TFDS folder; else KERASDL_DATA_DIR, else TFDS' own default")
    data_dir = parser.parse_args().data_dir
    (texts, labels), (test_texts, test_labels) = (tfds.texts(NAME, split, data_dir) for split in ("train", "test"))
    vectorizer = CountVectorizer(tokenizer=lambda row: row, lowercase=False, token_pattern=None,
                                 ngram_range=(1, 2), dtype=np.float64)  # fmt: skip
    test_words = words(test_texts)
    train, test = vectorizer.fit_transform(words(texts)), vectorizer.transform(test_words)
    lengths = np.array([len(row) for row in test_words])
    limits = np.quantile(lengths, [0.25, 0.5, 0.75])
    rows: list[dict[str, Any]] = []
    for name, baseline in {"nb_svm_bigrams": nb_svm, "tf_idf_bigrams_regression": tf_idf}.items():
        start = time.perf_counter()
        predicted, shares = baseline(train, labels, test)
        right = predicted == test_labels
        row = {"model": name, "accuracy": round(float(right.mean()), 4), "seconds": round(time.perf_counter() - start)}
        quartile = np.searchsorted(limits, lengths)
        row |= {f"accuracy_length_quartile_{i + 1}": round(float(right[quartile == i].mean()), 4) for i in range(4)}
        if shares is not None:
            row["calibration_error"] = round(
                classification.classification_report(shares, test_labels)["calibration_error"], 4
            )
        rows.append(row)
        print(row, flush=True)
    _results.write(
        "sentiment_baselines",
        f"IMDB test split, 25,000 reviews; trained on the 25,000 labelled reviews, {train.shape[1]:,} uni- and bigrams",
        rows,
        quartiles_words=[round(float(limit)) for limit in limits],
        published={"NB-SVM bigrams (Wang and Manning 2012)": 0.9122, "SA-LSTM (Dai and Le 2015)": 0.9276},
    )


if __name__ == "__main__":
    main()
