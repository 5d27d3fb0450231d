import unicodedata
from collections import Counter

import block_checks
import keras
import numpy as np
import oracles_text as oracles
import pytest
import tensorflow as tf

from kerasdl.blocks.sentence_convolution import MaxOverTimeConvolution, sentence_convolution
from kerasdl.data.vocabulary import CharacterVocabulary, WordVocabulary, build_vocabulary, characters_of

WORDS = ["the", "film", "good", "isn't", "!", "語", "naïve"]
TEXTS = [
    "The film isn't good!",
    "",
    " \t\n",
    "<br /><br />the\u00a0film\u3000good",
    "日本語の film",
    "unheard of",
    "\ufeffthe\x00film\u200bgood",
    "👍🏽 👩‍👩‍👧 ❤️ the",
    "NAÏVE ΟΔΟΣ Й",
]


def exported(folder, layer, **functions):
    """What TensorFlow alone makes of functions of one string tensor that use the layer."""
    module = tf.Module()
    module.layer = layer
    strings = tf.TensorSpec([None], tf.string, "strings")
    signatures = {name: tf.function(f).get_concrete_function(strings) for name, f in functions.items()}
    tf.saved_model.save(module, str(folder), signatures)
    loaded = tf.saved_model.load(str(folder))
    return loaded, {name: loaded.signatures[name] for name in functions}


def words_of(text):
    (row,) = WordVocabulary.tokenize([text]).to_list()
    return [word.decode() for word in row]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5<br />stars -- 'GREAT'!", ["it's", "3", ".", "5", "stars", "-", "-", "'", "great", "'", "!"]),
        ("don’t cats’ rock'n'roll", ["don't", "cats", "'", "rock'n'roll"]),
        ("東京に行くcafé", ["東", "京", "に", "行", "く", "café"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("ດີຫຼາຍ film", ["ດີ", "ຫຼ", "າ", "ຍ", "film"]),
        ("ខ្ញុំស្រឡាញ់១២", ["ខ្ញុំ", "ស្រ", "ឡា", "ញ់", "១២"]),
        ("ကောင်းတယ် သတ္တိ။", ["ကော", "င်း", "တ", "ယ်", "သ", "တ္တိ", "။"]),
        ("ꦥꦚ꧀ꦗꦁ ᬩᬮᬶ ꋍꏂ", ["ꦥ", "ꦚ꧀ꦗꦁ", "ᬩ", "ᬮᬶ", "ꋍ", "ꏂ"]),
        ("བདེ་ལེགས།", ["བདེ", "་", "ལེགས", "།"]),
        ("हिन्दी العَرَبِيَّة", ["हिन्दी", "العَرَبِيَّة"]),
        ("e\u0301te\u0301 x\u0301!\u0301", ["e\u0301te\u0301", "x\u0301", "!\u0301"]),
        ("👍🏽ok❤\ufe0f", ["👍", "🏽", "ok", "❤\ufe0f"]),
        ("a_b@c.de", ["a", "_", "b", "@", "c", ".", "de"]),
    ],
)
def test_words_of_a_text(text, expected):
    assert words_of(text) == expected
    assert oracles.words(text) == expected


# Letters whose Line_Break is SA (Unicode 16, LineBreak.txt), by their first and last in each script.
COMPLEX_CONTEXT = {
    "Thai": "\u0e01-\u0e46", "Lao": "\u0e81-\u0ec6", "Myanmar": "\u1000-\u109f", "Khmer": "\u1780-\u17dc",
    "Tai Le": "\u1950-\u1974", "New Tai Lue": "\u1980-\u19c9", "Tai Tham": "\u1a20-\u1a54",
    "Myanmar Extended-B": "\ua9e0-\ua9fe", "Myanmar Extended-A": "\uaa60-\uaa7f", "Tai Viet": "\uaa80-\uaadf",
    "Ahom": "\U00011700-\U0001171a",
}  # fmt: skip


