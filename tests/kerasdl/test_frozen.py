import sys

import numpy as np
import tensorflow as tf

from kerasdl.frozen import frozen, frozen_all


class Model(tf.Module):
    """Half-precision weights, a lookup table, a loop, and a counter that one signature changes."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.cast(tf.reshape(tf.range(6.0), [2, 3]), tf.float16))
        self.count = tf.Variable(0)
        words = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2]))
        self.table = tf.lookup.StaticHashTable(words, default_value=0)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x"), tf.TensorSpec([None], tf.string, "word")])
    def look_up(self, x, word):
        def step(i, y):
            return i + 1, y + tf.matmul(x, tf.cast(self.kernel, tf.float32))

        _, y = tf.while_loop(lambda i, _: i < 3, step, (0, tf.zeros([tf.shape(x)[0], 3])))
        return {"z_first": y, "a_second": self.table.lookup(word)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "by")])
    def add(self, by):
        return {"count": self.count.assign_add(by)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "times")])
    def read(self, times):
        return {"count": times * self.count}


def loaded(folder, *names):
    model = Model()
    tf.saved_model.save(model, str(folder), {name: getattr(model, name) for name in names})
    return tf.saved_model.load(str(folder))


def test_a_frozen_signature_answers_the_same_and_reads_no_variable(tmp_path):
    model = loaded(tmp_path, "look_up", "read")
    signature = model.signatures["look_up"]
    x, word = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant(["b", "other"])
    made = frozen(model, "look_up")
    assert made is not signature
    expected = signature(x=x, word=word)
    assert set(made(x=x, word=word)) == set(expected) == {"z_first", "a_second"}
    for name, value in made(word=word, x=x).items():
        np.testing.assert_array_equal(value, expected[name])
    np.testing.assert_array_equal(expected["z_first"], 3 * np.array([[6, 9, 12], [12, 19, 26]]))
    model.kernel.assign(tf.zeros_like(model.kernel))
    np.testing.assert_array_equal(made(x=x, word=word)["z_first"], expected["z_first"])
    np.testing.assert_array_equal(signature(x=x, word=word)["z_first"], np.zeros((2, 3)))


def test_what_one_signature_changes_another_reads(tmp_path):
    model = loaded(tmp_path, "add", "read")
    together = frozen_all(model)
    add, read = frozen(model, "add"), together["read"]
    assert together.keys() == {"add", "read"}
    for expected in (2, 4, 6):
        assert int(add(by=tf.constant(2))["count"]) == expected
        assert int(read(times=tf.constant(10))["count"]) == 10 * expected


def test_a_signature_of_two_names_is_made_once_and_is_no_other(tmp_path):
    model = Model()
    signatures = {"serving_default": model.look_up, "look_up": model.look_up, "read": model.read}
    tf.saved_model.save(model, str(tmp_path), signatures)
    made = frozen_all(tf.saved_model.load(str(tmp_path)))
    assert made.keys() == signatures.keys()
    assert made["serving_default"] is made["look_up"]
    assert int(made["read"](times=tf.constant(10))["count"]) == 0
    answer = made["look_up"](x=tf.ones((1, 2)), word=tf.constant(["b"]))
    assert (int(answer["a_second"][0]), answer["z_first"].numpy().tolist()) == (2, [[9, 15, 21]])


def test_signatures_that_differ_in_a_name_alone_are_two(tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "x")])
        def first(self, x):
            return {"y": x + 1}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "x")])
        def second(self, x):
            return {"y": x + 2}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "x")])
        def third(self, x):
            return {"z": x + 1}

    model = Two()
    tf.saved_model.save(model, str(tmp_path), {name: getattr(model, name) for name in ("first", "second", "third")})
    made = frozen_all(tf.saved_model.load(str(tmp_path)))
    said = {name: {key: int(value) for key, value in call(x=tf.constant(1)).items()} for name, call in made.items()}
    assert said == {"first": {"y": 2}, "second": {"y": 3}, "third": {"z": 2}}


def test_a_call_raises_no_hidden_error_which_would_hold_its_inputs_as_text(tmp_path):
    made = frozen(loaded(tmp_path, "look_up", "read"), "look_up")
    errors = []

    def trace(frame, event, argument):
        errors.extend([argument[0]] if event == "exception" and issubclass(argument[0], Exception) else [])
        return trace

    x, word = tf.ones((1, 2)), tf.constant([b"b" * 1000])
    made(x=x, word=word)
    sys.settrace(trace)
    try:
        made(x=x, word=word)
    finally:
        sys.settrace(None)
    assert TypeError not in errors
