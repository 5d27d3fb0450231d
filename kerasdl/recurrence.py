"""Recurrent layers: Keras' own with a quicker loop on a CPU, an LSTM with peepholes, deep stacks, a highway layer.

Weights, arguments and results of `QuickSimpleRNN`, `QuickLSTM` and `QuickGRU` are those of Keras' layers, but that all
gates share one mask of recurrent dropout. What makes their loop quick on a CPU:

- all steps of the input are projected in one product, and the gradients of both kernels, the bias and the input are one
  product each after the loop, as in cuDNN and oneDNN; the backward loop holds one product a step;
- the batch is cut in as many parts as there are cores, whose loops run side by side: the products of one step are too
  small to share between cores;
- in training the elementwise part of a step, forward and backward, is one kernel compiled by XLA.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import ops

from kerasdl.activation import compiles_on_cpu
from kerasdl.symbolic import require_symbolic

CellKind = Literal["rnn", "lstm", "gru", "peephole_lstm"]


@dataclass(frozen=True)
class _Cell:
    """The elementwise part of a step and its derivative; the matrix products are the loop's.

    Tensors are float32[batch, ...]. `projected` and `recurrent` are the gates' shares of the input and of the previous
    output h; `state` is what else is carried: (c,) of an LSTM, else ().

    Attributes:
        step: (projected, recurrent, h, state) -> (new h, new state, what `back` needs).
        back: (needs, h, state, new state, slope of new h, slopes of new state) -> (slope of projected, slope of
            recurrent, slope of h apart from that through recurrent or None, slopes of state).
    """

    step: Callable[..., tuple[Any, tuple[Any, ...], Any]]
    back: Callable[..., tuple[Any, Any, Any, tuple[Any, ...]]]


@functools.cache
def _cells() -> dict[str, _Cell]:
    import tensorflow as tf

    def rnn_step(projected: Any, recurrent: Any, h: Any, state: Any) -> Any:
        new = tf.tanh(projected + recurrent)
        return new, (), new

    def rnn_back(needs: Any, h: Any, state: Any, new_state: Any, slope: Any, state_slopes: Any) -> Any:
        gate = slope * (1 - needs * needs)
        return gate, gate, None, ()

    def lstm_step(projected: Any, recurrent: Any, h: Any, state: Any) -> Any:
        i, f, z, o = tf.split(projected + recurrent, 4, -1)
        i, f, z, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(z), tf.sigmoid(o)
        c = f * state[0] + i * z
        return o * tf.tanh(c), (c,), tf.concat([i, f, z, o], -1)

    def lstm_back(needs: Any, h: Any, state: Any, new_state: Any, slope: Any, state_slopes: Any) -> Any:
        i, f, z, o = tf.split(needs, 4, -1)
        squashed = tf.tanh(new_state[0])
        c_slope = state_slopes[0] + slope * o * (1 - squashed * squashed)
        gates = tf.concat(
            [
                c_slope * z * i * (1 - i),
                c_slope * state[0] * f * (1 - f),
                c_slope * i * (1 - z * z),
                slope * squashed * o * (1 - o),
            ],
            -1,
        )
        return gates, gates, None, (c_slope * f,)

    def gru_step(projected: Any, recurrent: Any, h: Any, state: Any) -> Any:
        (xu, xr, xz), (hu, hr, hz) = tf.split(projected, 3, -1), tf.split(recurrent, 3, -1)
        u, r = tf.sigmoid(xu + hu), tf.sigmoid(xr + hr)
        z = tf.tanh(xz + r * hz)
        return u * h + (1 - u) * z, (), tf.concat([u, r, z, hz], -1)

    def gru_back(needs: Any, h: Any, state: Any, new_state: Any, slope: Any, state_slopes: Any) -> Any:
        u, r, z, hz = tf.split(needs, 4, -1)
        z_gate = slope * (1 - u) * (1 - z * z)
        gates = [slope * (h - z) * u * (1 - u), z_gate * hz * r * (1 - r)]
        return tf.concat([*gates, z_gate], -1), tf.concat([*gates, z_gate * r], -1), slope * u, ()

    return {"rnn": _Cell(rnn_step, rnn_back), "lstm": _Cell(lstm_step, lstm_back), "gru": _Cell(gru_step, gru_back)}


@functools.cache
def _kernels(kind: str, compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A cell's `step` and `back` with biases and mask, between tensors of the compute dtype, inside in float32."""
    import tensorflow as tf

    cell = _cells()[kind]

    def step(projected: Any, recurrent: Any, biases: Any, h: Any, state: Any, valid: Any) -> Any:
        narrow = projected.dtype
        projected = tf.cast(projected, tf.float32) + biases[0]
        recurrent = tf.cast(recurrent, tf.float32) + (biases[1] if biases.shape[0] == 2 else 0.0)
        new_h, new_state, needs = cell.step(projected, recurrent, h, state)
        if valid is not None:
            new_h = tf.where(valid, new_h, h)
            new_state = tuple(tf.where(valid, new, old) for new, old in zip(new_state, state, strict=True))
        return new_h, new_state, tf.cast(new_h, narrow), tf.cast(needs, narrow)

    def back(needs: Any, h: Any, state: Any, new_state: Any, slopes: Any, state_slopes: Any, valid: Any) -> Any:
        narrow = needs.dtype
        slope = tf.add_n([tf.cast(part, tf.float32) for part in slopes])
        needs, h = tf.cast(needs, tf.float32), tf.cast(h, tf.float32)
        projected, recurrent, direct, new_slopes = cell.back(needs, h, state, new_state, slope, state_slopes)
        gates = [projected] if recurrent is projected else [projected, recurrent]
        if valid is not None:
            gates = [tf.where(valid, gate, 0.0) for gate in gates]
            direct = tf.where(valid, 0.0 if direct is None else direct, slope)
            new_slopes = tuple(tf.where(valid, new, old) for new, old in zip(new_slopes, state_slopes, strict=True))
        return [tf.cast(gate, narrow) for gate in gates], [] if direct is None else [direct], new_slopes

    if not compiled:
        return step, back
    options: dict[str, Any] = {"jit_compile": True, "autograph": False, "reduce_retracing": True}
    return tf.function(step, **options), tf.function(back, **options)