@pytest.mark.parametrize("script", COMPLEX_CONTEXT)
def test_letters_of_scripts_that_need_a_dictionary_are_words(script):
    first, last = map(ord, COMPLEX_CONTEXT[script].split("-"))
    letters = [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code))[0] == "L"]
    assert words_of("".join(letters)) == letters


def test_scripts_with_spaces_keep_their_words():
    for word in ("हिन्दी", "বাংলা", "தமிழ்", "한국어", "ქართული", "አማርኛ"):
        assert words_of(word) == [word]


def test_words_equal_oracle_on_any_mixture():
    characters = ["<br />", "e\u0301", *"aZ9''’.,<-_ \t\n\x00\x7f\x85éß½\u00ad\u2028\u3000"]
    characters += "日のカーก\u0e35한йن\u0651👍🏽\u200d\ufe0f\U000e0001"
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(characters, 30)) for _ in range(300)]
    found = [[word.decode() for word in row] for row in WordVocabulary.tokenize(texts).to_list()]
    assert found == [oracles.words(text) for text in texts]
    assert max(len(row) for row in found) > 15


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f\x91", b"\xc0\x80", b"\x00"])
def test_invalid_utf8_separates_words(junk):
    assert WordVocabulary.tokenize([b"good" + junk + b" film", junk]).to_list() == [[b"good", b"film"], []]


def test_ids_are_those_of_the_words():
    vocabulary = WordVocabulary(WORDS)
    id_of = {word: i for i, word in enumerate(WORDS, 2)}
    expected = [[id_of.get(word, 1) for word in oracles.words(text)] for text in TEXTS]
    assert sorted({i for row in expected for i in row}) == list(range(1, vocabulary.size))
    ids = vocabulary.ids(np.array(TEXTS))
    assert ids.dtype == tf.int32
    assert ids.to_list() == expected
    padded = vocabulary(tf.constant(TEXTS))
    assert padded.dtype == tf.int32
    longest = max(map(len, expected))
    np.testing.assert_array_equal(padded, [row + [0] * (longest - len(row)) for row in expected])


@pytest.mark.parametrize(("texts", "expected"), [([""], [[0]]), (["?"], [[1]]), ([], np.zeros((0, 1)))])
def test_there_is_a_column_for_nothing(texts, expected):
    np.testing.assert_array_equal(WordVocabulary(WORDS)(tf.constant(texts, tf.string)), expected)


def test_a_hundred_thousand_words():
    vocabulary = WordVocabulary(WORDS, max_words=5)
    text = "the film " + "unheard, " * 50_000 + "isn't good"
    np.testing.assert_array_equal(vocabulary(tf.constant([text])), [[2, 3, 1, 5, 4]])
    assert WordVocabulary(WORDS)(tf.constant([text])).shape == (1, 100_004)


@pytest.mark.parametrize("max_words", [1, 2, 3, 6, 7, 8, 100])
def test_the_middle_of_a_longer_text_is_cut(max_words):
    words = [f"w{i}" for i in range(10)]
    texts = [" ".join(words[:n]) for n in (7, 0, 1, 10)]

    def cut(row):
        return row if len(row) <= max_words else row[: max_words // 2] + row[len(row) - (max_words - max_words // 2) :]

    expected = [cut(list(range(2, 2 + n))) for n in (7, 0, 1, 10)]
    vocabulary = WordVocabulary(words, max_words)
    assert vocabulary.ids(texts).to_list() == expected
    assert vocabulary.kept_words(texts).to_list() == [[words[i - 2].encode() for i in row] for row in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b", "a"],), "words holds 'a' twice, expected each once"),
        (([],), "words is empty, expected one or more"),
        ((["a"], 0), "max_words is 0, expected 1 or more, or None"),
    ],
)
def test_mistakes_in_a_word_vocabulary(arguments, message):
    with pytest.raises(ValueError, match=message):
        WordVocabulary(*arguments)


