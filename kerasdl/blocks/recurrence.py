"""Recurrent layers: Keras' own with a quicker loop on a CPU, an LSTM with peepholes, deep stacks, a highway layer.

Weights, arguments and results of `QuickSimpleRNN`, `QuickLSTM` and `QuickGRU` are those of Keras' layers, but that all
gates share one mask of recurrent dropout. What makes their loop quick on a CPU:

- all steps of the input are projected in one product, and the gradients of both kernels, the bias and the input are one
  product each after the loop, as in cuDNN and oneDNN; the backward loop holds one product a step;
- the batch is cut in as many parts as there are cores, whose loops run side by side: the products of one step are too
  small to share between cores; of a layer in both directions each direction has half of the cores, and half as many,
  larger parts (a fifth more words a second of the text classifier on two cores);
- in training the elementwise part of a step, forward and backward, is one kernel compiled by XLA; in float32, and for
  sequences of one known length, XLA compiles the whole loop instead (`recurrent_loop.compiles_whole`).
"""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

from kerasdl import processor
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast import recurrent_loop

CellKind = Literal["rnn", "lstm", "gru", "peephole_lstm"]


class _QuickLoop(keras.layers.RNN):
    """`inner_loop` for a Keras layer of the cell `kind`, where the layer is of the common sort."""

    kind: CellKind
    beside = 1
    """Layers, this one included, that run at the same time and share the cores out, as both directions do."""

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
        cores = max(1, processor.num_cores() // self.beside)
        parts = min(cores, sequences.shape[0] or cores)
        if training and recurrent_loop.compiles_whole(narrow, x.shape[0]):
            parts = 1  # XLA shares a step's product between cores
        batch = tf.shape(x)[1]
        sizes = [batch * (i + 1) // parts - batch * i // parts for i in range(parts)]

        def cut(tensor: Any, axis: int) -> list[Any]:
            return [None] * parts if tensor is None else tf.split(tensor, sizes, axis, num=parts)

        carried = zip(*(cut(state, 0) for state in states), strict=True)
        results = [
            recurrent_loop.run_shard(
                self.kind, *shard[:1], kernel, recurrent_kernel, biases, *shard[1:], bool(training)
            )
            for shard in zip(cut(x, 1), carried, cut(valid, 1), cut(keep, 0), strict=True)
        ]
        outputs, *states = (tf.concat(part, i == 0) for i, part in enumerate(zip(*results, strict=True)))
        outputs = tf.ensure_shape(outputs, [x.shape[0], *outputs.shape[1:]])  # the next layer asks for it
        if valid is not None:
            shown = valid if self.zero_output_for_mask else tf.cumsum(tf.cast(valid, tf.int32), 0) > 0
            outputs = tf.where(shown, outputs, tf.zeros([], outputs.dtype))
        return outputs[-1], tf.transpose(outputs, [1, 0, 2]), states

    def _is_common(self) -> bool:
        cell = self.cell
        functions = [getattr(cell, name, None) for name in ("activation", "recurrent_activation")]
        return (
            processor.compiles_on_cpu()
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
            both = keras.layers.Bidirectional(halves[0], backward_layer=halves[1], name=prefix)
            both.forward_layer.beside = both.backward_layer.beside = 2
            y = both(x, mask=mask)
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
