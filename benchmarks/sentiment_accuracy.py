"""Accuracy on the IMDB test split: the whole classifier, and its network alone.

    python -m benchmarks.sentiment_accuracy default --seeds 1

Settings were chosen on the held-out 10 % of the training split; the runs here train on all 25,000 labelled reviews, so
that nothing can be chosen on the test split. The recipe `student` needs its teacher, the export of recipe `default`,
and `second-student` that of `student`:

    python -m apps sentiment export runs/accuracy/default-seed0/sentiment/RUN --saved-models runs/accuracy/teacher
    python -m apps sentiment export runs/accuracy/student-seed0/sentiment/RUN --saved-models runs/accuracy/student
"""

from __future__ import annotations

from benchmarks import _accuracy

WHOLE = ("--validation-ratio", "0")
RECIPES = {
    "default": [*WHOLE],
    "network-alone": ["--no-ngrams", *WHOLE],
    "pretrained": ["--pretrain-epochs", "1", *WHOLE],
    "student": ["--teacher", "runs/accuracy/teacher/sentiment", *WHOLE],
    "second-student": ["--teacher", "runs/accuracy/student/sentiment", *WHOLE],
}


if __name__ == "__main__":
    _accuracy.main(
        "sentiment",
        __doc__,
        RECIPES,
        ("accuracy", "accuracy_without_train_duplicates", "calibration_error"),
        "IMDB test split, 25,000 reviews, float32 evaluation of the last epoch",
    )