def test_vocabulary_holds_the_most_frequent_words():
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(["B", "a", "é", "c,", "日d", "rare"], 9, p=[0.3, 0.3, 0.2, 0.1, 0.09, 0.01]))]
    texts = texts * 700 + ["once zero-times"] * 900  # more than a batch of 1000
    counts = Counter(word for text in texts for word in oracles.words(text))
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert build_vocabulary(texts, 100) == expected
    assert build_vocabulary((text.encode() for text in texts), 3) == expected[:3]
    assert build_vocabulary(np.array(texts), 100, min_count=901) == [word for word in expected if counts[word] > 900]
    assert build_vocabulary([], 5) == []


def test_equally_frequent_words_are_in_alphabetical_order():
    assert build_vocabulary(["z y x", "b a B"], 4) == ["b", "a", "x", "y"]


def test_export_of_a_word_vocabulary_needs_tensorflow_only(tmp_path):
    vocabulary = WordVocabulary(WORDS, max_words=4)
    _, signatures = exported(tmp_path, vocabulary, ids=lambda strings: {"tokens": vocabulary(strings)})
    (tokens,) = signatures["ids"](strings=tf.constant(TEXTS)).values()
    np.testing.assert_array_equal(tokens, vocabulary(tf.constant(TEXTS)))
    assert np.any(tokens == 6)


def test_saved_word_vocabulary_reloads_within_a_model(tmp_path):
    strings = keras.Input((), dtype="string")
    model = keras.Model(strings, WordVocabulary(WORDS, max_words=3, name="words")(strings))
    assert model.output.shape == (None, None)
    assert model.output.dtype == "int32"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("words").get_config() == model.get_layer("words").get_config()
    tokens = loaded(tf.constant(TEXTS))
    np.testing.assert_array_equal(tokens, WordVocabulary(WORDS, 3)(tf.constant(TEXTS)))
    assert tokens.shape == (len(TEXTS), 3)


CHARACTERS = list("cab é👍'?")


def test_characters_are_their_places():
    vocabulary = CharacterVocabulary(CHARACTERS)
    assert vocabulary.size == 8
    ids = vocabulary.encode(["abc", "", "É aéÿ\x00\U0010ffff👍"])
    assert ids.dtype == tf.int32
    assert ids.to_list() == [[1, 2, 0], [], [3, 1, 4, 5]]
    assert vocabulary.encode([b"a\xffb\xc3"]).to_list() == [[1, 2]]
    assert vocabulary.encode(tf.constant([], tf.string)).to_list() == []


def test_bytes_are_their_values():
    vocabulary = CharacterVocabulary()
    assert vocabulary.size == 256
    texts = [bytes(range(256)), b"", "é👍".encode()]
    assert vocabulary.encode(texts).to_list() == [list(text) for text in texts]
    assert vocabulary.encode(tf.constant([], tf.string)).to_list() == []


@pytest.mark.parametrize("characters", [None, CHARACTERS])
def test_decode_undoes_encode(characters):
    vocabulary = CharacterVocabulary(characters)
    texts = ["a b", "é👍'", "???"] if characters else ["\ufeff", "\x00", "€"]  # three ids each
    ids = vocabulary.encode(texts).to_tensor()
    assert ids.shape == (3, 3)
    padding = "c" if characters else "\x00"
    lengths = [len(row) for row in vocabulary.encode(texts).to_list()]
    expected = [text + padding * (3 - n) for text, n in zip(texts, lengths, strict=True)]
    assert [text.decode() for text in vocabulary.decode(ids).numpy()] == expected
    np.testing.assert_array_equal(vocabulary.decode(np.zeros((2, 0), np.int32)), [b"", b""])


def test_decoded_bytes_are_valid_utf8():
    rows = [b"a\xff\xffb", b"\xe2\x82x.", b"ok\xe2\x82", b"\xf0\x9f\x91\x8d"]
    ids = np.array([list(row) for row in rows])
    decoded = [text.decode() for text in CharacterVocabulary().decode(ids).numpy()]
    assert decoded == [row.decode(errors="replace") for row in rows]
    noise = np.random.default_rng(0).integers(0, 256, (50, 40))
    texts = [text.decode() for text in CharacterVocabulary().decode(noise).numpy()]
    assert all("\ufffd" in text for text in texts)