def _loop(
    step: Callable[..., Any],
    projected: Any,
    kernel: Any,
    biases: Any,
    h: Any,
    state: Any,
    valid: Any,
    keep: Any,
    *,
    trained: bool,
) -> Any:
    """All steps in order.

    Args:
        step: of `_kernels`.
        projected: float[time, batch, gates], the input times its kernel.
        kernel: float[units, gates], recurrent.
        biases: float32[1 or 2, gates].
        h: float32[batch, units].
        state: tuple of float32[batch, units].
        valid: bool[time, batch, 1] or None.
        keep: float[batch, units], the mask of recurrent dropout, or None.
        trained: whether a derivative will be asked for.

    Returns:
        outputs float[time, batch, units], last h, last state; and if trained, else (): what the derivative needs
        float[time, batch, ...], and the states float32[time + 1, batch, units], the first included.
    """
    import tensorflow as tf

    times, narrow = tf.shape(projected)[0], projected.dtype
    product = _product(kernel)

    def body(t: Any, h: Any, low: Any, state: Any, outputs: Any, needs: Any, states: Any) -> Any:
        recurrent = product(low if keep is None else low * keep)
        h, state, low, need = step(projected[t], recurrent, biases, h, state, None if valid is None else valid[t])
        needs = tuple(array.write(t, need) for array in needs)
        states = tuple(array.write(t + 1, value) for array, value in zip(states, state, strict=False))
        return t + 1, h, low, state, outputs.write(t, low), needs, states

    outputs = tf.TensorArray(narrow, times)
    needs = (tf.TensorArray(narrow, times),) * trained
    states = tuple(tf.TensorArray(tf.float32, times + 1).write(0, value) for value in state * trained)
    _, h, _, state, outputs, needs, states = tf.while_loop(
        lambda t, *_: t < times,
        body,
        (0, h, tf.cast(h, narrow), state, outputs, needs, states),
        parallel_iterations=1,
        maximum_iterations=times,
    )
    return outputs.stack(), h, state, [array.stack() for array in (*needs, *states)]


