import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdl.decoding.sampling import BLOCK, MAX_LENGTH, continuation, sample, uniform_numbers

NEARLY_1 = np.nextafter(np.float32(1), np.float32(0))


def draw(logits, uniform, temperature, top_k, top_p):
    """One token by Fan et al. 2018 and Holtzman et al. 2019, in float64."""
    order = np.argsort(-np.asarray(logits, np.float64), kind="stable")
    if temperature == 0:
        return order[0]
    shares = keras.ops.convert_to_numpy(keras.ops.softmax(np.float64(logits)[order] / temperature))
    if top_k:
        shares = shares[:top_k] / shares[:top_k].sum()
    shares = shares[: np.searchsorted(np.cumsum(shares), top_p) + 1]
    left = np.zeros(len(logits))
    left[order[: len(shares)]] = shares / shares.sum()
    return np.searchsorted(np.cumsum(left), uniform, side="right")


def draws(logits, uniform, *, temperature=1.0, top_k=0, top_p=1.0):
    """`sample`, with settings that may be one for all rows."""
    size = len(uniform)
    settings = {"temperature": (temperature, "float32"), "top_k": (top_k, "int32"), "top_p": (top_p, "float32")}
    tensors = {name: tf.constant(np.broadcast_to(np.asarray(v, d), size)) for name, (v, d) in settings.items()}
    logits = tf.constant(np.broadcast_to(np.asarray(logits, np.float32), (size, np.shape(logits)[-1])))
    return sample(logits, tf.constant(uniform, tf.float32), **tensors).numpy()