@pytest.mark.parametrize("characters", [None, CHARACTERS])
def test_encode_text_equals_encode(characters):
    vocabulary = CharacterVocabulary(characters)
    text = "a café? 👍 zebra's"
    ids = vocabulary.encode_text(text)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, vocabulary.encode([text])[0])
    assert len(ids) > 8
    np.testing.assert_array_equal(vocabulary.encode_text("a\ud800b"), vocabulary.encode_text("ab"))
    assert vocabulary.encode_text("").shape == (0,)


def test_characters_of_a_text_are_sorted():
    characters = characters_of("née: zebra\n")
    assert characters == ["\n", " ", ":", "a", "b", "e", "n", "r", "z", "é"]
    text = "a zen bar\n"
    vocabulary = CharacterVocabulary(characters)
    assert vocabulary.decode(vocabulary.encode_text(text)[None]).numpy()[0].decode() == text


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        (["a", "bc"], "characters holds 'bc', expected single code points"),
        ([], "characters holds nothing, expected single code points"),
        (["a", "b", "b"], "characters holds 'b' twice, expected each once"),
    ],
)
def test_mistakes_in_a_character_vocabulary(characters, message):
    with pytest.raises(ValueError, match=message):
        CharacterVocabulary(characters)


@pytest.mark.parametrize("characters", [None, CHARACTERS])
def test_export_of_a_character_vocabulary_needs_tensorflow_only(characters, tmp_path):
    vocabulary = CharacterVocabulary(characters)

    def answer(strings):
        ids, mask = vocabulary(strings)
        return {"ids": ids, "mask": mask, "text": vocabulary.decode(ids)}

    _, signatures = exported(tmp_path, vocabulary, answer=answer)
    strings = tf.constant(["cab", "", "bé"])
    result = signatures["answer"](strings=strings)
    rows = vocabulary.encode(strings).to_list()
    np.testing.assert_array_equal(result["mask"], [[i < len(row) for i in range(3)] for row in rows])
    assert [ids[: len(row)].tolist() for ids, row in zip(result["ids"].numpy(), rows, strict=True)] == rows
    assert result["text"].numpy()[0] == b"cab"
    assert [array.shape for array in vocabulary(tf.constant([""]))] == [(1, 0), (1, 0)]


@pytest.mark.parametrize("characters", [None, CHARACTERS])
def test_saved_character_vocabulary_reloads_within_a_model(characters, tmp_path):
    strings = keras.Input((), dtype="string")
    model = keras.Model(strings, CharacterVocabulary(characters, name="characters")(strings))
    assert [(tensor.shape, tensor.dtype) for tensor in model.outputs] == [((None, None), d) for d in ("int32", "bool")]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("characters").get_config() == model.get_layer("characters").get_config()
    np.testing.assert_array_equal(loaded(tf.constant(["a cab"]))[0], model(tf.constant(["a cab"]))[0])


LENGTHS = [7, 4, 3, 2, 1, 0]


def sentence_model(masked=True, activation="relu"):
    x, mask = keras.Input((None, 3)), keras.Input((None,), dtype="bool")
    block = sentence_convolution(
        x, 4, widths=(1, 3, 4), activation=activation, mask=mask if masked else None, name="block"
    )
    model = keras.Model([x, mask] if masked else x, block)
    block_checks.random_weights(model)
    return model


def sentences(length=7, garbage=0.0):
    x = np.random.default_rng(1).normal(size=(len(LENGTHS), 7, 3))
    mask = np.arange(length) < np.array(LENGTHS)[:, None]
    x = np.concatenate([x, np.full((len(LENGTHS), max(0, length - 7), 3), garbage)], 1)[:, :length]
    return np.where(mask[..., None], x, garbage).astype("float32"), mask


