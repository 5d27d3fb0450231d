import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdl.blocks import recurrence
from kerasdl.models import language_model


def model_of(layers):
    return language_model.neighbour_model(keras.layers.Embedding(50, 8), layers, name="guesses")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_guess_sees_the_word_it_is_about(bidirectional):
    layer = recurrence.recurrent_layer("lstm", 6, return_sequences=True)
    model = model_of([keras.layers.Bidirectional(layer) if bidirectional else layer])
    tokens = np.array([[2, 3, 4, 5, 6]])
    right = language_model.neighbours(tf.constant(tokens), 1 + bidirectional).numpy()[0]
    before = model(tokens).numpy()[0]
    assert before.shape == (len(right), 8)
    for place in range(tokens.shape[1]):
        changed = tokens.copy()
        changed[0, place] = 40
        same = (model(changed).numpy()[0] == before).all(-1)
        assert same[right == tokens[0, place]].all()
        read = bidirectional or place < tokens.shape[1] - 1  # the last word is guessed and not read
        assert same.all() != read


def test_padding_behind_a_text_changes_no_guess_that_counts():
    layer = recurrence.recurrent_layer("lstm", 6, return_sequences=True)
    model = model_of([keras.layers.Bidirectional(layer)])
    alone, padded = np.array([[2, 3, 4]]), np.array([[2, 3, 4, 0, 0]])
    counts = language_model.neighbours(tf.constant(padded), 2).numpy()[0] != 0
    assert counts.sum() == 4
    np.testing.assert_allclose(model(padded).numpy()[0][counts], model(alone).numpy()[0], atol=1e-6)


def test_two_layers_of_both_directions_are_refused():
    layers = [
        keras.layers.Bidirectional(recurrence.recurrent_layer("lstm", 6, return_sequences=True)) for _ in range(2)
    ]
    with pytest.raises(ValueError, match="expected one, or layers of one direction"):
        model_of(layers)


def test_neighbours_of_each_word():
    tokens = tf.constant([[2, 3, 4, 0], [5, 0, 0, 0]])
    assert language_model.neighbours(tokens, 1).numpy().tolist() == [[3, 4, 0], [0, 0, 0]]
    assert language_model.neighbours(tokens, 2).numpy().tolist() == [[3, 4, 0, 2, 3, 0], [0] * 6]


def test_the_sampled_loss_is_blind_to_padding_and_low_for_the_right_vectors():
    rng = np.random.default_rng(0)
    table, right = rng.normal(size=(200, 16)).astype(np.float32), rng.integers(2, 200, (5, 6))
    right[0, 3:] = 0
    compute = tf.function(language_model.sampled_softmax(keras.Variable(table)), autograph=False)

    def loss(guess):
        # Which other words are drawn is a matter of chance: averaged.
        return np.mean([compute(tf.constant(right), tf.constant(guess)) for _ in range(100)])

    guess = rng.normal(size=(5, 6, 16)).astype(np.float32)
    usual = loss(guess)
    guess[right == 0] *= 100
    assert loss(guess) == pytest.approx(usual, rel=0.03)
    assert loss(3 * table[right]) < 0.1 < 1 < loss(-table[right])
    assert compute(tf.zeros([2, 3], tf.int32), tf.ones([2, 3, 16])) == 0


def test_the_sampled_loss_and_its_slope_equal_tensorflows_own():
    rng = np.random.default_rng(0)
    table = keras.Variable(rng.normal(size=(200, 16)).astype(np.float32))
    right = tf.constant(rng.integers(1, 200, (5, 6)))
    guess = tf.constant(rng.normal(size=(5, 6, 16)).astype(np.float32))

    def oracle(right, guess):
        labels = tf.reshape(right, [-1, 1])
        drawn = tf.random.log_uniform_candidate_sampler(labels, 1, 100, True, 200, seed=0)
        flat = tf.reshape(guess, [-1, 16])
        biases = tf.zeros(200)
        losses = tf.nn.sampled_softmax_loss(table.value, biases, labels, flat, 100, 200, sampled_values=drawn)
        return tf.reduce_mean(losses)

    def value_and_slope(function):
        @tf.function(autograph=False)
        def compute():
            with tf.GradientTape() as tape:
                tape.watch(guess)
                loss = function(right, guess)
            return loss, tape.gradient(loss, guess)

        tf.random.set_seed(1)  # both draw the same words
        return compute()

    ours, theirs = value_and_slope(language_model.sampled_softmax(table)), value_and_slope(oracle)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)
