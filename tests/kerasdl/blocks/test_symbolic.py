"""Holds for every block, also one that is written tomorrow."""

import importlib
import inspect
import pkgutil

import keras
import numpy as np
import pytest

from kerasdl import blocks
from kerasdl.blocks.convolution import convolution
from kerasdl.blocks.symbolic import require_symbolic


def all_blocks():
    """A block is a public function of `kerasdl.blocks` whose first argument is called x."""
    for module_info in pkgutil.iter_modules(blocks.__path__, f"{blocks.__name__}."):
        if module_info.name == require_symbolic.__module__:
            continue
        module = importlib.import_module(module_info.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and next(iter(inspect.signature(function).parameters), None) == "x":
                yield pytest.param(function, id=f"{module.__name__}.{name}")


BLOCKS = list(all_blocks())


def required_arguments(block):
    """Something for each argument without default; the check comes before any of them is looked at."""
    parameters = list(inspect.signature(block).parameters.values())[1:]
    return {
        parameter.name: "block" if parameter.name == "name" else 4
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
    }


def test_blocks_are_found():
    assert {"convolution", "basic_block", "fast_network", "maxout"} <= {block.values[0].__name__ for block in BLOCKS}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_concrete_array_is_refused(block):
    with pytest.raises(ValueError, match=rf"{block.__name__} was called on a ndarray.*keras\.Input"):
        block(np.zeros((1, 8, 8, 4), "float32"), **required_arguments(block))


@pytest.mark.parametrize("block", BLOCKS)
def test_documentation_has_its_parts(block):
    text = inspect.getdoc(block)
    for part in ("Args:", "Returns:", "Raises:", "Source:"):
        assert f"\n{part}" in text, f"{block.__name__} lacks {part}"
    arguments = text.split("\nArgs:")[1].split("\nReturns:")[0]
    results = text.split("\nReturns:")[1].split("\nRaises:")[0]
    for section, where in ((arguments, "Args"), (results, "Returns")):
        assert "32[" in section, f"{block.__name__} states no shape in {where}"
    for parameter in inspect.signature(block).parameters:
        assert f"    {parameter}: " in arguments, f"{block.__name__} does not explain {parameter}"


@pytest.mark.parametrize("block", BLOCKS)
def test_signature_follows_the_rules(block):
    parameters = inspect.signature(block).parameters
    keyword_only = [p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert parameters["name"] in keyword_only, "name is keyword-only"
    assert parameters["name"].default is inspect.Parameter.empty, "name is required"
    assert len(keyword_only) <= 6
    assert all(p.default is inspect.Parameter.empty for p in parameters.values() if p not in keyword_only)


def test_a_block_inside_a_layer_call_is_refused():
    class Wrong(keras.layers.Layer):
        def call(self, x):
            return convolution(x, 4, name="inner")

    with pytest.raises(ValueError, match="convolution was called on"):
        Wrong()(keras.Input((8, 8, 3)))


def test_a_symbolic_tensor_is_accepted():
    assert require_symbolic(keras.Input((3,)), "block") is None