def expected_maxima(model, x, lengths):
    w = block_checks.weights_of(model)
    return [
        np.concatenate(
            [oracles.max_over_time(s[:n], w[f"block_width{k}/kernel"], w[f"block_width{k}/bias"]) for k in (1, 3, 4)]
        )
        for s, n in zip(np.float64(x), lengths, strict=True)
    ]


@pytest.mark.parametrize("garbage", [0.0, 100.0])
@pytest.mark.parametrize("length", [7, 12])
def test_sentence_convolution_equals_oracle_whatever_the_padding(length, garbage):
    model = sentence_model()
    x, mask = sentences(length, garbage)
    expected = expected_maxima(model, x, LENGTHS)
    assert np.shape(expected) == (6, 12)
    assert not np.any(expected[-1])
    np.testing.assert_allclose(model([x, mask]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_sentence_convolution_without_mask(length):
    model = sentence_model(masked=False)
    x = sentences()[0][:1, :length]
    np.testing.assert_allclose(model(x), expected_maxima(model, x, [length]), rtol=1e-4, atol=1e-5)
    assert block_checks.shape_for_empty_batch(model, length, 3) == (0, 12)


def test_padding_leaves_the_gradients_of_sentence_convolution():
    """Unlike relu, tanh may be negative at its largest, so that one window too many would show."""
    model = sentence_model(activation="tanh")
    results = []
    for length, garbage in ((7, 0.0), (11, 50.0)):
        x, mask = (tf.constant(value) for value in sentences(length, garbage))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model([x, mask])
            loss = tf.reduce_sum(y * tf.reshape(tf.range(72.0), (6, 12)))
        slope, *slopes = tape.gradient(loss, [x, *(weight.value for weight in model.trainable_weights)])
        assert not np.any(slope.numpy()[~mask.numpy()])
        results.append([y, slope[:, :7], *slopes])
    for short, long in zip(*results, strict=True):
        assert np.isfinite(short).all()
        np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)


def test_sentence_convolution_trains_reloads_and_has_its_paper_size(tmp_path):
    model = sentence_model()
    assert block_checks.dead_weights(model, sentences()) == []
    assert block_checks.num_trainable(model) == (1 + 3 + 4) * 3 * 4 + 3 * 4
    assert [layer.name for layer in model.layers[2:]] == ["block_width1", "block_width3", "block_width4", "block"]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(sentences()), model(sentences()))


def test_max_over_time_in_half_precision():
    layers = MaxOverTimeConvolution(4, 2, dtype="mixed_bfloat16"), MaxOverTimeConvolution(4, 2)
    x, mask = sentences()
    for layer in layers:
        layer.build(x.shape)
    layers[1].set_weights(layers[0].get_weights())
    half, single = (layer(x, mask=mask) for layer in layers)
    assert half.dtype == "bfloat16"
    np.testing.assert_allclose(tf.cast(half, tf.float32), single, atol=0.03)
    np.testing.assert_array_equal(tf.cast(half, tf.float32)[-1], np.zeros(4))


def test_characters_are_words_with_padding_and_unknown(tmp_path):
    names = ["O’Neill", "van  der\tBerg", "", "\u0141uk"]
    found = [[one.decode() for one in row] for row in WordVocabulary.tokenize(names, characters=True).to_list()]
    assert found == [list("o'neill"), list("van der berg"), [], list("\u0142uk")]
    letters = build_vocabulary(names, 100, characters=True)
    assert letters[0] == "e"
    assert set(letters) == set("o'neillvan der berg\u0142uk")
    vocabulary = WordVocabulary(letters, 6, characters=True)
    tokens = vocabulary(tf.constant(["Ole", "", "x", "benbenben"]))
    assert tokens.shape == (4, 6)
    assert tokens[1].numpy().tolist() == [0] * 6
    assert tokens[2].numpy().tolist() == [1, *[0] * 5]
    assert [vocabulary.words[i - 2] for i in tokens[3].numpy()] == list("benben")
    again = WordVocabulary.from_config(vocabulary.get_config())
    np.testing.assert_array_equal(again(tf.constant(["Ole"])), vocabulary(tf.constant(["Ole"])))
