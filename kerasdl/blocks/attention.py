"""A sequence as one vector: pooling, attention pooling, and the attention of a decoder.

A mask, where one is given, is bool[batch, time], true at what counts. What does not count changes no result and
receives no gradient; where nothing counts, the result is zero.
"""

import typing
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kerasdl.blocks.symbolic import require_symbolic

PoolingKind = Literal["first", "last", "mean", "max"]
MultiplicativeKind = Literal["dot", "general"]
Shape = Sequence[int | None]


class _MaskedLayer(keras.layers.Layer):
    """A layer whose call takes a mask, without the warning with which Keras meets an argument of that name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, *_: Any) -> None:
        """None: the steps are gone."""


@keras.saving.register_keras_serializable(package="kerasdl")
class Pooling(_MaskedLayer):
    """First, last, mean or largest of the steps that count: a layer without weights, so that the result has a name.

    Args:
        kind: see `pooling`.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: the kind is unknown.
    Source: own.
    """

    def __init__(self, kind: PoolingKind, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kinds = typing.get_args(PoolingKind)
        if kind not in kinds:
            raise ValueError(f"unknown pooling {kind!r} in {self.name!r}, expected one of: {', '.join(kinds)}")
        self.kind = kind

    def call(self, x: Any, mask: Any = None) -> Any:
        """Maps float[batch, time, channels] and bool[batch, time] to float[batch, channels]."""
        if mask is None:
            mask = ops.ones_like(x[..., 0], "bool")
        if self.kind == "max":
            # Without `initial` Keras refuses an empty batch.
            largest = ops.max(ops.where(mask[..., None], x, -np.inf), axis=1, initial=-np.inf)
            return ops.where(ops.any(mask, axis=1, keepdims=True), largest, 0)
        if self.kind in ("first", "last"):
            backward = self.kind == "last"
            count = ops.cast(ops.flip(mask, 1) if backward else mask, "int32")
            count = ops.cumsum(count, 1)
            mask = ops.logical_and(mask, (ops.flip(count, 1) if backward else count) == 1)
        # In half precision the sum of a few hundred steps would lose its last ones.
        total = ops.sum(ops.cast(ops.where(mask[..., None], x, 0), "float32"), axis=1)
        count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
        return ops.cast(total / ops.maximum(count, 1), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "kind": self.kind}


def pooling(
    x: keras.KerasTensor,
    kind: PoolingKind,
    *,
    mask: keras.KerasTensor | None = None,
    bidirectional: bool = False,
    name: str,
) -> keras.KerasTensor:
    """One vector for a sequence: its first or last step, the mean of its steps, or the largest value of each channel.

    Args:
        x: float32[batch, time, channels].
        kind: "first", "last", "mean" or "max".
        mask: bool[batch, time], true at the steps that count; None: all do.
        bidirectional: the first half of the channels reads forward, the second backward; "last" then takes of each
            the step that it reads last: of the second half that is the first step in time.
        name: name of the layer; with "last" and two directions also prefix of `<name>_forward` and `<name>_backward`.

    Returns:
        float32[batch, channels]; zeros where no step counts.

    Raises:
        ValueError: x is not symbolic, the kind is unknown, or the last step is asked for of a `Bidirectional` layer
            without `bidirectional`.
    Source: Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", section
        2.1 (mean); Collobert et al. 2011, arXiv:1103.0398, section 3.2.2 (max); Schuster and Paliwal 1997,
        "Bidirectional Recurrent Neural Networks" (two directions).
    """
    require_symbolic(x, "pooling")
    if kind != "last" or not bidirectional:
        if kind == "last" and isinstance(x._keras_history.operation, keras.layers.Bidirectional):
            raise ValueError(
                f"pooling {name!r} would take the backward direction of {x._keras_history.operation.name!r} after one "
                "step; give bidirectional=True"
            )
        return Pooling(kind, name=name)(x, mask=mask)
    units = x.shape[-1] // 2
    forward = Pooling("last", name=f"{name}_forward")(x[..., :units], mask=mask)
    backward = Pooling("first", name=f"{name}_backward")(x[..., units:], mask=mask)
    return keras.layers.Concatenate(name=name)([forward, backward])


@keras.saving.register_keras_serializable(package="kerasdl")
class AttentionPooling(_MaskedLayer):
    """Mean of the steps, weighted by how much each resembles a trained vector.

    Args:
        units: size of the hidden representation that is compared.
        **kwargs: those of `keras.layers.Layer`.
    Source: Yang et al. 2016, "Hierarchical Attention Networks for Document Classification", section 2.2, equations 5
        to 7.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, x_shape: Shape) -> None:
        """Makes kernel float32[channels, units], bias float32[units] and context float32[units, 1]."""
        self.kernel = self.add_weight(shape=(x_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        self.context = self.add_weight(shape=(self.units, 1), name="context")

    def call(self, x: Any, mask: Any = None) -> tuple[Any, Any]:
        """Maps float[batch, time, channels], bool[batch, time] to float[batch, channels], float32[batch, time]."""
        hidden = ops.tanh(ops.matmul(x, self.kernel) + self.bias)
        return _attend(ops.matmul(hidden, self.context)[..., 0], x, mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "units": self.units}


def attention_pooling(
    x: keras.KerasTensor, *, units: int, mask: keras.KerasTensor | None = None, name: str
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """One vector for a sequence: the mean of its steps with trained weights, which show what mattered.

    Args:
        x: float32[batch, time, channels].
        units: size of the hidden representation by which steps are weighted.
        mask: bool[batch, time], true at the steps that count; None: all do.
        name: name of the layer.

    Returns:
        pooled float32[batch, channels], and the weights float32[batch, time], which sum to one; both zero where no
        step counts.

    Raises:
        ValueError: x is not symbolic.
    Source: Yang et al. 2016, "Hierarchical Attention Networks for Document Classification", section 2.2.
    """
    require_symbolic(x, "attention_pooling")
    return AttentionPooling(units, name=name)(x, mask=mask)


@keras.saving.register_keras_serializable(package="kerasdl")
class AdditiveAttention(_MaskedLayer):
    """Attention whose scores are v . tanh(W query + U key).

    U key is the larger part of the work, and the same at every step of a decoder, which computes it once:

        projected = attention.project(keys)
        for ...: context, weights = attention(query, keys, mask=mask, projected=projected)

    Args:
        units: size of the hidden layer.
        **kwargs: those of `keras.layers.Layer`.
    Source: Bahdanau et al. 2014, arXiv:1409.0473, section 3.1, equations 5 and 6, and appendix A.1.2.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, query_shape: Shape, keys_shape: Shape) -> None:
        """Makes query_kernel and keys_kernel, float32[q or k, units], and score_kernel float32[units, 1]."""
        self.query_kernel = self.add_weight(shape=(query_shape[-1], self.units), name="query_kernel")
        self.keys_kernel = self.add_weight(shape=(keys_shape[-1], self.units), name="keys_kernel")
        self.score_kernel = self.add_weight(shape=(self.units, 1), name="score_kernel")

    def project(self, keys: Any) -> Any:
        """The part of the scores that depends on the keys alone; for use inside another layer's `call`.

        Args:
            keys: float[batch, items, k].

        Returns:
            float[batch, items, units], for the argument `projected`.

        Raises:
            ValueError: the layer has no weights yet.
        """
        if not self.built:
            raise ValueError(
                f"{self.name!r} is to project keys before it has weights, expected a built layer: "
                "call its build(query_shape, keys_shape) in the build of the layer that owns it"
            )
        kernel = ops.cast(self.keys_kernel, self.compute_dtype)
        return ops.matmul(ops.cast(keys, self.compute_dtype), kernel)

    def call(self, query: Any, keys: Any, mask: Any = None, projected: Any = None) -> tuple[Any, Any]:
        """Looks for what fits the query.

        Args:
            query: float[batch, q], such as the previous state of the decoder.
            keys: float[batch, items, k].
            mask: bool[batch, items], true at the items that count; None: all do.
            projected: `project(keys)`, computed anew if None.

        Returns:
            context float[batch, k], the weighted mean of the keys, and the weights float32[batch, items].
        """
        if projected is None:
            projected = self.project(keys)
        hidden = ops.tanh(ops.matmul(query, self.query_kernel)[:, None] + projected)
        return _attend(ops.matmul(hidden, self.score_kernel)[..., 0], keys, mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="kerasdl")
class MultiplicativeAttention(_MaskedLayer):
    """Attention whose scores are query . key ("dot") or query . W key ("general").

    Args:
        kind: "dot" has no weights, and wants query and keys of one size.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: the kind is unknown; when built: the sizes differ under "dot".
    Source: Luong et al. 2015, arXiv:1508.04025, section 3.1, equation 8.
    """

    def __init__(self, kind: MultiplicativeKind = "general", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kinds = typing.get_args(MultiplicativeKind)
        if kind not in kinds:
            raise ValueError(f"unknown attention {kind!r} in {self.name!r}, expected one of: {', '.join(kinds)}")
        self.kind = kind

    def build(self, query_shape: Shape, keys_shape: Shape) -> None:
        """Makes kernel float32[q, k] under "general"."""
        sizes = query_shape[-1], keys_shape[-1]
        if self.kind == "general":
            self.kernel = self.add_weight(shape=sizes, name="kernel")
        elif sizes[0] != sizes[1]:
            raise ValueError(
                f"{self.name!r} multiplies a query of size {sizes[0]} with keys of size {sizes[1]}, expected the same "
                'size: project one of them, or take kind="general"'
            )

    def call(self, query: Any, keys: Any, mask: Any = None) -> tuple[Any, Any]:
        """Looks for what fits the query.

        Args:
            query: float[batch, q], such as the state of the decoder.
            keys: float[batch, items, k].
            mask: bool[batch, items], true at the items that count; None: all do.

        Returns:
            context float[batch, k], the weighted mean of the keys, and the weights float32[batch, items].
        """
        if self.kind == "general":
            query = ops.matmul(query, self.kernel)
        return _attend(ops.matmul(keys, query[..., None])[..., 0], keys, mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "kind": self.kind}


def _attend(scores: Any, values: Any, mask: Any) -> tuple[Any, Any]:
    """Scores float[batch, time], values float[batch, time, k] -> float[batch, k], weights float32[batch, time]."""
    scores = ops.cast(scores, "float32")
    if mask is None:
        weights = ops.softmax(scores)
    else:
        # Minus infinity in its place would make a row of nothing else NaN.
        weights = ops.softmax(ops.where(mask, scores, float(np.finfo(np.float32).min)))
        weights = ops.where(mask, weights, 0)
    return ops.matmul(ops.cast(weights, values.dtype)[:, None], values)[:, 0], weights
