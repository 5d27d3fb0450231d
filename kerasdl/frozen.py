"""Loaded signatures whose weights are constants: widened once instead of at each call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import cancellation as tensorflow_cancellation
from tensorflow.python.eager import context, execute
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


class Cancellation:
    """Ends the calls that it is given to, from another thread, before their next operation."""

    def __init__(self) -> None:
        self.manager = tensorflow_cancellation.CancellationManager()

    def cancel(self) -> None:
        """Ends them; they raise `tf.errors.CancelledError`, and so do later ones."""
        self.manager.start_cancel()

    @property
    def cancelled(self) -> bool:
        """Whether they are."""
        return bool(self.manager.is_cancelled)


class SignatureFunction:
    """A signature of a loaded model, for calls from many threads.

    Args:
        function: computes it.
        given: of each tensor that `function` takes before its captures: the name of the input, or a tensor.
        outputs: names of its outputs, sorted.
    """

    def __init__(self, function: Any, given: list[Any], outputs: list[str]) -> None:
        self._function, self._given, self._outputs = function, given, outputs

    def __call__(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """The outputs of the inputs."""
        return self.call(inputs)

    def call(self, inputs: Mapping[str, tf.Tensor], cancellation: Cancellation | None = None) -> dict[str, tf.Tensor]:
        """The outputs of the inputs.

        Args:
            inputs: tensors by name.
            cancellation: may end the call.

        Raises:
            tf.errors.OpError: the graph refuses the values, or the call was ended.
        """
        values = [inputs[one] if isinstance(one, str) else one for one in self._given]
        captured = self._function.captured_inputs
        if cancellation is None:
            # A call of the function itself may first try a signature that never fits; the hidden error holds all inputs
            # as text, which takes a second for a batch of photographs (findings/tensorflow_frozen_calls.sh).
            found = self._function._call_flat(values, captured)
            found = [found[name] for name in self._outputs] if isinstance(found, Mapping) else found
        else:
            # TensorFlow's own way, `get_cancelable_function`, is one variable for all threads: what ends one call ends
            # others, too (findings/tensorflow_cancellation_threads.sh).
            inner, runtime = self._function._inference_function, context.context()
            found = execute.execute_with_cancellation(
                inner.name.decode(),
                num_outputs=len(inner.function_type.flat_outputs),
                inputs=[*values, *captured],
                attrs=tuple(itertools.chain(*runtime.function_call_options.as_attrs().items())),
                ctx=runtime,
                cancellation_manager=cancellation.manager,
            )
        return dict(zip(self._outputs, found, strict=True))


def frozen(model: Any, name: str) -> SignatureFunction:
    """Makes constants of the variables that a signature reads.

    What depends on constants alone is then computed once, such as the float32 form of weights that are stored in half
    precision; and oneDNN keeps the order of weights that it likes best. It takes 0.05 to 2 s, and memory for the
    weights.

    Args:
        model: what `tf.saved_model.load` returned; to be kept for as long as the result is used, since lookup tables
            stay its own.
        name: of the signature.

    Returns:
        The signature; as it is if it cannot be converted, or if any signature of the model changes variables.
    """
    return _signature(model.signatures[name], constant=not _changes_variables(model))


def _signature(signature: Any, *, constant: bool) -> SignatureFunction:
    outputs = sorted(signature.structured_outputs)
    function, tables = signature, {}
    if constant:
        try:
            function = convert_variables_to_constants_v2(signature)
            tables = {inner.name: outer for outer, inner in signature.graph.captures}
        except (ValueError, KeyError, tf.errors.OpError):
            pass
    names = [tensor.name for tensor in function.inputs[: len(function.inputs) - len(function.captured_inputs)]]
    return SignatureFunction(function, [tables.get(name, name.partition(":")[0]) for name in names], outputs)


def frozen_all(model: Any) -> dict[str, SignatureFunction]:
    """`frozen` of every signature by its name; one that stands under two names, as the default does, is made once."""
    constant = not _changes_variables(model)
    made: dict[tuple[Any, ...], SignatureFunction] = {}
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
            made[same] = _signature(signature, constant=constant)
        functions[name] = made[same]
    return functions


def _changes_variables(model: Any) -> bool:
    """Whether any signature does, whose change others would have to see."""
    graphs = [signature.graph.as_graph_def() for signature in model.signatures.values()]
    parts = (part for graph in graphs for part in (graph.node, *(f.node_def for f in graph.library.function)))
    changes = ("Assign", "ResourceApply", "ResourceScatter")
    return any(node.op.startswith(changes) for part in parts for node in part)