def _trained_loop(
    kind: CellKind, x: Any, kernel: Any, recurrent_kernel: Any, biases: Any, h: Any, state: Any, valid: Any, keep: Any
) -> Any:
    """As `_loop`, from the input x float[time, batch, features] on, with a derivative of its own.

    Returns:
        outputs, last h, *last state.
    """
    import tensorflow as tf

    step, back = _kernels(kind, compiles_on_cpu())

    @tf.custom_gradient
    def run(x: Any, kernel: Any, recurrent_kernel: Any, biases: Any, h: Any, *state: Any) -> Any:
        projected = _project(x, kernel)
        outputs, last, last_state, (needs, *states) = _loop(
            step, projected, recurrent_kernel, biases, h, state, valid, keep, trained=True
        )

        def gradient(output_slopes: Any, h_slope: Any, *state_slopes: Any) -> Any:
            times, narrow = tf.shape(x)[0], x.dtype
            before = tf.concat([tf.cast(h, narrow)[None], outputs[:-1]], 0)
            product = _product(tf.transpose(recurrent_kernel))

            def body(n: Any, through: Any, direct: Any, state_slopes: Any, arrays: Any) -> Any:
                t = times - 1 - n
                gates, direct, state_slopes = back(
                    needs[t],
                    before[t],
                    tuple(array[t] for array in states),
                    tuple(array[t + 1] for array in states),
                    [output_slopes[t], through, *direct],
                    state_slopes,
                    None if valid is None else valid[t],
                )
                through = product(gates[-1])
                through = through if keep is None else through * keep
                arrays = [array.write(t, gate) for array, gate in zip(arrays, gates, strict=True)]
                return n + 1, through, direct, state_slopes, arrays

            split, carries = kind == "gru", kind == "gru" or valid is not None
            arrays = [tf.TensorArray(narrow, times) for _ in range(1 + split)]
            begin = (0, tf.cast(h_slope, narrow), [tf.zeros_like(h)] * carries, tuple(state_slopes), arrays)
            _, through, direct, state_slopes, arrays = tf.while_loop(
                lambda n, *_: n < times, body, begin, parallel_iterations=1, maximum_iterations=times
            )
            gates = [tf.reshape(array.stack(), [-1, kernel.shape[1]]) for array in arrays]
            before = before if keep is None else before * keep
            ones = tf.ones([1, times * tf.shape(h)[0]], narrow)
            return (
                tf.reshape(tf.matmul(gates[0], kernel, transpose_b=True), tf.shape(x)),
                tf.matmul(tf.reshape(x, [-1, x.shape[2]]), gates[0], transpose_a=True),
                tf.matmul(tf.reshape(before, [-1, h.shape[1]]), gates[-1], transpose_a=True),
                # A product with ones: TensorFlow's sum over so many rows would first widen them all.
                tf.stack([tf.cast(tf.matmul(ones, gate)[0], tf.float32) for gate in gates[: biases.shape[0]]]),
                tf.add_n([tf.cast(through, tf.float32), *direct]),
                *state_slopes,
            )

        return (outputs, last, *last_state), gradient

    return run(x, kernel, recurrent_kernel, biases, h, *state)


def _product(kernel: Any) -> Callable[[Any], Any]:
    """Of a few rows with the same kernel again and again: in half precision a fifth quicker with its transpose."""
    import tensorflow as tf

    if kernel.dtype == tf.float32:
        return lambda x: tf.matmul(x, kernel)
    transposed = tf.transpose(kernel)
    return lambda x: tf.matmul(x, transposed, transpose_b=True)


def _project(x: Any, kernel: Any) -> Any:
    import tensorflow as tf

    flat = tf.matmul(tf.reshape(x, [-1, x.shape[2]]), kernel)
    return tf.reshape(flat, [tf.shape(x)[0], tf.shape(x)[1], kernel.shape[1]])


def _run(
    kind: CellKind,
    x: Any,
    kernel: Any,
    recurrent_kernel: Any,
    biases: Any,
    states: tuple[Any, ...],
    valid: Any,
    keep: Any,
    training: bool,
) -> Any:
    """One shard of the batch: x float[time, batch, features] -> outputs float[time, batch, units], *states."""
    import tensorflow as tf

    h, *state = (tf.cast(value, tf.float32) for value in states)
    if training:
        return _trained_loop(kind, x, kernel, recurrent_kernel, biases, h, tuple(state), valid, keep)
    outputs, h, last, _ = _loop(
        _kernels(kind, False)[0],
        _project(x, kernel),
        recurrent_kernel,
        biases,
        h,
        tuple(state),
        valid,
        keep,
        trained=False,
    )
    return outputs, h, *last


