import numpy as np
import pytest
import tensorflow as tf

from kerasdl.frozen import frozen


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


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder, model = str(tmp_path_factory.mktemp("model")), Model()
    tf.saved_model.save(model, folder, {"look_up": model.look_up, "add": model.add})
    return tf.saved_model.load(folder)


def test_a_frozen_signature_answers_the_same_and_reads_no_variable(loaded):
    signature = loaded.signatures["look_up"]
    x, word = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant(["b", "other"])
    made = frozen(signature)
    assert made is not signature
    expected = signature(x=x, word=word)
    assert set(made(x=x, word=word)) == set(expected) == {"z_first", "a_second"}
    for name, value in made(word=word, x=x).items():
        np.testing.assert_array_equal(value, expected[name])
    np.testing.assert_array_equal(expected["z_first"], 3 * np.array([[6, 9, 12], [12, 19, 26]]))
    loaded.kernel.assign(tf.zeros_like(loaded.kernel))
    np.testing.assert_array_equal(made(x=x, word=word)["z_first"], expected["z_first"])
    np.testing.assert_array_equal(signature(x=x, word=word)["z_first"], np.zeros((2, 3)))


def test_a_signature_that_changes_a_variable_stays_itself(loaded):
    add = frozen(loaded.signatures["add"])
    assert [int(add(by=tf.constant(2))["count"]) for _ in range(3)] == [2, 4, 6]
