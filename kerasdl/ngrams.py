"""The wide part of a text classifier: which words and pairs of neighbours a text holds, each with a weight a class."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

_MULTIPLIERS = 0x5851F42D, 0x4C957F2D  # odd, and below 2^31: their products with an id fit into int64


@keras.saving.register_keras_serializable(package="kerasdl")
class NgramLogits(keras.layers.Layer):
    """A linear classifier of the set of a text's words and pairs of neighbouring words.

    Each word and each pair counts once, however often it occurs. Every word has a row of weights to itself; pairs are
    hashed, and those that meet in a bucket share its row. `adapt` sets the weights to the log-count ratios of labelled
    texts, a naive Bayes classifier, from which training goes on. Padding changes nothing. All in float32.

    Args:
        vocabulary_size: number of ids, those of padding (0) and the unknown word (1) included.
        classes: number of classes; two share one column of weights, the ratio of the second to the first.
        buckets: rows for pairs, of 4 bytes a column.
        scale: factor of the sum of the weights. The ratios of a text's n-grams are far from independent, so that
            their plain sum is much too certain; and the smaller it is, the slower the logits follow the weights.
        dropout: share of a text's n-grams that are left out in training, the others weighing more.
        seed: of the dropout; taken from Keras' global seed if None.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: there are fewer than two classes, or no buckets.
    Source: features and ratios: Wang and Manning 2012, "Baselines and Bigrams: Simple, Good Sentiment and Topic
        Classification", section 2; trained beside a deep network: Cheng et al. 2016, arXiv:1606.07792; hashing:
        Weinberger et al. 2009, arXiv:0902.2206, without signs; the hash function is own.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        *,
        buckets: int = 2**18,
        scale: float = 0.05,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        if classes < 2 or buckets < 1:
            raise ValueError(
                f"{self.name!r} has classes={classes} and buckets={buckets}, expected at least 2 classes and 1 bucket: "
                "count the classes of the labels"
            )
        self.vocabulary_size = vocabulary_size
        self.classes = classes
        self.buckets = buckets
        self.scale = scale
        self.dropout = dropout
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def size(self) -> int:
        """Rows of weights: one a word, then the buckets."""
        return self.vocabulary_size + self.buckets

    def build(self, _: Any) -> None:
        """Makes the weights float32[size, 1 or classes], zero: without `adapt`, nothing is known."""
        columns = 1 if self.classes == 2 else self.classes
        self.ratios = self.add_weight(shape=(self.size, columns), initializer="zeros", name="ratios")

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
        values = ops.take(self.ratios, ops.minimum(rows, self.size - 1), axis=0)
        return ops.where((rows < self.size)[..., None], values, 0.0)

    def _as_logits(self, values: Any) -> Any:
        """float32[..., columns] -> float32[..., classes]."""
        values = values * self.scale
        return ops.concatenate([-values / 2, values / 2], axis=-1) if self.classes == 2 else values

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps int32[batch, words] to the logits float32[batch, classes]."""
        values = self._weights_at(self.features(tokens))
        if training and self.dropout:
            values = keras.random.dropout(values, self.dropout, (None, None, 1), seed=self.seed_generator)
        return self._as_logits(ops.sum(values, axis=1))

    def by_word(self, tokens: Any) -> Any:
        """What the n-grams at each place of a text weigh, half of a pair with each of its words.

        Args:
            tokens: int32[batch, words].

        Returns:
            float32[batch, words, classes]. A text without repetition has its logits as the sum.
        """
        words, pairs = (self._weights_at(rows) for rows in self._rows(tokens))
        halves = ops.pad(pairs / 2, [[0, 0], [0, 1], [0, 0]]) + ops.pad(pairs / 2, [[0, 0], [1, 0], [0, 0]])
        return self._as_logits(words + halves)

    def adapt(self, batches: Iterable[tuple[Any, Any]], smoothing: float = 1.0) -> None:
        """Sets the weights to the log-count ratios of labelled texts, each class against the rest.

        With c[j, f] the number of texts of class j that hold feature f, p = smoothing + c[j] and q = smoothing + sum of
        the other classes' c, the ratio is log((p / sum p) / (q / sum q)).

        Args:
            batches: tokens int32[batch, words] and labels int[batch] in 0 ... classes - 1.
            smoothing: added to each count; the more, the less rare n-grams say.

        Source: Wang and Manning 2012, section 2, equation 2.
        """
        counts = np.zeros([self.classes, self.size + 1])
        for tokens, labels in batches:
            found = ops.convert_to_numpy(self.features(tokens))
            np.add.at(counts, (np.asarray(labels)[:, None], found), 1)
        counts = counts[:, :-1]
        inside, outside = counts + smoothing, counts.sum(0) - counts + smoothing
        ratios = np.log(inside / inside.sum(1, keepdims=True)) - np.log(outside / outside.sum(1, keepdims=True))
        if not self.built:
            self.build(None)
        self.ratios.assign((ratios[1:] if self.classes == 2 else ratios).T)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("vocabulary_size", "classes", "buckets", "scale", "dropout", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
