"""The likeliest sequences that a step-by-step model can write, searched inside the graph."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

MAX_WIDTH = 50  # hypotheses that one request may ask for


def beam_search(
    step: Callable[[Any, Any, Any], Any],
    state: Any,
    given: Any = (),
    *,
    start: int,
    end: int,
    width: Any,
    length_penalty: Any,
    max_length: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Beam search: goes on with the likeliest beginnings until as many of them have ended.

    At each step the `width` likeliest continuations of all open hypotheses count: those that end are set aside, and the
    likeliest ones that do not end, `width` again, stay open. A row is done when `width` hypotheses have ended; the last
    of `max_length` tokens can only be the end. With width 1 this takes the likeliest token at each step (greedy).
    The score that orders what has ended is the log-probability, divided by ((5 + length) / 6)^length_penalty. A row
    depends on its own width and penalty alone.

    Args:
        step: (token int32[rows], state, given) -> log-probabilities float32[rows, tokens] and the next state; there
            are batch * (the largest width) rows, those of one example in a block.
        state: tensors [batch, ...] before the first token.
        given: tensors [batch, ...] that stay the same at every step, such as the picture.
        start: the token that `step` gets first.
        end: the token that ends a sequence.
        width: int32[batch], 1 to MAX_WIDTH.
        length_penalty: float32[batch], 0 or more; 0 prefers short sequences, 1 is about the mean of a token's.
        max_length: tokens of a sequence, the end included.

    Returns:
        tokens int32[batch, largest width, max_length], the best first, filled up with `end`; their log-probabilities
        and their scores float32[batch, largest width], minus infinity where a row asked for fewer.

    Raises:
        tf.errors.InvalidArgumentError: in the graph, when a setting is out of its range.
    Source: Graves 2012, arXiv:1211.3711, section 3 (beam search); length penalty: Wu et al. 2016, arXiv:1609.08144,
        section 7, equation 14.
    """
    checks = [
        tf.debugging.assert_greater_equal(width, 1, "the beam width is below 1; expected 1 or more"),
        tf.debugging.assert_less_equal(width, MAX_WIDTH, f"the beam width is above {MAX_WIDTH}; ask for fewer"),
        tf.debugging.assert_non_negative(length_penalty, "the length penalty is below 0; expected 0 or more"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        widest = tf.reduce_max(width)
    batch = tf.shape(width)[0]
    mine = tf.range(widest) < width[:, None]  # the places that a row may use

    def scores(log_probabilities: Any, length: Any) -> Any:
        factor = tf.pow((5.0 + tf.cast(length, tf.float32)) / 6.0, length_penalty)
        return log_probabilities / factor[:, None]

    def best(ranked_by: Any, *values: Any) -> list[Any]:
        """The likeliest of a row, in its places."""
        top, order = tf.math.top_k(ranked_by, widest)
        chosen = [tf.gather(value, order, axis=1, batch_dims=1) for value in values]
        return [tf.where(mine, top, -float("inf")), *chosen]

    def body(t: Any, open_: Any, tokens: Any, last: Any, state: Any, ended: Any) -> Any:
        log_probabilities, state = step(tf.reshape(last, [-1]), state, repeated)
        num_tokens = tf.shape(log_probabilities)[-1]
        total = open_[..., None] + tf.reshape(log_probabilities, [batch, widest, num_tokens])
        possible = (t < max_length - 1) | tf.equal(tf.range(num_tokens), end)
        total = tf.where(possible, total, -float("inf"))
        # Twice as many: if all of the first half end, the second half is still open.
        top, index = tf.math.top_k(tf.reshape(total, [batch, -1]), 2 * widest)
        parent, token = index // num_tokens, index % num_tokens
        longer = tf.gather(tokens, parent, axis=1, batch_dims=1)
        longer = tf.where(tf.range(max_length) == t, token[..., None], longer)
        ends = tf.equal(token, end)
        score, likelihood, text = ended
        done = tf.reduce_all((score > -float("inf")) | ~mine, 1, keepdims=True)
        now = ends & (tf.range(2 * widest) < width[:, None]) & ~done
        joined = tf.concat([score, tf.where(now, scores(top, t + 1), -float("inf"))], 1)
        ended = best(joined, tf.concat([likelihood, top], 1), tf.concat([text, longer], 1))
        open_, tokens, last, parent = best(tf.where(ends, -float("inf"), top), longer, token, parent)
        rows = tf.reshape(tf.range(batch)[:, None] * widest + parent, [-1])
        state = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), state)
        return t + 1, open_, tokens, last, state, ended

    def goes_on(t: Any, open_: Any, tokens: Any, last: Any, state: Any, ended: Any) -> Any:
        return (t < max_length) & tf.reduce_any((ended[0] == -float("inf")) & mine)

    def for_each_place(tensor: Any) -> Any:
        return tf.repeat(tensor, widest, axis=0)

    repeated = tf.nest.map_structure(for_each_place, given)
    nothing = tf.fill([batch, widest], -float("inf"))
    blank = tf.fill([batch, widest, max_length], end)
    begin = (
        0,
        tf.where(tf.range(widest) > 0, nothing, 0.0),  # one hypothesis, the empty one
        blank,
        tf.fill([batch, widest], start),
        tf.nest.map_structure(for_each_place, state),
        [nothing, nothing, blank],
    )
    plane, texts = tf.TensorShape([None, None]), tf.TensorShape([None, None, max_length])
    rows = tf.nest.map_structure(lambda tensor: tf.TensorShape([None, *tensor.shape[1:]]), state)
    shapes = (tf.TensorShape([]), plane, texts, plane, rows, [plane, plane, texts])
    *_, (score, likelihood, text) = tf.while_loop(goes_on, body, begin, shape_invariants=shapes, parallel_iterations=1)
    return text, tf.where(score > -float("inf"), likelihood, score), score
