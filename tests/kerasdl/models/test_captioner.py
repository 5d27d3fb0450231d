import block_checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdl.blocks import caption_decoder
from kerasdl.decoding import beam_search, caption_writer
from kerasdl.models import captioner

BATCH, ITEMS, CHANNELS, TOKENS = 3, 4, 6, 9
RNG = np.random.default_rng(0)
PARTS = RNG.normal(size=(BATCH, ITEMS, CHANNELS)).astype("float32")
AFTER = np.array([[3, 4, 2, 0], [5, 2, 0, 0], [1, 7, 8, 2]], np.int32)  # 2 is the end, 1 the unknown word
BEFORE = np.pad(AFTER[:, :-1], [[0, 0], [1, 0]])
GIVEN = {"picture": PARTS, "tokens": BEFORE}


def decoder(attends, dropout=0.0):
    parts = keras.Input((ITEMS, CHANNELS), name="picture")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    sizes = {"units": 8, "embedding_dim": 5, "dropout": dropout, "name": "d"}
    if attends:
        logits, weights = caption_decoder.show_attend_and_tell(parts, tokens, TOKENS, attention_units=7, **sizes)
        outputs = {"logits": logits, "weights": weights}
    else:
        outputs = {"logits": caption_decoder.show_and_tell(parts, tokens, TOKENS, **sizes)}
    model = keras.Model({"picture": parts, "tokens": tokens}, outputs, name="d")
    block_checks.random_weights(model)
    return model


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("attends", [True, False])
def test_shapes_and_gradients(attends):
    model = decoder(attends, dropout=0.2)
    answer = model(GIVEN)
    assert answer["logits"].shape == (BATCH, 4, TOKENS)
    if attends:
        assert answer["weights"].shape == (BATCH, 4, ITEMS)
        np.testing.assert_allclose(tf.reduce_sum(answer["weights"], -1), 1, atol=1e-6)
    logits = keras.Model(model.inputs, model.outputs[0])
    assert block_checks.dead_weights(logits, GIVEN) == []


@pytest.mark.parametrize("attends", [True, False])
def test_what_is_written_word_by_word_has_the_probability_that_the_model_gives_it(attends):
    model = decoder(attends)
    step, state, given = caption_writer.writer(model, tf.constant(PARTS))
    widths, penalty = tf.fill([BATCH], 4), tf.zeros([BATCH])
    tokens, log_probabilities, _ = beam_search.beam_search(
        step, state, given, start=caption_decoder.START, end=caption_decoder.END, width=widths, length_penalty=penalty,
        max_length=5,
    )  # fmt: skip
    for place in range(4):
        after = tokens[:, place].numpy()
        assert (after >= caption_decoder.END).all()
        logits = model({"picture": PARTS, "tokens": np.pad(after[:, :-1], [[0, 0], [1, 0]])})["logits"].numpy()
        logits[..., : caption_decoder.END] = -1e9  # padding and the unknown word are not written
        shares = np.take_along_axis(log_softmax(logits), after[..., None], -1)[..., 0]
        counts = np.cumsum(after == caption_decoder.END, 1) - (after == caption_decoder.END) == 0
        np.testing.assert_allclose((shares * counts).sum(1), log_probabilities[:, place], rtol=1e-4)


def test_the_first_word_depends_on_the_picture_and_a_word_on_those_before_alone():
    for attends in (True, False):
        model = decoder(attends)
        logits = model(GIVEN)["logits"].numpy()
        other = model({"picture": PARTS[::-1].copy(), "tokens": BEFORE})["logits"].numpy()
        assert np.abs(logits[0, 0] - other[0, 0]).max() > 1e-3
        later = BEFORE.copy()
        later[:, 3] = 8
        changed = model({"picture": PARTS, "tokens": later})["logits"].numpy()
        np.testing.assert_array_equal(changed[:, :3], logits[:, :3])
        assert np.abs(changed[:, 3] - logits[:, 3]).max() > 1e-3


def expected_loss(logits, weights, smoothing, penalty):
    shares = log_softmax(logits.astype("float64"))
    total, words = 0.0, 0
    for row in range(BATCH):
        looked = np.zeros(ITEMS)
        for t, word in enumerate(AFTER[row]):
            if word == 0:
                continue
            looked += weights[row, t]
            if word == 1:
                continue
            target = np.full(TOKENS, smoothing / TOKENS)
            target[word] += 1 - smoothing
            total -= target @ shares[row, t]
            words += 1
        total += penalty * ((1 - looked) ** 2).sum()
    return total / words


def test_loss_equals_its_equations_in_training_and_is_plain_in_validation():
    model = captioner.Captioner(None, decoder(True), label_smoothing=0.1, doubly_stochastic=0.7)
    answer = model(GIVEN)
    logits, weights = (answer[part].numpy() for part in ("logits", "weights"))
    trained, validated = (
        float(model.compute_loss(y=tf.constant(AFTER), y_pred=answer, training=training)) for training in (True, False)
    )
    assert trained == pytest.approx(expected_loss(logits, weights, 0.1, 0.7), rel=1e-5)
    assert validated == pytest.approx(expected_loss(logits, weights, 0.0, 0.0), rel=1e-5)


