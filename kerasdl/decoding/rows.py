"""A function of many rows, a block of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

FILES = tf.TensorSpec([None], tf.string)


def by_blocks(
    function: Callable[..., tf.Tensor], *rows: tf.Tensor, spec: tf.TensorSpec = FILES, block: int = 250
) -> tf.Tensor:
    """A function of rows in the graph, so that the memory does not grow with all that lies between.

    Args:
        function: takes rows of each tensor, gives as many.
        *rows: of as many rows each.
        spec: of the result.
        block: rows at a time.
    """
    blocks = tf.maximum(1, (tf.shape(rows[0])[0] + block - 1) // block)

    def body(i: Any, made: Any) -> Any:
        return i + 1, made.write(i, function(*(tensor[i * block : (i + 1) * block] for tensor in rows)))

    made = tf.TensorArray(spec.dtype, blocks, infer_shape=False, element_shape=spec.shape)
    _, made = tf.while_loop(lambda i, _: i < blocks, body, (0, made), parallel_iterations=1)
    return tf.ensure_shape(made.concat(), spec.shape)
