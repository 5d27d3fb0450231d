"""Loaded signatures whose weights are constants: widened once instead of at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def frozen(model: Any, name: str) -> Callable[..., dict[str, tf.Tensor]]:
    """Makes constants of the variables that a signature reads.

    What depends on constants alone is then computed once, such as the float32 form of weights that are stored in half
    precision; and oneDNN keeps the order of weights that it likes best. It takes 0.05 to 2 s, and memory for the
    weights.

    Args:
        model: what `tf.saved_model.load` returned; to be kept for as long as the result is used, since lookup tables
            stay its own.
        name: of the signature.

    Returns:
        A function of the same keyword tensors that returns the same dict; the signature itself if it cannot be
        converted, or if any signature of the model changes variables.
    """
    return model.signatures[name] if _changes_variables(model) else _with_constants(model.signatures[name])


def _with_constants(signature: Any) -> Callable[..., dict[str, tf.Tensor]]:
    try:
        converted = convert_variables_to_constants_v2(signature)
    except (ValueError, KeyError, tf.errors.OpError):
        return signature
    tables = {inner.name: outer for outer, inner in signature.graph.captures}
    names = [tensor.name for tensor in converted.inputs]
    outputs = sorted(signature.structured_outputs)

    def call(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = [tables[name] if name in tables else inputs[name.partition(":")[0]] for name in names]
        # A call of `converted` itself first tries a signature that never fits; the hidden error holds all inputs as
        # text, which takes a second for a batch of photographs (findings/tensorflow_frozen_calls.sh).
        return dict(zip(outputs, converted._call_flat(values, converted.captured_inputs), strict=True))

    return call


def frozen_all(model: Any) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """`frozen` of every signature by its name; one that stands under two names, as the default does, is made once."""
    if _changes_variables(model):
        return dict(model.signatures)
    made: dict[tuple[Any, ...], Callable[..., dict[str, tf.Tensor]]] = {}
    functions = {}
    for name, signature in model.signatures.items():
        # Of a signature's graph: its inputs, one call of a function by its name, its outputs, and what they read.
        nodes = signature.graph.as_graph_def().node
        for node in nodes:
            node.attr.pop("_user_specified_name", None)  # of captures a number that counts up
        read = tuple(id(outer) for outer, _ in signature.graph.captures)
        outputs = tuple(sorted(signature.structured_outputs))
        same = (read, outputs, *(node.SerializeToString(deterministic=True) for node in nodes))
        if same not in made:
            made[same] = _with_constants(signature)
        functions[name] = made[same]
    return functions


def _changes_variables(model: Any) -> bool:
    """Whether any signature does, whose change others would have to see."""
    graphs = [signature.graph.as_graph_def() for signature in model.signatures.values()]
    parts = (part for graph in graphs for part in (graph.node, *(f.node_def for f in graph.library.function)))
    changes = ("Assign", "ResourceApply", "ResourceScatter")
    return any(node.op.startswith(changes) for part in parts for node in part)
