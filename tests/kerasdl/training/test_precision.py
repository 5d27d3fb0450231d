import keras
import pytest

from kerasdl.training.precision import precision


@pytest.mark.parametrize(("kind", "compute"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_layers_compute_in_it_and_keep_float32_weights(kind, compute):
    before = keras.config.dtype_policy().name
    with precision(kind):
        layer = keras.layers.Dense(2)
    layer.build((None, 3))
    assert layer.compute_dtype == compute
    assert layer.kernel.dtype == "float32"
    assert keras.config.dtype_policy().name == before
