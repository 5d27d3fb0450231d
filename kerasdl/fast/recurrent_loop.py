"""The loop of a recurrent layer on a CPU, with its own gradient; `kerasdl.blocks.recurrence` says why it is quick."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kerasdl import processor


@dataclass(frozen=True)
class Cell:
    """The elementwise part of a step and its derivative; the matrix products are the loop's.

    Tensors are float32[batch, ...]. `projected` and `recurrent` are the gates' shares of the input and of the previous
    output h; `state` is what else is carried: (c,) of an LSTM, else ().

    Attributes:
        step: (projected, recurrent, h, state) -> (new h, new state, what `back` needs).
        back: (needs, h, state, new state, gradient of new h, gradients of new state) -> (gradient of projected,
            gradient of recurrent, gradient of h apart from that through recurrent or None, gradients of state).
    """

    step: Callable[..., tuple[Any, tuple[Any, ...], Any]]
    back: Callable[..., tuple[Any, Any, Any, tuple[Any, ...]]]


@functools.cache
def cells() -> dict[str, Cell]:
    """The cells by name: rnn, lstm, gru."""
    import tensorflow as tf

    def rnn_step(projected: Any, recurrent: Any, h: Any, state: Any) -> Any:
        new = tf.tanh(projected + recurrent)
        return new, (), new

    def rnn_back(needs: Any, h: Any, state: Any, new_state: Any, gradient: Any, state_gradients: Any) -> Any:
        gate = gradient * (1 - needs * needs)
        return gate, gate, None, ()

    def lstm_step(projected: Any, recurrent: Any, h: Any, state: Any) -> Any:
        i, f, z, o = tf.split(projected + recurrent, 4, -1)
        i, f, z, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(z), tf.sigmoid(o)
        c = f * state[0] + i * z
        return o * tf.tanh(c), (c,), tf.concat([i, f, z, o], -1)

    def lstm_back(needs: Any, h: Any, state: Any, new_state: Any, gradient: Any, state_gradients: Any) -> Any:
        i, f, z, o = tf.split(needs, 4, -1)
        squashed = tf.tanh(new_state[0])
        c_gradient = state_gradients[0] + gradient * o * (1 - squashed * squashed)
        gates = tf.concat(
            [
                c_gradient * z * i * (1 - i),
                c_gradient * state[0] * f * (1 - f),
                c_gradient * i * (1 - z * z),
                gradient * squashed * o * (1 - o),
            ],
            -1,
        )
        return gates, gates, None, (c_gradient * f,)

    def gru_step(projected: Any, recurrent: Any, h: Any, state: Any) -> Any:
        (xu, xr, xz), (hu, hr, hz) = tf.split(projected, 3, -1), tf.split(recurrent, 3, -1)
        u, r = tf.sigmoid(xu + hu), tf.sigmoid(xr + hr)
        z = tf.tanh(xz + r * hz)
        return u * h + (1 - u) * z, (), tf.concat([u, r, z, hz], -1)

    def gru_back(needs: Any, h: Any, state: Any, new_state: Any, gradient: Any, state_gradients: Any) -> Any:
        u, r, z, hz = tf.split(needs, 4, -1)
        z_gate = gradient * (1 - u) * (1 - z * z)
        gates = [gradient * (h - z) * u * (1 - u), z_gate * hz * r * (1 - r)]
        return tf.concat([*gates, z_gate], -1), tf.concat([*gates, z_gate * r], -1), gradient * u, ()

    return {"rnn": Cell(rnn_step, rnn_back), "lstm": Cell(lstm_step, lstm_back), "gru": Cell(gru_step, gru_back)}


@functools.cache
def _kernels(kind: str, compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A cell's `step` and `back` with biases and mask, between tensors of the compute dtype, inside in float32."""
    import tensorflow as tf

    cell = cells()[kind]

    def step(projected: Any, recurrent: Any, biases: Any, h: Any, state: Any, valid: Any) -> Any:
        narrow = projected.dtype
        projected = tf.cast(projected, tf.float32) + biases[0]
        recurrent = tf.cast(recurrent, tf.float32) + (biases[1] if biases.shape[0] == 2 else 0.0)
        new_h, new_state, needs = cell.step(projected, recurrent, h, state)
        if valid is not None:
            new_h = tf.where(valid, new_h, h)
            new_state = tuple(tf.where(valid, new, old) for new, old in zip(new_state, state, strict=True))
        return new_h, new_state, tf.cast(new_h, narrow), tf.cast(needs, narrow)

    def back(needs: Any, h: Any, state: Any, new_state: Any, gradients: Any, state_gradients: Any, valid: Any) -> Any:
        narrow = needs.dtype
        gradient = tf.add_n([tf.cast(part, tf.float32) for part in gradients])
        needs, h = tf.cast(needs, tf.float32), tf.cast(h, tf.float32)
        projected, recurrent, direct, new_gradients = cell.back(needs, h, state, new_state, gradient, state_gradients)
        gates = [projected] if recurrent is projected else [projected, recurrent]
        if valid is not None:
            gates = [tf.where(valid, gate, 0.0) for gate in gates]
            direct = tf.where(valid, 0.0 if direct is None else direct, gradient)
            new_gradients = tuple(
                tf.where(valid, new, old) for new, old in zip(new_gradients, state_gradients, strict=True)
            )
        return [tf.cast(gate, narrow) for gate in gates], [] if direct is None else [direct], new_gradients

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
    product = product_with(kernel)

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