def test_nothing_but_unknown_words_is_no_loss_and_no_nan():
    model = captioner.Captioner(None, decoder(False))
    answer = model(GIVEN)
    assert float(model.compute_loss(y=tf.ones_like(AFTER), y_pred=answer)) == 0


def test_the_encoder_is_frozen_and_saved_with_the_decoder(tmp_path):
    pictures = keras.Input((4, 4, 3))
    encoder = keras.Model(pictures, keras.layers.Conv2D(2, 3, name="convolution")(pictures))
    model = captioner.Captioner(encoder, decoder(True), doubly_stochastic=0.5)
    trainable = {variable.path for variable in model.trainable_variables}
    assert not any("convolution" in path for path in trainable)
    assert len(model.variables) > len(trainable)
    model.compile("adam")
    model.fit(GIVEN, AFTER, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.doubly_stochastic == 0.5
    np.testing.assert_array_equal(again.encoder.get_weights()[0], encoder.get_weights()[0])
    np.testing.assert_array_equal(again(GIVEN)["logits"], model(GIVEN)["logits"])


def test_a_cut_encoder_learns_behind_the_cut_when_it_may(tmp_path):
    keras.utils.set_random_seed(0)
    pictures, cut = keras.Input((ITEMS, 3)), keras.Input((ITEMS, 2))
    encoder = keras.Model(pictures, keras.layers.Dense(2, name="bottom")(pictures))
    top = keras.Model(cut, keras.layers.Dense(CHANNELS, name="end")(cut))
    model = captioner.Captioner(encoder, decoder(True), top=top)
    image = RNG.normal(size=(BATCH, ITEMS, 3)).astype("float32")
    middle = encoder(image).numpy()
    given = {"cut": middle, "tokens": BEFORE}
    np.testing.assert_allclose(model.encode(image), top(middle), atol=0.01)
    expected = model.decoder({"picture": top(middle).numpy(), "tokens": BEFORE})["logits"]
    np.testing.assert_allclose(model(given)["logits"], expected, atol=1e-5)
    frozen = top.get_weights()
    model.compile("adam")
    model.fit(given, AFTER, verbose=0)
    np.testing.assert_array_equal(top.get_weights()[0], frozen[0])
    top.trainable = True
    model.compile("adam")
    model.fit(given, AFTER, verbose=0)
    assert np.abs(top.get_weights()[0] - frozen[0]).max() > 0
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again(given)["logits"], model(given)["logits"])


def test_captions_of_one_picture_stand_behind_each_other():
    model = captioner.Captioner(None, decoder(True), doubly_stochastic=0.7)
    several = {"picture": PARTS, "tokens": np.stack([BEFORE, BEFORE[::-1]], 1)}
    flat = {"picture": np.repeat(PARTS, 2, 0), "tokens": several["tokens"].reshape(2 * BATCH, -1)}
    found, expected = model(several), model(flat)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-6)
    after = np.stack([AFTER, AFTER[::-1]], 1)
    losses = [
        float(model.compute_loss(y=tf.constant(y), y_pred=answer))
        for y, answer in ((after, found), (after.reshape(2 * BATCH, -1), expected))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_captions_are_drawn_by_their_probabilities():
    model = decoder(True)
    parts = tf.constant(np.repeat(PARTS[:1], 4000, 0))
    drawn = caption_writer.draw(*caption_writer.writer(model, parts), tf.constant([1, 2]), 3).numpy()
    logits = model({"picture": PARTS[:1], "tokens": np.zeros((1, 1), np.int32)})["logits"].numpy()[0, 0]
    logits[: caption_decoder.END] = -1e9
    shares = np.exp(log_softmax(logits))
    np.testing.assert_allclose(np.bincount(drawn[:, 0], minlength=TOKENS) / 4000, shares, atol=0.03)
    ended = np.cumsum(drawn == caption_decoder.END, 1) - (drawn == caption_decoder.END) > 0
    assert ended.any()
    assert (drawn[ended] == 0).all()
    assert (drawn[~ended] >= caption_decoder.END).all()


@pytest.mark.parametrize("wanted", [7, None])
def test_a_reward_makes_captions_likelier_and_an_equal_one_does_not(wanted):
    keras.utils.set_random_seed(0)
    model = decoder(True)
    trained = captioner.Captioner(None, model)
    seen = []

    def reward(numbers, captions):
        seen.extend(numbers.tolist())
        return np.float32((captions == wanted).any(1)) if wanted else np.ones(len(captions), np.float32)

    trained.reinforce(reward, samples=4, max_length=4)
    trained.compile(keras.optimizers.Adam(0.02))
    before = model.get_weights()
    batches = tf.data.Dataset.from_tensors(({"picture": PARTS}, np.array([5, 6, 8]))).repeat()
    history = trained.fit(batches, epochs=60, steps_per_epoch=1, shuffle=False, verbose=0).history["reward"]
    assert set(seen) == {5, 6, 8}
    moved = max(np.abs(one - other).max() for one, other in zip(before, model.get_weights(), strict=True))
    if wanted:
        assert history[0] < 0.8 < 0.9 < history[-1]
        assert moved > 0.1
    else:
        assert moved < 1e-6


def test_reinforcement_needs_two_samples():
    with pytest.raises(ValueError, match="samples is 1, expected 2 or more"):
        captioner.Captioner(None, decoder(True)).reinforce(lambda *_: None, samples=1, max_length=4)
