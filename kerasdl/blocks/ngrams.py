"""The wide part of a text classifier: which words and pairs of neighbours a text holds, each with a weight a class."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import sparse
from sklearn.linear_model import LogisticRegression

_MULTIPLIERS = 0x5851F42D, 0x4C957F2D  # odd, and below 2^31: their products with an id fit into int64


@keras.saving.register_keras_serializable(package="kerasdl")
class NgramLogits(keras.layers.Layer):
    """A linear classifier of the set of a text's words and pairs of neighbouring words, learned by `fit` alone.

    Each word and each pair counts once, however often it occurs. Every word has a row of weights to itself; pairs are
    hashed, and those that meet in a bucket share its row. Its weights get no gradient: beside a network it would know
    the training texts by heart before the network has learned a thing. Padding changes nothing. All in float32.

    Args:
        vocabulary_size: number of ids, those of padding (0) and the unknown word (1) included.
        classes: number of classes; two share one column of weights, which speak for the second.
        buckets: rows for pairs, of 4 bytes a column.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: there are fewer than two classes, or no buckets.
    Source: Wang and Manning 2012, "Baselines and Bigrams: Simple, Good Sentiment and Topic Classification", section 2,
        there with a support vector machine in place of the logistic regression; hashing: Weinberger et al. 2009,
        arXiv:0902.2206, without signs; the hash function is own.
    """

    def __init__(self, vocabulary_size: int, classes: int, *, buckets: int = 2**18, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})
        if classes < 2 or buckets < 1:
            raise ValueError(
                f"{self.name!r} has classes={classes} and buckets={buckets}, expected at least 2 classes and 1 bucket: "
                "count the classes of the labels"
            )
        self.vocabulary_size = vocabulary_size
        self.classes = classes
        self.buckets = buckets

    @property
    def size(self) -> int:
        """Rows of weights: one a word, then the buckets."""
        return self.vocabulary_size + self.buckets

    def build(self, _: Any) -> None:
        """Makes the weights float32[size, 1 or classes] and biases, zero: without `fit`, nothing is known."""
        columns = 1 if self.classes == 2 else self.classes
        self.kernel = self.add_weight(shape=(self.size, columns), initializer="zeros", name="kernel")
        self.bias = self.add_weight(shape=(columns,), initializer="zeros", name="bias")

    def _rows(self, tokens: Any) -> tuple[Any, Any]:
        """The row of each word int64[batch, words] and each pair int64[batch, words - 1]; `size` for padding."""
        tokens = ops.cast(tokens, "int64")
        first, second = tokens[:, :-1], tokens[:, 1:]
        mixed = (first * _MULTIPLIERS[0] + second * _MULTIPLIERS[1]) % 2**32
        mixed = ops.bitwise_xor(mixed, mixed // 2**15) * _MULTIPLIERS[0] % 2**32
        pairs = self.vocabulary_size + mixed * self.buckets // 2**32
        whole = ops.logical_and(first != 0, second != 0)
        return ops.where(tokens != 0, tokens, self.size), ops.where(whole, pairs, self.size)

    def features(self, tokens: Any) -> Any:
        """The rows of a text's words and pairs, each once.

        Args:
            tokens: int32[batch, words], 0 is padding.

        Returns:
            int32[batch, 2 * words - 1], with `size` in the places that are left.
        """
        found = ops.sort(ops.cast(ops.concatenate(self._rows(tokens), axis=1), "int32"), axis=1)
        again = ops.pad(found[:, 1:] == found[:, :-1], [[0, 0], [1, 0]])
        return ops.where(again, self.size, found)

    def _weights_at(self, rows: Any) -> Any:
        """int[batch, n] -> float32[batch, n, columns], zero at `size`."""
        values = ops.take(self.kernel, ops.minimum(rows, self.size - 1), axis=0)
        return ops.where((rows < self.size)[..., None], values, 0.0)

    def _as_logits(self, values: Any) -> Any:
        """float32[..., columns] -> float32[..., classes]."""
        return ops.concatenate([-values / 2, values / 2], axis=-1) if self.classes == 2 else values

    def call(self, tokens: Any) -> Any:
        """Maps int32[batch, words] to the logits float32[batch, classes]."""
        return self._as_logits(ops.sum(self._weights_at(self.features(tokens)), axis=1) + self.bias)

    def by_word(self, tokens: Any) -> Any:
        """What the n-grams at each place of a text weigh, half of a pair with each of its words.

        Args:
            tokens: int32[batch, words].

        Returns:
            float32[batch, words, classes]. Of a text without repetition the sum is the logits without the bias.
        """
        words, pairs = (self._weights_at(rows) for rows in self._rows(tokens))
        halves = ops.pad(pairs / 2, [[0, 0], [0, 1], [0, 0]]) + ops.pad(pairs / 2, [[0, 0], [1, 0], [0, 0]])
        return self._as_logits(words + halves)

    def fit(self, batches: Iterable[tuple[Any, Any]], *, smoothing: float = 1.0, strength: float = 0.3) -> None:
        """Learns from labelled texts: logistic regression of each class against the rest on log-count ratios.

        With c[j, f] the number of texts of class j that hold feature f, p = smoothing + c[j] and q = smoothing + sum of
        the other classes' c, the ratio is r[f] = log((p / sum p) / (q / sum q)). A text's feature f has the value r[f]
        where it occurs, else 0, so that one which tells the classes apart is cheap to use and a chance one dear.

        Args:
            batches: tokens int32[batch, words] and labels int[batch] in 0 ... classes - 1; each class occurs.
            smoothing: added to each count; the more, the less rare n-grams say.
            strength: of the data against the L2 penalty (C of a support vector machine).

        Source: Wang and Manning 2012, section 2, equation 2 and section 2.3.
        """
        rows, labels = [], []
        for tokens, label in batches:
            found = ops.convert_to_numpy(self.features(tokens))
            rows += [row[row < self.size] for row in found]
            labels += np.asarray(label).tolist()
        ends = np.cumsum([0, *map(len, rows)])
        present = sparse.csr_array((np.ones(ends[-1]), np.concatenate(rows), ends), shape=(len(rows), self.size))
        if not self.built:
            self.build(None)
        columns = []
        for positive in [1] if self.classes == 2 else range(self.classes):
            of_class = np.asarray(labels) == positive
            p, q = (smoothing + present[part].sum(0) for part in (of_class, ~of_class))
            ratio = np.log((p / p.sum()) / (q / q.sum()))
            model = LogisticRegression(C=strength, tol=1e-3).fit(present @ sparse.diags_array(ratio), of_class)
            columns.append((model.coef_[0] * ratio, model.intercept_[0]))
        kernel, bias = zip(*columns, strict=True)
        self.kernel.assign(np.stack(kernel, 1))
        self.bias.assign(np.stack(bias))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("vocabulary_size", "classes", "buckets")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="kerasdl")
class Blend(keras.layers.Layer):
    """The logits of a network in training; in use their weighted mean with those of a classifier learned apart.

    Args:
        share: weight of the other classifier, 0 to 1.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: share is no share.
    Source: ensembles of models that learn apart: Mesnil et al. 2014, arXiv:1412.5335, section 2.3.
    """

    def __init__(self, share: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= share <= 1:
            raise ValueError(f"{self.name!r} has share={share}, expected 0 to 1: 0.5 weighs both alike")
        self.share = share

    def call(self, logits: Any, other: Any, training: bool | None = None) -> Any:
        """Maps twice float[batch, classes] to float[batch, classes]."""
        return logits if training else (1 - self.share) * logits + self.share * other

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "share": self.share}
