"""An LSTM that looks at a picture, or at any other set of items, before each of its steps.

Its loop is quick on a CPU for the reasons that `kerasdl.blocks.recurrence` gives, and is equal to the plain one in
values and gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kerasdl import processor
from kerasdl.fast import recurrent_loop

Shape = Sequence[int | None]


@keras.saving.register_keras_serializable(package="kerasdl")
class AttentiveLSTM(keras.layers.Layer):
    """LSTM whose step takes, beside its input, the mean of items weighted by additive attention.

    With the previous output h, the items a_i and the input x of a step:

        weights = softmax_i(v . tanh(W h + U a_i + b))
        context = sigmoid(w . h + b') sum_i weights_i a_i
        h, c = LSTM([x, context], h, c)

    Args:
        units: size of the state.
        attention_units: size of the hidden layer that compares state and items.
        **kwargs: those of `keras.layers.Layer`.
    Source: Xu et al. 2015, arXiv:1502.03044, section 3.1.2, equations 1 to 6, and section 4.2.1 (gating scalar).
    """

    def __init__(self, units: int, attention_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.attention_units = attention_units

    def build(self, x_shape: Shape, items_shape: Shape, h_shape: Shape, c_shape: Shape) -> None:
        """Makes the kernels of input, state and context float32[., 4 units], and those of the attention."""
        units, hidden = self.units, self.attention_units

        def weight(name: str, *shape: int | None, initializer: str = "glorot_uniform") -> Any:
            return self.add_weight(shape=shape, initializer=initializer, name=name)

        self.kernel = weight("kernel", x_shape[-1], 4 * units)
        self.recurrent_kernel = weight("recurrent_kernel", units, 4 * units, initializer="orthogonal")
        self.context_kernel = weight("context_kernel", items_shape[-1], 4 * units)
        # A forget gate that begins open: Jozefowicz et al. 2015, section 2.2; Keras' LSTM does so, too.
        self.bias = weight("bias", 4 * units, initializer="zeros")
        self.bias.assign(ops.concatenate([ops.zeros(units), ops.ones(units), ops.zeros(2 * units)]))
        self.query_kernel = weight("query_kernel", units, hidden)
        self.keys_kernel = weight("keys_kernel", items_shape[-1], hidden)
        self.keys_bias = weight("keys_bias", hidden, initializer="zeros")
        self.score_kernel = weight("score_kernel", hidden, 1)
        self.gate_kernel = weight("gate_kernel", units, 1)
        self.gate_bias = weight("gate_bias", 1, initializer="zeros")

    def call(self, x: Any, items: Any, h: Any, c: Any, training: bool = False) -> tuple[Any, Any, Any]:
        """Runs all steps.

        Args:
            x: float[batch, time, features].
            items: float[batch, items, channels].
            h: float[batch, units], the state before the first step.
            c: float[batch, units], its memory.
            training: whether a derivative will be asked for.

        Returns:
            outputs float[batch, time, units], contexts float[batch, time, channels] and weights float32[batch, time,
            items], which sum to one.
        """
        h, c = ops.cast(h, "float32"), ops.cast(c, "float32")
        steps = ops.swapaxes(x, 0, 1)
        if training and processor.compiles_on_cpu():
            return self._quick(steps, items, h, c)
        projected = self.project(items)
        ends = [self.units, 2 * self.units, 2 * self.units + items.shape[-1]]

        def step(carried: Any, x: Any) -> Any:
            h, c = ops.split(carried, ends, axis=-1)[:2]
            h, c, context, weights = self.step(x, h, c, items, projected)
            # Keras' scan on TensorFlow wants results of the shape of what is carried.
            carried = ops.concatenate([h, c, ops.cast(context, "float32"), weights], -1)
            return carried, carried

        blank = ops.concatenate(
            [h, c, ops.zeros_like(items[:, 0], "float32"), ops.zeros_like(items[..., 0], "float32")], -1
        )
        _, found = ops.scan(step, blank, steps)
        outputs, _, contexts, weights = ops.split(ops.swapaxes(found, 0, 1), ends, axis=-1)
        return ops.cast(outputs, self.compute_dtype), ops.cast(contexts, self.compute_dtype), weights

    def project(self, items: Any) -> Any:
        """The part of the scores that depends on the items alone, float[batch, items, attention_units]."""
        kernel = ops.cast(self.keys_kernel, self.compute_dtype)
        return ops.matmul(ops.cast(items, self.compute_dtype), kernel) + ops.cast(self.keys_bias, self.compute_dtype)

    def step(self, x: Any, h: Any, c: Any, items: Any, projected: Any) -> tuple[Any, Any, Any, Any]:
        """One step, for a decoder that writes word by word.

        Args:
            x: float[batch, features].
            h: float32[batch, units].
            c: float32[batch, units].
            items: float[batch, items, channels].
            projected: `project(items)`.

        Returns:
            the next h and c, context float[batch, channels] and weights float32[batch, items].
        """
        narrow = self.compute_dtype

        def product(value: Any, kernel: Any) -> Any:
            return ops.cast(ops.matmul(ops.cast(value, narrow), ops.cast(kernel, narrow)), "float32")

        hidden = ops.tanh(product(h, self.query_kernel)[:, None] + ops.cast(projected, "float32"))
        weights = ops.softmax(product(hidden, self.score_kernel)[..., 0])
        gate = ops.sigmoid(product(h, self.gate_kernel) + self.gate_bias)
        context = gate * ops.sum(weights[..., None] * ops.cast(items, "float32"), axis=1)
        gates = product(x, self.kernel) + product(h, self.recurrent_kernel) + product(context, self.context_kernel)
        i, f, z, o = ops.split(gates + ops.cast(self.bias, "float32"), 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(z)
        return ops.sigmoid(o) * ops.tanh(c), c, ops.cast(context, narrow), weights

    def _quick(self, steps: Any, items: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        narrow = self.compute_dtype
        kernels = [
            ops.cast(kernel, narrow)
            for kernel in (self.kernel, self.recurrent_kernel, self.context_kernel, self.query_kernel)
        ]
        others = [ops.cast(value, "float32") for value in (self.bias, self.gate_bias)]
        others += [ops.cast(value, "float32")[:, 0] for value in (self.score_kernel, self.gate_kernel)]
        steps, items = ops.cast(steps, narrow), ops.cast(items, narrow)
        projected = self.project(items)
        parts, batch = processor.num_cores(), tf.shape(h)[0]
        sizes = [batch * (i + 1) // parts - batch * i // parts for i in range(parts)]
        shards = [
            tf.split(tensor, sizes, axis, num=parts)
            for tensor, axis in ((steps, 1), (items, 0), (projected, 0), (h, 0), (c, 0))
        ]
        found = [_trained_loop(*shard, *kernels, *others) for shard in zip(*shards, strict=True)]
        outputs, contexts, weights = (tf.transpose(tf.concat(part, 1), [1, 0, 2]) for part in zip(*found, strict=True))
        return outputs, contexts, weights

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "units": self.units, "attention_units": self.attention_units}


@functools.cache
def _kernels() -> tuple[Callable[..., Any], ...]:
    """The elementwise parts of a step and of its derivative, each compiled; inside in float32."""
    import tensorflow as tf

    cell = recurrent_loop.cells()["lstm"]

    def wide(tensor: Any) -> Any:
        return tf.cast(tensor, tf.float32)

    def look(query: Any, h: Any, items: Any, projected: Any, score: Any, gate_kernel: Any, gate_bias: Any) -> Any:
        """Weights float32[batch, items], gate float32[batch, 1], context float[batch, channels], and tanh's values."""
        hidden = tf.tanh(wide(query)[:, None] + wide(projected))
        weights = tf.nn.softmax(tf.reduce_sum(hidden * score, -1))
        gate = tf.sigmoid(tf.reduce_sum(h * gate_kernel, -1, keepdims=True) + gate_bias)
        context = gate * tf.reduce_sum(weights[..., None] * wide(items), 1)
        return weights, gate, tf.cast(context, query.dtype), tf.cast(hidden, query.dtype)

    def step(x: Any, recurrent: Any, contextual: Any, bias: Any, h: Any, c: Any) -> Any:
        h, (c,), needs = cell.step(wide(x) + bias, wide(recurrent) + wide(contextual), h, (c,))
        return h, c, tf.cast(h, x.dtype), tf.cast(needs, x.dtype)

    def step_back(needs: Any, c: Any, new_c: Any, gradients: Any, gate: Any, gate_kernel: Any, c_gradient: Any) -> Any:
        """Gradients of the LSTM's gates and of the memory; `gate` is that of the attention's gate in the next step."""
        gradient = tf.add_n([wide(part) for part in gradients]) + gate * gate_kernel
        gates, _, _, (c_gradient,) = cell.back(wide(needs), None, (c,), (new_c,), gradient, (c_gradient,))
        return tf.cast(gates, needs.dtype), c_gradient

    def look_back(
        gradients: Any, weight_gradient: Any, weights: Any, gate: Any, context: Any, hidden: Any, items: Any, score: Any
    ) -> Any:
        """Gradients of the query, of the gate before its sigmoid, of the items' mean, and of the scores."""
        gradient = tf.add_n([wide(part) for part in gradients])
        gate_gradient = tf.reduce_sum(gradient * wide(context), -1, keepdims=True) * (1 - gate)
        mean_gradient = gate * gradient
        weight_gradient += tf.reduce_sum(wide(items) * mean_gradient[:, None], -1)
        scores = weights * (weight_gradient - tf.reduce_sum(weights * weight_gradient, -1, keepdims=True))
        squared = tf.square(wide(hidden))
        query_gradient = score * tf.reduce_sum(scores[..., None] * (1 - squared), 1)
        return tf.cast(query_gradient, hidden.dtype), gate_gradient, tf.cast(mean_gradient, hidden.dtype), scores

    def items_back(scores: Any, hidden: Any, score: Any) -> Any:
        """Gradient of the projected items, of all steps at once."""
        return score * tf.reduce_sum(scores[..., None] * (1 - tf.square(wide(hidden))), 0)

    options: dict[str, Any] = {"jit_compile": True, "autograph": False, "reduce_retracing": True}
    return tuple(tf.function(function, **options) for function in (look, step, step_back, look_back, items_back))


def _trained_loop(*arguments: Any) -> tuple[Any, Any, Any]:
    """All steps of one shard of the batch, with their derivative.

    Args:
        *arguments: x float[time, batch, features], items float[batch, items, channels], projected float[batch, items,
            attention units], h and c float32[batch, units]; the kernels of input, state, context and query; bias and
            gate bias, score and gate kernel, float32.

    Returns:
        outputs float[time, batch, units], contexts float[time, batch, channels], weights float32[time, batch, items].
    """
    import tensorflow as tf

    look, step, step_back, look_back, items_back = _kernels()
    product_with = recurrent_loop.product_with

    @tf.custom_gradient
    def run(
        x: Any, items: Any, projected: Any, h: Any, c: Any, kernel: Any, recurrent_kernel: Any, context_kernel: Any,
        query_kernel: Any, bias: Any, gate_bias: Any, score: Any, gate_kernel: Any,
    ) -> Any:  # fmt: skip
        times, narrow = tf.shape(x)[0], x.dtype
        width = kernel.shape[1]
        inputs = recurrent_loop.project(x, kernel)
        joined = tf.concat([recurrent_kernel, query_kernel], 1)  # both multiply h
        of_state, of_context = product_with(joined), product_with(context_kernel)

        def body(t: Any, new_h: Any, new_c: Any, low: Any, arrays: Any) -> Any:
            recurrent, query = tf.split(of_state(low), [width, -1], -1)
            weights, gate, context, hidden = look(query, new_h, items, projected, score, gate_kernel, gate_bias)
            new_h, new_c, low, needs = step(inputs[t], recurrent, of_context(context), bias, new_h, new_c)
            values = (low, context, weights, gate, hidden, needs, new_c)
            return (
                t + 1,
                new_h,
                new_c,
                low,
                [array.write(t, value) for array, value in zip(arrays, values, strict=True)],
            )

        dtypes = (narrow, narrow, tf.float32, tf.float32, narrow, narrow, tf.float32)
        begin = (0, h, c, tf.cast(h, narrow), [tf.TensorArray(dtype, times) for dtype in dtypes])
        *_, arrays = tf.while_loop(
            lambda t, *_: t < times, body, begin, parallel_iterations=1, maximum_iterations=times
        )
        outputs, contexts, weights, gates, hiddens, needs, memories = (array.stack() for array in arrays)

        def gradient(output_gradients: Any, context_gradients: Any, weight_gradients: Any) -> Any:
            before = tf.concat([tf.cast(h, narrow)[None], outputs[:-1]], 0)
            memory_before = tf.concat([c[None], memories[:-1]], 0)
            to_state, to_context = product_with(tf.transpose(joined)), product_with(tf.transpose(context_kernel))

            def body(n: Any, through: Any, gate: Any, c_gradient: Any, arrays: Any) -> Any:
                t = times - 1 - n
                gradient, c_gradient = step_back(
                    needs[t],
                    memory_before[t],
                    memories[t],
                    [output_gradients[t], through],
                    gate,
                    gate_kernel,
                    c_gradient,
                )
                query, gate, mean, scores = look_back(
                    [context_gradients[t], to_context(gradient)], weight_gradients[t], weights[t], gates[t],
                    contexts[t], hiddens[t], items, score,
                )  # fmt: skip
                gradients = tf.concat([gradient, query], -1)
                values = (gradients, gate, mean, scores)
                arrays = [array.write(t, value) for array, value in zip(arrays, values, strict=True)]
                return n + 1, to_state(gradients), gate, c_gradient, arrays

            begin = (
                0,
                tf.zeros(tf.shape(h), narrow),
                tf.zeros([tf.shape(h)[0], 1]),
                tf.zeros_like(c),
                [tf.TensorArray(dtype, times) for dtype in (narrow, tf.float32, narrow, tf.float32)],
            )
            _, through, gate, c_gradient, arrays = tf.while_loop(
                lambda n, *_: n < times, body, begin, parallel_iterations=1, maximum_iterations=times
            )
            gradients, gate_gradients, mean_gradients, scores = (array.stack() for array in arrays)
            gradients = tf.reshape(gradients, [-1, joined.shape[1]])
            lstm_gradients = gradients[:, :width]

            def against(values: Any, gradients: Any) -> Any:
                return tf.matmul(tf.reshape(values, [-1, values.shape[-1]]), gradients, transpose_a=True)

            of_joined = against(before, gradients)
            of_items = tf.einsum("tbi,tbc->bic", tf.cast(weights, narrow), mean_gradients)
            ones = tf.ones([1, tf.shape(gradients)[0]], narrow)
            return (
                tf.reshape(tf.matmul(lstm_gradients, kernel, transpose_b=True), tf.shape(x)),
                of_items,
                tf.cast(items_back(scores, hiddens, score), narrow),
                tf.cast(through, tf.float32) + gate * gate_kernel,
                c_gradient,
                against(x, lstm_gradients),
                of_joined[:, :width],
                against(contexts, lstm_gradients),
                of_joined[:, width:],
                tf.cast(tf.matmul(ones, lstm_gradients)[0], tf.float32),
                tf.reduce_sum(gate_gradients)[None],
                tf.cast(against(hiddens, tf.reshape(tf.cast(scores, narrow), [-1, 1]))[:, 0], tf.float32),
                tf.reduce_sum(gate_gradients * tf.cast(before, tf.float32), [0, 1]),
            )

        return (outputs, contexts, weights), gradient

    return run(*arguments)