def _loop_back(
    back: Callable[..., Any],
    kernel: Any,
    needs: Any,
    before: Any,
    states: Any,
    valid: Any,
    keep: Any,
    output_gradients: Any,
    h_gradient: Any,
    state_gradients: Any,
    *,
    split: bool,
) -> Any:
    """All steps of the derivative, from the last to the first.

    Args:
        back: of `_kernels`.
        kernel: float[units, gates], recurrent.
        needs: float[time, batch, ...], of `_loop`.
        before: float[time, batch, units], the outputs before each step.
        states: tuple of float32[time + 1, batch, units], of `_loop`.
        valid: as for `_loop`.
        keep: as for `_loop`.
        output_gradients: float[time, batch, units].
        h_gradient: float32[batch, units].
        state_gradients: tuple of float32[batch, units].
        split: whether the gates' gradients of input and recurrent share differ.

    Returns:
        gradients of the gates, one or two of float[time, batch, gates], of the first h, and of the first state.
    """
    import tensorflow as tf

    times, narrow = tf.shape(needs)[0], needs.dtype
    product = product_with(tf.transpose(kernel))

    def body(n: Any, through: Any, direct: Any, state_gradients: Any, arrays: Any) -> Any:
        t = times - 1 - n
        gates, direct, state_gradients = back(
            needs[t],
            before[t],
            tuple(array[t] for array in states),
            tuple(array[t + 1] for array in states),
            [output_gradients[t], through, *direct],
            state_gradients,
            None if valid is None else valid[t],
        )
        through = product(gates[-1])
        through = through if keep is None else through * keep
        arrays = [array.write(t, gate) for array, gate in zip(arrays, gates, strict=True)]
        return n + 1, through, direct, state_gradients, arrays

    arrays = [tf.TensorArray(narrow, times) for _ in range(1 + split)]
    carries = split or valid is not None
    begin = (0, tf.cast(h_gradient, narrow), [tf.zeros_like(h_gradient)] * carries, tuple(state_gradients), arrays)
    _, through, direct, state_gradients, arrays = tf.while_loop(
        lambda n, *_: n < times, body, begin, parallel_iterations=1, maximum_iterations=times
    )
    return [array.stack() for array in arrays], tf.add_n([tf.cast(through, tf.float32), *direct]), state_gradients


def compiles_whole(dtype: str, num_steps: int | None) -> bool:
    """Whether XLA compiles the whole loop, matrix products included, and not only the elementwise part of a step.

    In float32 XLA's product of a few rows takes half the time of TensorFlow's (AMD EPYC family 26 model 2, oneDNN held
    to AVX2); in half precision it takes twice as long. A compilation for each number of steps costs a second: it is
    for windows of one length.
    """
    return dtype == "float32" and num_steps is not None and processor.compiles_on_cpu()


