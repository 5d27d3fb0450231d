"""Against all sequences, written out, of a table that gives the next token's probability after the last two."""

import numpy as np
import pytest
import tensorflow as tf

from kerasdl.decoding.beam_search import MAX_WIDTH, beam_search

TOKENS, END, LENGTH, ROWS = 5, 2, 4, 3
TABLE = np.log(np.random.default_rng(0).dirichlet(np.ones(TOKENS), (ROWS, TOKENS, TOKENS))).astype("float32")


def step(token, state, given):
    shares = tf.gather_nd(tf.constant(TABLE), tf.stack([given, state, token], -1))
    return shares, token


@tf.function(autograph=False, reduce_retracing=True)
def _search(width, length_penalty):
    rows = tf.range(tf.shape(width)[0])
    return beam_search(
        step, tf.zeros_like(rows), rows, start=0, end=END, width=width, length_penalty=length_penalty, max_length=LENGTH
    )


def search(width, length_penalty):
    answer = _search(tf.constant(width), tf.constant(length_penalty, tf.float32))
    return [part.numpy() for part in answer]


def all_sequences(row, length_penalty):
    """(score, log-probability, tokens) of every sequence, the best first."""
    found = []

    def go_on(tokens, log_probability, before, last):
        if tokens[-1:] == [END]:
            score = log_probability / ((5 + len(tokens)) / 6) ** length_penalty
            found.append((score, log_probability, tokens))
            return
        for token in range(TOKENS) if len(tokens) < LENGTH - 1 else [END]:
            go_on([*tokens, token], log_probability + float(TABLE[row, before, last, token]), last, token)

    go_on([], 0.0, 0, 0)
    return sorted(found, reverse=True)


def without_filling(tokens):
    return tokens[: tokens.tolist().index(END) + 1].tolist()


def test_a_beam_that_holds_everything_finds_the_best_of_all():
    penalties = [0.0, 0.7, 1.5]
    tokens, log_probabilities, scores = search([MAX_WIDTH] * ROWS, penalties)
    for row, penalty in enumerate(penalties):
        # What is found surely: as many sequences as have ended when the search stops are not all.
        expected = all_sequences(row, penalty)[:3]
        assert [without_filling(tokens[row, i]) for i in range(3)] == [sequence for _, _, sequence in expected]
        np.testing.assert_allclose(scores[row, :3], [score for score, _, _ in expected], rtol=1e-5)
        np.testing.assert_allclose(log_probabilities[row, :3], [value for _, value, _ in expected], rtol=1e-5)


def test_one_hypothesis_takes_the_likeliest_token_each_time():
    tokens, log_probabilities, _ = search([1] * ROWS, [0.0] * ROWS)
    for row in range(ROWS):
        before = last = 0
        total, expected = 0.0, []
        while expected[-1:] != [END]:
            token = int(TABLE[row, before, last].argmax()) if len(expected) < LENGTH - 1 else END
            total += TABLE[row, before, last, token]
            before, last = last, token
            expected.append(token)
        assert without_filling(tokens[row, 0]) == expected
        assert log_probabilities[row, 0] == pytest.approx(total, rel=1e-5)


def test_every_answer_has_the_probability_that_it_states_and_stands_once():
    for width in (2, 3, 7):
        tokens, log_probabilities, scores = search([width] * ROWS, [0.7] * ROWS)
        for row in range(ROWS):
            known = {tuple(sequence): (value, score) for score, value, sequence in all_sequences(row, 0.7)}
            said = [tuple(without_filling(sequence)) for sequence in tokens[row]]
            assert len(set(said)) == width
            for sequence, value, score in zip(said, log_probabilities[row], scores[row], strict=True):
                np.testing.assert_allclose((value, score), known[sequence], rtol=1e-5)
            assert (np.diff(scores[row]) <= 0).all()


def test_behind_the_end_stands_nothing_but_the_end():
    tokens, *_ = search([MAX_WIDTH] * ROWS, [0.0] * ROWS)
    ended = np.cumsum(tokens == END, -1) > 0
    assert ended.any()
    assert (tokens[ended] == END).all()


def test_a_row_does_not_depend_on_its_neighbours():
    widths, penalties = [1, 2, 4], [0.0, 0.7, 1.0]
    together = search(widths, penalties)
    for row in range(ROWS):
        alone = search([widths[row]] * ROWS, [penalties[row]] * ROWS)
        for joined, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(joined[row, : widths[row]], single[row])
    assert (together[1][0, 1:] == -np.inf).all()


def test_a_wider_beam_is_seldom_worse():
    narrow, wide = (search([width] * ROWS, [0.0] * ROWS)[1][:, 0] for width in (1, MAX_WIDTH))
    assert (wide >= narrow - 1e-6).all()
    assert (wide > narrow + 0.1).any()


@pytest.mark.parametrize(
    ("width", "penalty", "message"), [(0, 0.0, "below 1"), (51, 0.0, "above 50"), (1, -1.0, "pen")]
)
def test_settings_out_of_range_are_refused(width, penalty, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        search([width] * ROWS, [penalty] * ROWS)
