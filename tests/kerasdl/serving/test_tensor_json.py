"""The codec alone; what a client sees of it is tested through the server."""

import json
import math

import numpy as np
import pytest

from kerasdl.serving.errors import ServingError
from kerasdl.serving.tensor_json import _check_tensor, _convert, _first_shape, encode_outputs, parse_object


def _random_value(random: np.random.Generator, depth: int) -> object:
    """A nested list that is usually regular and of one type, and sometimes at fault."""
    if depth and random.random() < 0.9:
        item = _random_value(random, depth - 1)
        items = [item] * int(random.integers(0, 3))
        if items and random.random() < 0.3:
            items[-1] = _random_value(random, depth - 1)
        return items
    return [1, 2.5, True, None, "a", {"b64": "AAA="}, {"b64": "?"}, 2**40, -1, 2**70][int(random.integers(10))]


@pytest.mark.parametrize("dtype", ["float", "int32", "uint64", "bool", "string"])
def test_quick_conversion_refuses_exactly_what_the_slow_walk_refuses(dtype):
    random = np.random.default_rng(1)
    outcomes = {True: 0, False: 0}
    for _ in range(4000):
        value = _random_value(random, depth=3)
        array = _convert(value, dtype)
        try:
            _check_tensor(value, _first_shape(value), dtype)
            accepted = True
        except ServingError:
            accepted = False
        assert accepted == (array is not None), value
        if array is not None:
            assert list(array.shape) == _first_shape(value)
        outcomes[accepted] += 1
    assert min(outcomes.values()) > 200


def test_conversion_keeps_order_and_type():
    array = _convert([[[1, 2], [3, 4], [5, 6]]], "int16")
    assert array is not None
    assert array.dtype == np.int16
    assert array.tolist() == [[[1, 2], [3, 4], [5, 6]]]


def test_rank_beyond_numpy_is_refused():
    value: object = 1.0
    for _ in range(65):
        value = [value]
    assert _convert(value, "float") is None


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 0, 3), (2, 3, 1), (1, 2, 3, 2)])
def test_nesting_of_any_shape(shape):
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    assert json.loads(encode_outputs({"y": array}, "columnar")) == {"outputs": array.tolist()}
    assert json.loads(encode_outputs({"y": array}, "row")) == {"predictions": array.tolist()}
    both = json.loads(encode_outputs({"y": array, "z": array}, "row"))
    assert both == {"predictions": [{"y": row, "z": row} for row in array.tolist()]}


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1.5E+0999", "1" * 310 + ".0"])
def test_a_number_too_large_for_a_double_is_refused_and_is_no_infinity(number):
    with pytest.raises(ServingError, match="Number too big to be stored in double"):
        parse_object(f'{{"inputs": [1.5, {number}]}}'.encode())
    assert parse_object(f'{{"inputs": "{number}"}}'.encode()) == {"inputs": number}


def test_large_numbers_and_infinity_are_numbers():
    body = b'{"inputs": [1e308, -1E+308, 1e-400, Infinity, -Inf, "1e400"]}'
    assert parse_object(body)["inputs"] == [1e308, -1e308, 0.0, math.inf, -math.inf, "1e400"]