class _QuickLoop(keras.layers.RNN):
    """`inner_loop` for a Keras layer of the cell `kind`, where the layer is of the common sort."""

    kind: CellKind

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: Any = False) -> Any:
        """As that of `keras.layers.RNN`: (last output, outputs, states)."""
        if not self._is_common():
            return super().inner_loop(sequences, initial_state, mask, training=training)
        import tensorflow as tf

        cell = self.cell
        narrow = self.compute_dtype
        kernel, recurrent_kernel = ops.cast(cell.kernel, narrow), ops.cast(cell.recurrent_kernel, narrow)
        biases = ops.zeros((1, kernel.shape[1])) if cell.bias is None else ops.cast(cell.bias, "float32")
        biases = tf.reshape(biases, [-1, kernel.shape[1]])
        x = ops.cast(sequences, narrow)
        states = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        keep = None
        if training and cell.dropout:
            x *= _one(cell.get_dropout_mask(x[:, 0]))[:, None]
        if training and cell.recurrent_dropout:
            keep = _one(cell.get_recurrent_dropout_mask(ops.cast(states[0], narrow)))
        x = tf.transpose(x, [1, 0, 2])
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        valid = None if mask is None else tf.transpose(tf.cast(mask, tf.bool))[:, :, None]
        if self.go_backwards:
            x = tf.reverse(x, [0])
            valid = None if valid is None else tf.reverse(valid, [0])
        parts = min(_num_cores(), sequences.shape[0] or _num_cores())
        batch = tf.shape(x)[1]
        sizes = [batch * (i + 1) // parts - batch * i // parts for i in range(parts)]

        def cut(tensor: Any, axis: int) -> list[Any]:
            return [None] * parts if tensor is None else tf.split(tensor, sizes, axis, num=parts)

        carried = zip(*(cut(state, 0) for state in states), strict=True)
        results = [
            _run(self.kind, *shard[:1], kernel, recurrent_kernel, biases, *shard[1:], bool(training))
            for shard in zip(cut(x, 1), carried, cut(valid, 1), cut(keep, 0), strict=True)
        ]
        outputs, *states = (tf.concat(part, i == 0) for i, part in enumerate(zip(*results, strict=True)))
        if valid is not None:
            shown = valid if self.zero_output_for_mask else tf.cumsum(tf.cast(valid, tf.int32), 0) > 0
            outputs = tf.where(shown, outputs, tf.zeros([], outputs.dtype))
        return outputs[-1], tf.transpose(outputs, [1, 0, 2]), states

    def _is_common(self) -> bool:
        cell = self.cell
        functions = [getattr(cell, name, None) for name in ("activation", "recurrent_activation")]
        return (
            compiles_on_cpu()
            and not self.unroll
            and functions[0] is keras.activations.tanh
            and functions[1] in (None, keras.activations.sigmoid)
            and getattr(cell, "reset_after", True)
        )


def _one(mask: Any) -> Any:
    """Keras draws a mask for every gate as soon as there is recurrent dropout, which takes a product for every gate."""
    return mask[0] if isinstance(mask, list) else mask


@keras.saving.register_keras_serializable(package="kerasdl")
class QuickSimpleRNN(_QuickLoop, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with the quick loop of this module on a CPU; elsewhere Keras' own.

    Source: Elman 1990, "Finding Structure in Time"; the loop is own.
    """

    kind = "rnn"


@keras.saving.register_keras_serializable(package="kerasdl")
class QuickLSTM(_QuickLoop, keras.layers.LSTM):
    """`keras.layers.LSTM` with the quick loop of this module on a CPU; elsewhere Keras' own.

    In half precision the memory and the gates are computed in float32, the products in half precision; Keras computes
    all of it in half precision.

    Source: Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000; the loop is own.
    """

    kind = "lstm"


@keras.saving.register_keras_serializable(package="kerasdl")
class QuickGRU(_QuickLoop, keras.layers.GRU):
    """`keras.layers.GRU` with the quick loop of this module on a CPU; elsewhere Keras' own.

    Source: Cho et al. 2014, arXiv:1406.1078; reset after the product: Keras' (and cuDNN's) default; the loop is own.
    """

    kind = "gru"


@keras.saving.register_keras_serializable(package="kerasdl")
class PeepholeLSTMCell(keras.layers.LSTMCell):
    """An LSTM's step whose gates also see its memory; for `keras.layers.RNN`.

    Input and forget gate see the memory before the step, the output gate the memory after it.

    Args:
        units: size of memory and output.
        **kwargs: those of `keras.layers.LSTMCell`.
    Source: Gers and Schmidhuber 2000, "Recurrent nets that time and count", section 2.
    """

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the weights of an LSTM, and peephole float32[3, units] for input, forget and output gate."""
        super().build(input_shape)
        self.peephole = self.add_weight(shape=(3, self.units), initializer="glorot_uniform", name="peephole")

    def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
        """Maps float[batch, features] and (h, c) to the new h and [new h, new c]."""
        h, c = states
        if training and self.dropout:
            inputs *= self.get_dropout_mask(inputs)
        kept = h * self.get_recurrent_dropout_mask(h) if training and self.recurrent_dropout else h
        gates = ops.matmul(inputs, self.kernel) + ops.matmul(kept, self.recurrent_kernel)
        i, f, z, o = ops.split(gates if self.bias is None else gates + self.bias, 4, axis=-1)
        c = ops.sigmoid(f + self.peephole[1] * c) * c + ops.sigmoid(i + self.peephole[0] * c) * ops.tanh(z)
        h = ops.sigmoid(o + self.peephole[2] * c) * ops.tanh(c)
        return h, [h, c]


def recurrent_layer(kind: CellKind, units: int, **options: Any) -> keras.layers.RNN:
    """The layer of a cell that a configuration can name.

    Args:
        kind: of the cell.
        units: size of the output.
        **options: those of `keras.layers.LSTM`.

    Returns:
        A layer of float32[batch, time, channels].

    Raises:
        ValueError: the kind is unknown.
    Source: see the layers.
    """
    layers = {"rnn": QuickSimpleRNN, "lstm": QuickLSTM, "gru": QuickGRU}
    if kind in layers:
        return layers[kind](units, **options)
    if kind != "peephole_lstm":
        raise ValueError(f"unknown cell {kind!r}, expected one of: {', '.join([*layers, 'peephole_lstm'])}")
    inner = {name: options.pop(name) for name in ("dropout", "recurrent_dropout", "seed") if name in options}
    return keras.layers.RNN(PeepholeLSTMCell(units, **inner), **options)


def recurrent_stack(
    x: keras.KerasTensor,
    cell: CellKind,
    units: int,
    depth: int,
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    residual: bool = False,
    mask: keras.KerasTensor | None = None,
    name: str,
) -> keras.KerasTensor:
    """Recurrent layers one upon another.

    Args:
        x: float32[batch, time, channels].
        cell: "rnn", "lstm", "gru" or "peephole_lstm".
        units: output size of each layer and direction.
        depth: number of layers.
        bidirectional: two layers each, one reading from the end, their outputs side by side.
        dropout: share of features dropped between layers, anew at each step.
        recurrent_dropout: share of recurrent features dropped, the same at each step of a sequence.
        residual: adds a layer's input to its output, where their sizes agree.
        mask: bool[batch, time], False where a step is padding: there the state is carried unchanged.
        name: prefix of `<name>_layer0` and so on.

    Returns:
        float32[batch, time, units], or 2 * units channels when bidirectional.

    Raises:
        ValueError: x is not symbolic, the cell is unknown, or depth is below 1.
    Source: Graves et al. 2013, arXiv:1303.5778, section 2 (deep and bidirectional); Zaremba et al. 2014,
        arXiv:1409.2329, section 3.1 (dropout between layers); Gal and Ghahramani 2015, arXiv:1512.05287, section 4
        (recurrent dropout); Wu et al. 2016, arXiv:1609.08144, section 3.1 (residual).
    """
    require_symbolic(x, "recurrent_stack")
    if depth < 1:
        raise ValueError(f"recurrent_stack {name!r} has depth={depth}, expected 1 or more")
    for index in range(depth):
        prefix = f"{name}_layer{index}"
        if index and dropout:
            x = keras.layers.Dropout(dropout, name=f"{prefix}_dropout")(x)
        options = {"return_sequences": True, "recurrent_dropout": recurrent_dropout}
        if bidirectional:
            halves = [
                recurrent_layer(cell, units, go_backwards=backwards, name=f"{prefix}_{direction}", **options)
                for direction, backwards in (("forward", False), ("backward", True))
            ]
            y = keras.layers.Bidirectional(halves[0], backward_layer=halves[1], name=prefix)(x, mask=mask)
        else:
            y = recurrent_layer(cell, units, name=prefix, **options)(x, mask=mask)
        x = keras.layers.Add(name=f"{prefix}_add")([x, y]) if residual and x.shape[-1] == y.shape[-1] else y
    return x


def highway(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """A layer whose gate decides, feature by feature, between a nonlinear map of x and x itself.

    Args:
        x: float32[..., channels].
        name: prefix of the layer names.

    Returns:
        float32[..., channels].

    Raises:
        ValueError: x is not symbolic.
    Source: Srivastava et al. 2015, arXiv:1505.00387, section 2; the gate's bias begins at -2, section 2.2.
    """
    require_symbolic(x, "highway")
    channels = x.shape[-1]
    changed = keras.layers.Dense(channels, "relu", kernel_initializer="he_normal", name=f"{name}_change")(x)
    gate = keras.layers.Dense(
        channels, "sigmoid", bias_initializer=keras.initializers.Constant(-2.0), name=f"{name}_gate"
    )(x)
    step = keras.layers.Multiply(name=f"{name}_step")([gate, keras.layers.Subtract(name=f"{name}_new")([changed, x])])
    return keras.layers.Add(name=f"{name}_sum")([x, step])


@functools.cache
def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