def _trained_loop(
    kind: str, x: Any, kernel: Any, recurrent_kernel: Any, biases: Any, h: Any, state: Any, valid: Any, keep: Any
) -> Any:
    """As `_loop`, from the input x float[time, batch, features] on, with a gradient of its own.

    Returns:
        outputs, last h, *last state.
    """
    import tensorflow as tf

    whole = compiles_whole(x.dtype.name, x.shape[0])
    step, back = _kernels(kind, processor.compiles_on_cpu() and not whole)

    def values(x: Any, kernel: Any, recurrent_kernel: Any, biases: Any, h: Any, state: Any) -> Any:
        return _loop(step, project(x, kernel), recurrent_kernel, biases, h, state, valid, keep, trained=True)

    def gradients(
        x: Any,
        kernel: Any,
        recurrent_kernel: Any,
        h: Any,
        outputs: Any,
        needs: Any,
        states: Any,
        output_gradients: Any,
        h_gradient: Any,
        state_gradients: Any,
    ) -> Any:
        """Of everything that `values` takes."""
        narrow, split = x.dtype, kind == "gru"
        before = tf.concat([tf.cast(h, narrow)[None], outputs[:-1]], 0)
        gates, first, state_gradients = _loop_back(
            back,
            recurrent_kernel,
            needs,
            before,
            states,
            valid,
            keep,
            output_gradients,
            h_gradient,
            state_gradients,
            split=split,
        )
        gates = [tf.reshape(gate, [-1, kernel.shape[1]]) for gate in gates]
        before = before if keep is None else before * keep
        ones = tf.ones([1, tf.shape(x)[0] * tf.shape(h)[0]], narrow)
        return (
            tf.reshape(tf.matmul(gates[0], kernel, transpose_b=True), tf.shape(x)),
            tf.matmul(tf.reshape(x, [-1, x.shape[2]]), gates[0], transpose_a=True),
            tf.matmul(tf.reshape(before, [-1, h.shape[1]]), gates[-1], transpose_a=True),
            # A product with ones: TensorFlow's sum over so many rows would first widen them all.
            tf.stack([tf.cast(tf.matmul(ones, gate)[0], tf.float32) for gate in gates[: biases.shape[0]]]),
            first,
            *state_gradients,
        )

    if whole:
        values, gradients = (tf.function(part, jit_compile=True, autograph=False) for part in (values, gradients))

    @tf.custom_gradient
    def run(x: Any, kernel: Any, recurrent_kernel: Any, biases: Any, h: Any, *state: Any) -> Any:
        # A tape outside of a graph would ask XLA's function for a derivative of its own.
        given = tf.nest.map_structure(tf.stop_gradient, (x, kernel, recurrent_kernel, biases, h, state))
        outputs, last, last_state, (needs, *states) = values(*given)

        def gradient(output_gradients: Any, h_gradient: Any, *state_gradients: Any) -> Any:
            return gradients(
                x,
                kernel,
                recurrent_kernel,
                h,
                outputs,
                needs,
                tuple(states),
                output_gradients,
                h_gradient,
                state_gradients,
            )

        return (outputs, last, *last_state), gradient

    return run(x, kernel, recurrent_kernel, biases, h, *state)


def product_with(kernel: Any) -> Callable[[Any], Any]:
    """Of a few rows with the same kernel again and again: in half precision a fifth quicker with its transpose."""
    import tensorflow as tf

    if kernel.dtype == tf.float32:
        return lambda x: tf.matmul(x, kernel)
    transposed = tf.transpose(kernel)
    return lambda x: tf.matmul(x, transposed, transpose_b=True)


def project(steps: Any, kernel: Any) -> Any:
    """All steps of an input at once: float[time, batch, features] times float[features, gates]."""
    import tensorflow as tf

    flat = tf.matmul(tf.reshape(steps, [-1, steps.shape[2]]), kernel)
    return tf.reshape(flat, [tf.shape(steps)[0], tf.shape(steps)[1], kernel.shape[1]])


def run_shard(
    kind: str,
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
        project(x, kernel),
        recurrent_kernel,
        biases,
        h,
        tuple(state),
        valid,
        keep,
        trained=False,
    )
    return outputs, h, *last