# --- One token -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases():
    """Logits, numbers and settings of 3,000 rows, every extreme among them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(3_000, 20)).astype(np.float32)
    settings = {
        "temperature": rng.choice([0, 0.3, 1, 4], 3_000).astype(np.float32),
        "top_k": rng.choice([0, 1, 3, 19, 20, 50], 3_000),
        "top_p": rng.choice([0.01, 0.5, 0.9, 1], 3_000).astype(np.float32),
    }
    return logits, rng.random(3_000, np.float32), settings


def test_sample_equals_the_oracle(cases):
    logits, uniform, settings = cases
    expected = [draw(*row) for row in zip(logits, uniform, *settings.values(), strict=True)]
    drawn = draws(logits, uniform, **settings)
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(drawn, expected)
    # Each setting decides in places, so that ignoring one would be seen.
    for name, value in {"temperature": 1, "top_k": 0, "top_p": 1}.items():
        assert (draws(logits, uniform, **{**settings, name: value}) != expected).sum() > 50, name


def test_a_row_does_not_depend_on_its_neighbours(cases):
    logits, uniform, settings = cases
    together = draws(logits, uniform, **settings)
    for part in (slice(7, 8), slice(20, 29)):
        alone = draws(logits[part], uniform[part], **{name: value[part] for name, value in settings.items()})
        np.testing.assert_array_equal(alone, together[part])


def test_frequencies_are_the_shares():
    logits = np.array([0.5, 2.0, -1.0, 1.0, -4.0])
    uniform = (np.arange(10_000) + 0.5) / 10_000

    def frequencies(**settings):
        return np.bincount(draws(logits, uniform, **settings), minlength=5) / 10_000

    def softmax(values):
        return np.exp(values) / np.exp(values).sum()

    np.testing.assert_allclose(frequencies(), softmax(logits), atol=2e-4)
    np.testing.assert_allclose(frequencies(temperature=0.5), softmax(logits / 0.5), atol=2e-4)
    kept = softmax([2.0, 1.0])  # the two likeliest, and the smallest set with 0.7: 0.59 alone is too little
    for settings in ({"top_k": 2}, {"top_p": 0.7}):
        np.testing.assert_allclose(frequencies(**settings), [0, kept[0], 0, kept[1], 0], atol=2e-4)
    # Of the three likeliest, renormalised, the first two hold 0.85; of all tokens they hold 0.80.
    np.testing.assert_allclose(frequencies(top_k=3, top_p=0.82), [0, kept[0], 0, kept[1], 0], atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, [0, 4]),
        ({"top_k": 3}, [0, 3]),
        ({"top_p": 0.7}, [1, 3]),
        ({"top_k": 1}, [1, 1]),
        ({"temperature": 0}, [1, 1]),
    ],
)
def test_the_ends_of_the_interval(settings, ends):
    """0 draws the first token that is left, the largest number below 1 the last."""
    logits = np.array([0.5, 2.0, -1.0, 1.0, -4.0])
    assert draws(logits, np.array([0, NEARLY_1]), **settings).tolist() == ends


def test_a_row_without_limits_draws_the_same_beside_one_with_limits():
    rng = np.random.default_rng(0)
    logits, uniform = rng.normal(scale=8, size=(5_000, 50)), rng.random(5_000, np.float32)
    top_k = np.arange(5_000) % 2
    np.testing.assert_array_equal(draws(logits, uniform)[::2], draws(logits, uniform, top_k=top_k)[::2])


def test_the_first_of_equal_tokens_counts_as_the_likeliest():
    assert draws(np.array([1.0, 3.0, 3.0, 3.0]), np.array([0.9]), temperature=0).tolist() == [1]
    assert draws(np.zeros(4), np.array([0.1, 0.3, 0.6, 0.9])).tolist() == [0, 1, 2, 3]


def test_the_nucleus_is_the_smallest_set_that_holds_the_probability():
    """Of four equal tokens two hold one half."""
    numbers = np.array([0, 0.3, 0.6, NEARLY_1])
    assert draws(np.zeros(4), numbers, top_p=0.5).tolist() == [0, 0, 1, 1]
    assert draws(np.zeros(4), numbers, top_p=0.51).tolist() == [0, 0, 1, 2]


def test_logits_far_apart_do_not_overflow():
    logits = np.array([-3e4, 3e4, 2.9e4])
    assert draws(logits, np.array([0, 0.5, NEARLY_1]), temperature=1e-3).tolist() == [1, 1, 1]


# --- Numbers -------------------------------------------------------------------------------------


def test_numbers_follow_from_the_seed_alone_and_a_longer_row_begins_as_a_shorter_one():
    numbers = uniform_numbers(tf.constant([3, 5, 3, -1]), tf.constant(1_000)).numpy()
    assert numbers.shape == (4, 1_000)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers[0], numbers[2])
    for length in (1, 3, 999):
        np.testing.assert_array_equal(uniform_numbers(tf.constant([5]), length).numpy()[0], numbers[1, :length])
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert np.abs(np.corrcoef(numbers[[0, 1, 3]]) - np.eye(3)).max() < 0.1
    assert np.abs(np.corrcoef(numbers[0, 1:], numbers[0, :-1]) - np.eye(2)).max() < 0.1


# --- A whole text --------------------------------------------------------------------------------

TOKENS = 11
TABLE = np.random.default_rng(4).normal(scale=1.5, size=(TOKENS, TOKENS)).astype(np.float32)
COUNTING = 100 * np.eye(TOKENS, dtype=np.float32)[(np.arange(TOKENS) + 1) % TOKENS]


def writer(table):
    """`continuation` of an automaton: row i of the table holds the logits after token i; the last column counts."""

    def step(token, state):
        return tf.concat([tf.gather(tf.constant(table), token), state[:, TOKENS:] + 1], 1)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec(shape, dtype)
            for shape, dtype in zip(
                ([None, TOKENS + 1], [None], [None], [None], [None], [None], [None]),
                ("float32", "int32", "int32", "float32", "int32", "float32", "int32"),
                strict=True,
            )
        ],
    )
    def write(state, start, length, temperature, top_k, top_p, seed):
        return continuation(
            step,
            state,
            TOKENS,
            start=start,
            length=length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )

    def call(first, length, *, state=None, start=0, temperature=1.0, top_k=0, top_p=1.0, seed=0):
        """Row i begins after token first[i]; the other settings are one a row or one for all."""
        if state is None:
            state = np.concatenate([table[np.asarray(first)], np.zeros((len(first), 1), np.float32)], 1)
        settings = (
            np.broadcast_to(np.asarray(value, dtype), len(state))
            for value, dtype in zip(
                (start, length, temperature, top_k, top_p, seed),
                ("int32", "int32", "float32", "int32", "float32", "int32"),
                strict=True,
            )
        )
        tokens, state = write(tf.constant(state), *map(tf.constant, settings))
        return tokens.to_list(), state.numpy()

    return call


@pytest.fixture(scope="module")
def count():
    return writer(COUNTING)


@pytest.fixture(scope="module")
def walk():
    return writer(TABLE)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_counting_automaton_counts(count, rows, length):
    first = [4, 0, 9][:rows]
    tokens, state = count(first, length)
    assert tokens == [[(begin + 1 + i) % TOKENS for i in range(length)] for begin in first]
    assert state[:, TOKENS].tolist() == [length] * rows
    np.testing.assert_array_equal(state[:, :TOKENS], COUNTING[[row[-1] for row in tokens]])


def test_draws_equal_the_oracle_step_by_step(walk):
    settings = {"temperature": [0.7, 1.5, 0.0], "top_k": [0, 4, 0], "top_p": [0.9, 1.0, 1.0], "seed": [1, 2, 3]}
    first, length = [0, 5, 7], 60
    expected = []
    for row, last in enumerate(first):
        numbers = uniform_numbers(tf.constant([settings["seed"][row]]), length).numpy()[0]
        kept = [settings[name][row] for name in ("temperature", "top_k", "top_p")]
        text = []
        for number in numbers:
            last = draw(TABLE[last], number, *kept)
            text.append(int(last))
        expected.append(text)
    assert walk(first, length, **settings)[0] == expected
    assert len({tuple(text) for text in expected}) == 3


def test_a_row_alone_equals_the_same_row_in_a_batch(walk):
    """Alone it is written by compiled blocks, in a batch by a plain loop."""
    first, lengths, seeds = [3, 8, 3, 1], [70, 5, 33, 64], [5, 6, 7, 8]
    tokens, state = walk(first, lengths, seed=seeds)
    for row in range(4):
        alone, alone_state = walk(first[row : row + 1], lengths[row], seed=seeds[row])
        assert alone == [tokens[row]]
        np.testing.assert_array_equal(alone_state[0], state[row])


def test_rows_have_their_own_lengths_and_end_with_their_own_states(walk):
    tokens, state = walk([2, 2, 2], [1, 40, 7])
    assert [len(row) for row in tokens] == [1, 40, 7]
    assert tokens[0] == tokens[1][:1]
    assert tokens[2] == tokens[1][:7]
    assert state[:, TOKENS].tolist() == [1, 40, 7]


def test_the_optimizer_of_a_loaded_export_leaves_both_ways(tmp_path):
    """It once took the shape of the way for one row for that of every batch."""

    def step(token, state):
        return tf.gather(tf.constant(TABLE), token)

    specs = [tf.TensorSpec([None, TOKENS]), tf.TensorSpec([None], tf.int32)]

    @tf.function(autograph=False, input_signature=specs)
    def write(state, length):
        ones = tf.ones_like(length)
        chances = tf.cast(ones, tf.float32)
        tokens, last = continuation(
            step,
            state,
            TOKENS,
            start=tf.zeros_like(length),
            length=length,
            temperature=chances,
            top_k=0 * ones,
            top_p=chances,
            seed=ones,
        )
        return {"tokens": tokens.to_tensor(), "state": last}

    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path), {"write": write})
    loaded = tf.saved_model.load(str(tmp_path))
    texts = {
        tuple(
            loaded.signatures["write"](state=TABLE[[3] * rows], length=tf.constant([40] * rows))["tokens"][-1].numpy()
        )
        for rows in (1, 3, 1, 2)
    }
    assert len(texts) == 1
    assert len(texts.pop()) == 40


@pytest.mark.parametrize("cut", [1, BLOCK - 1, BLOCK, 50])
@pytest.mark.parametrize("rows", [1, 2])
def test_two_calls_equal_one(walk, rows, cut):
    first, seeds = [6, 2][:rows], [9, 10][:rows]
    whole, state = walk(first, 75, seed=seeds)
    begun, middle = walk(first, cut, seed=seeds)
    rest, end = walk(None, 75 - cut, state=middle, start=cut, seed=seeds)
    assert [a + b for a, b in zip(begun, rest, strict=True)] == whole
    np.testing.assert_array_equal(end, state)


def test_rows_of_different_progress_go_on_together(walk):
    whole, _ = walk([6, 2], [40, 40], seed=[9, 10])
    begun, middle = walk([6, 2], [33, 4], seed=[9, 10])
    rest, _ = walk(None, [7, 36], state=middle, start=[33, 4], seed=[9, 10])
    assert [a + b for a, b in zip(begun, rest, strict=True)] == whole


def test_the_seed_decides_and_the_likeliest_text_has_none(walk):
    assert walk([0], 40, seed=1)[0] == walk([0], 40, seed=1)[0]
    assert walk([0], 40, seed=1)[0] != walk([0], 40, seed=2)[0]
    tokens, _ = walk([0, 0], 40, seed=[1, 2], temperature=0)
    assert tokens[0] == tokens[1]
    assert tokens[0][:2] == [TABLE[0].argmax(), TABLE[TABLE[0].argmax()].argmax()]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length is below 1"),
        ({"length": -5}, "length is below 1"),
        ({"length": MAX_LENGTH + 1}, "length is above 100000"),
        ({"length": 1, "start": MAX_LENGTH}, "length is above 100000"),
        ({"length": 1, "start": 2**31 - 1}, "length is above 100000"),
        ({"length": 1, "start": -1}, "start is below 0"),
        ({"temperature": -0.1}, "temperature is below 0"),
        ({"temperature": np.nan}, "temperature is below 0"),
        ({"top_k": -1}, "top_k is below 0"),
        ({"top_p": 0.0}, "top_p is not above 0"),
    ],
)
def test_settings_out_of_range_are_refused_inside_the_graph(count, rows, settings, message):
    """One bad row refuses the batch."""
    usual = {"length": 3, "start": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    values = {key: [value, *[usual[key]] * (rows - 1)] for key, value in settings.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        count([1, 2][:rows], **{"length": 3} | values)
    assert count([1, 2][:rows], 3)[0][0] == [2, 3, 4]


def test_the_length_of_all_rows_together_is_limited(count):
    with pytest.raises(tf.errors.InvalidArgumentError, match="length of all rows is above 1000000"):
        count([1] * 11, length=[1] * 10 + [MAX_LENGTH])
    with pytest.raises(tf.errors.InvalidArgumentError, match="length of all rows is above 1000000"):
        count([1] * 1001, length=1, start=[0] * 1000 + [1000])


def test_the_limit_itself_is_allowed(count):
    state = np.concatenate([COUNTING[[4]], [[0]]], 1).astype(np.float32)
    assert count(None, 2, state=state, start=MAX_LENGTH - 2)[0] == [[5, 6]]
