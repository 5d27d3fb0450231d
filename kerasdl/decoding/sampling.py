"""Writing a sequence token by token, the whole loop inside the graph."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

MAX_LENGTH = 100_000  # tokens that one row may ask for
MAX_TOKENS = 1_000_000  # rows times the longest of them, tokens already made included
BLOCK = 32  # tokens that a compiled loop makes at once


def sample(logits: Any, uniform: Any, *, temperature: Any, top_k: Any, top_p: Any) -> tf.Tensor:
    """Draws one token a row by the inverse of its cumulative distribution.

    A row depends on its own logits, number and settings alone, so that a text does not change with its neighbours in
    the batch. The nucleus is taken after the `top_k` cut, from its renormalised probabilities.

    Args:
        logits: float32[batch, tokens].
        uniform: float32[batch] in [0, 1).
        temperature: float32[batch], divides the logits; 0 takes the likeliest token.
        top_k: int32[batch], draws from the k likeliest tokens; 0 from all.
        top_p: float32[batch], draws from the smallest set of likeliest tokens that holds this probability; 1 from all.

    Returns:
        int32[batch].

    Source: top-k: Fan et al. 2018, arXiv:1805.04833, section 5.4; nucleus: Holtzman et al. 2019, arXiv:1904.09751,
        section 3.1.
    """
    scaled = (logits - tf.reduce_max(logits, -1, keepdims=True)) / tf.maximum(temperature, 1e-6)[:, None]
    probabilities = tf.exp(scaled)
    # Sorting takes longer than all the rest and is left out where no row asks for it.
    limited = tf.reduce_any((top_k > 0) | (top_p < 1))
    probabilities = tf.cond(limited, lambda: _likeliest(probabilities, top_k, top_p), lambda: probabilities)
    total = tf.cumsum(probabilities, -1)
    drawn = tf.reduce_sum(tf.cast(total <= uniform[:, None] * total[:, -1:], tf.int32), -1)
    return tf.where(temperature > 0, drawn, tf.argmax(logits, -1, output_type=tf.int32))


def _likeliest(probabilities: Any, top_k: Any, top_p: Any) -> Any:
    """The probabilities float32[batch, tokens], 0 where `top_k` or `top_p` leaves a token out."""
    num_tokens = probabilities.shape[-1]
    descending, order = tf.math.top_k(probabilities, num_tokens)
    rank = tf.range(num_tokens)
    descending = tf.where(rank < tf.where(top_k > 0, top_k, num_tokens)[:, None], descending, 0.0)
    descending /= tf.reduce_sum(descending, -1, keepdims=True)
    before = tf.cumsum(descending, -1, exclusive=True)
    kept = (descending > 0) & ((before < top_p[:, None]) | (top_p[:, None] >= 1) | (rank == 0))
    return tf.where(tf.gather(kept, tf.argsort(order), axis=1, batch_dims=1), probabilities, 0.0)


def uniform_numbers(seeds: Any, length: Any) -> tf.Tensor:
    """Random numbers for `sample`; a row's follow from its seed alone, and a longer row begins as a shorter one does.

    Args:
        seeds: int32[batch].
        length: int32 scalar.

    Returns:
        float32[batch, length] in [0, 1).

    Source: own.
    """

    def row(seed: Any) -> Any:
        return tf.random.stateless_uniform([length], [seed, 0], alg="philox")

    return tf.map_fn(row, seeds, fn_output_signature=tf.TensorSpec([None], tf.float32))


def continuation(
    step: Callable[[Any, Any], Any],
    state: Any,
    num_tokens: int,
    *,
    start: Any,
    length: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    seed: Any,
) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Goes on with each row of a batch for as many tokens as it asks for.

    One row alone is written by blocks of tokens that XLA compiles. More rows are written in two halves side by side, so
    that one half's products fill the time between the other's; TensorFlow's own loop is quicker there, and no
    compilation a batch size is needed. A text in two calls (the second with `start` at the first's length) equals
    that of one call.

    Args:
        step: (token int32[batch], state float32[batch, width]) -> the state after it, of the same shape.
        state: float32[batch, width]; its first `num_tokens` columns are the logits of the next token.
        num_tokens: size of the vocabulary.
        start: int32[batch], tokens already made from this seed, 0 or more.
        length: int32[batch], tokens to make, 1 or more; with `start` at most MAX_LENGTH, and for all rows, each as long
            as the longest, at most MAX_TOKENS.
        temperature: see `sample`, as `top_k` and `top_p`.
        top_k: see `sample`.
        top_p: see `sample`.
        seed: int32[batch].

    Returns:
        Tokens int32[batch, (length)] and the state after each row's last token, float32[batch, width].

    Raises:
        tf.errors.InvalidArgumentError: in the graph, when a setting is out of its range.
    Source: own.
    """
    checks = [
        tf.debugging.assert_non_negative(start, "start is below 0; expected 0 or more"),
        tf.debugging.assert_greater_equal(length, 1, "length is below 1; expected 1 or more"),
        tf.debugging.assert_less_equal(
            length, MAX_LENGTH - start, f"length is above {MAX_LENGTH}, start included; ask for fewer"
        ),
        tf.debugging.assert_non_negative(temperature, "temperature is below 0; expected 0 or more"),
        tf.debugging.assert_positive(top_p, "top_p is not above 0; expected a probability, 1 for no limit"),
        tf.debugging.assert_non_negative(top_k, "top_k is below 0; expected 0 for no limit, or more"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        longest = tf.reduce_max(length)
        tokens = tf.size(length, tf.int64) * tf.cast(tf.reduce_max(start) + longest, tf.int64)
        most = tf.constant(MAX_TOKENS, tf.int64)
    check = tf.debugging.assert_less_equal(
        tokens, most, f"length of all rows is above {MAX_TOKENS} tokens; ask for fewer"
    )
    with tf.control_dependencies([check] if check is not None else []):
        longest = tf.identity(longest)
    numbers = uniform_numbers(seed, tf.reduce_max(start) + longest)
    numbers = tf.gather(numbers, start[:, None] + tf.range(longest), axis=1, batch_dims=1)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    batch, width = state.shape[0], state.shape[1]

    def loop(state: Any, numbers: Any, remaining: Any, settings: Any) -> tuple[Any, Any]:
        """float32[batch, width], float32[batch, times], int32[batch] -> tokens int32[times, batch], state."""
        times = numbers.shape[1] or tf.shape(numbers)[1]

        def body(t: Any, state: Any, tokens: Any) -> Any:
            token = sample(state[:, :num_tokens], numbers[:, t], **settings)
            # A row that has all it asked for waits for the others.
            state = tf.where(t < remaining[:, None], step(token, state), state)
            return t + 1, state, tokens.write(t, token)

        begin = (0, state, tf.TensorArray(tf.int32, times, element_shape=state.shape[:1]))
        _, state, tokens = tf.while_loop(
            lambda t, *_: t < times, body, begin, parallel_iterations=1, maximum_iterations=times
        )
        return tokens.stack(), state

    compiled = tf.function(loop, jit_compile=True, autograph=False)

    def first_row(tensor: Any) -> Any:
        # The slice matters: if ensure_shape saw the tensor itself, TensorFlow's optimizer would assume its shape out
        # of this branch, too, and remove the other branch from an export.
        return tf.ensure_shape(tensor[:1], [1, *tensor.shape[1:]])

    def alone() -> tuple[Any, Any]:
        rounds = (longest + BLOCK - 1) // BLOCK
        blocks = tf.reshape(tf.pad(numbers[0], [[0, rounds * BLOCK - longest]]), [rounds, 1, BLOCK])
        one = {key: first_row(value) for key, value in settings.items()}

        def body(i: Any, state: Any, tokens: Any) -> Any:
            made, state = compiled(state, blocks[i], first_row(length) - i * BLOCK, one)
            return i + 1, state, tokens.write(i, made)

        begin = (0, first_row(state), tf.TensorArray(tf.int32, rounds, element_shape=[BLOCK, 1]))
        _, last, tokens = tf.while_loop(lambda i, *_: i < rounds, body, begin, parallel_iterations=1)
        return tokens.concat()[:longest], last

    def together() -> tuple[Any, Any]:
        rows = tf.shape(state)[0]
        halves = [rows // 2, rows - rows // 2]

        def half(index: int) -> tuple[Any, Any]:
            given = (state, numbers, length, settings)
            return loop(*tf.nest.map_structure(lambda tensor: tf.split(tensor, halves, num=2)[index], given))

        (first, first_state), (second, second_state) = half(0), half(1)
        return tf.concat([first, second], 1), tf.concat([first_state, second_state], 0)

    tokens, state = alone() if batch == 1 else tf.cond(tf.equal(tf.shape(state)[0], 1), alone, together)
    tokens = tf.ensure_shape(tokens, [None, batch])
    return tf.RaggedTensor.from_tensor(tf.transpose(tokens), length), tf.ensure_shape(state, [batch, width])
