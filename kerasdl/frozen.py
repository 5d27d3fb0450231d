"""Loaded signatures whose weights are constants: widened once instead of at each call."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, function_pb2, graph_pb2, node_def_pb2, op_def_pb2
from tensorflow.python.eager import cancellation as tensorflow_cancellation
from tensorflow.python.eager import context, execute
from tensorflow.python.framework import convert_to_constants, op_def_registry


class Cancellation:
    """Ends the calls that it is given to, from another thread, before their next operation."""

    def __init__(self) -> None:
        self.manager = tensorflow_cancellation.CancellationManager()
        self._others: list[Callable[[], None]] = []
        self._asked, self._lock = False, threading.Lock()

    def cancel(self) -> None:
        """Ends them; they raise `tf.errors.CancelledError`, and so do later ones."""
        with self._lock:
            self._asked, others, self._others = True, self._others, []
        self.manager.start_cancel()
        for other in others:
            other()

    def then(self, other: Callable[[], None]) -> None:
        """Does something else, too, when `cancel` is called, or at once if it was."""
        with self._lock:
            if not self._asked:
                self._others.append(other)
                return
        other()

    @property
    def cancelled(self) -> bool:
        """Whether they are."""
        return bool(self.manager.is_cancelled)


class SignatureFunction:
    """A signature of a loaded model, for calls from many threads.

    Args:
        name: of a function of TensorFlow's eager context.
        given: of each tensor that the function takes: the name of the input, or a tensor.
        outputs: names of its outputs, sorted.
        owner: kept for as long as this is.
    """

    def __init__(self, name: str, given: list[Any], outputs: list[str], owner: Any = None) -> None:
        self._name, self._given, self._outputs, self._owner = name, given, outputs, owner

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
        # TensorFlow's own way to end calls, `get_cancelable_function`, is one variable for all threads: what ends one
        # call ends others, too (findings/tensorflow_cancellation_threads.sh). And its call of a function may first try
        # a signature that never fits; the hidden error holds all inputs as text, which takes a second for a batch of
        # photographs (findings/tensorflow_frozen_calls.sh).
        runtime = context.context()
        found = execute.execute_with_cancellation(
            self._name,
            num_outputs=len(self._outputs),
            inputs=[inputs[one] if isinstance(one, str) else one for one in self._given],
            attrs=tuple(itertools.chain(*runtime.function_call_options.as_attrs().items())),
            ctx=runtime,
            cancellation_manager=(cancellation or Cancellation()).manager,
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
    if constant:
        try:
            return _constant(signature, outputs)
        except (ValueError, KeyError, tf.errors.OpError):
            pass
    inner = signature._inference_function
    names = [tensor.name for tensor in signature.inputs[: len(signature.inputs) - len(signature.captured_inputs)]]
    given = [*(name.partition(":")[0] for name in names), *signature.captured_inputs]
    return SignatureFunction(inner.name.decode(), given, outputs, signature)


_numbers = itertools.count()


def _constant(signature: Any, outputs: list[str]) -> SignatureFunction:
    """TensorFlow's convert_variables_to_constants_v2, but for its last step.

    That one copies the graph twice in Python, node by node, which takes most of the time (3 s of 4 for a captioner of
    2,400 nodes), and may name two functions of two signatures alike.
    """
    data = convert_to_constants._FunctionConverterDataInEager(
        func=signature, lower_control_flow=True, aggressive_inlining=False
    )
    graph, _ = convert_to_constants._replace_variables_by_constants(converter_data=data)
    suffix = f"_constant_{next(_numbers)}"
    _rename(graph, suffix)
    captured = {inner.name: outer for outer, inner in signature.graph.captures}
    names = [tensor.name for tensor in signature.inputs if not _is_converted(tensor, data)]
    function = _function(graph, f"signature{suffix}", names, [tensor.name for tensor in signature.outputs])
    runtime, added = context.context(), [*graph.library.function, function]
    for one in added:
        runtime.add_function_def(one)
    given = [captured.get(name, name.partition(":")[0]) for name in names]
    made = SignatureFunction(function.signature.name, given, outputs)
    weakref.finalize(made, _remove, [one.signature.name for one in added])
    return made


def _is_converted(tensor: Any, data: Any) -> bool:
    return tensor.name.partition(":")[0] in data.tensor_data


def _remove(names: Iterable[str]) -> None:
    for name in names:
        context.context().remove_function(name)


def _rename(graph: graph_pb2.GraphDef, suffix: str) -> None:
    """Gives the functions of a graph names that no other graph has."""
    own = {function.signature.name for function in graph.library.function}
    for node in itertools.chain(graph.node, *(function.node_def for function in graph.library.function)):
        if node.op in own:
            node.op += suffix
        for value in node.attr.values():
            for called in [value.func] if value.HasField("func") else value.list.func:
                if called.name in own:
                    called.name += suffix
    for function in graph.library.function:
        function.signature.name += suffix


def _function(
    graph: graph_pb2.GraphDef, name: str, inputs: Sequence[str], outputs: Sequence[str]
) -> function_pb2.FunctionDef:
    """A graph as a function.

    Args:
        graph: with a placeholder for each input.
        name: of the function.
        inputs: tensors that it takes, such as `x:0`.
        outputs: tensors that it returns.
    """
    library = {function.signature.name: function.signature for function in graph.library.function}
    nodes = {node.name: node for node in graph.node}
    arguments = {tensor.partition(":")[0]: f"input_{i}" for i, tensor in enumerate(inputs)}
    produced: dict[str, list[tuple[int, str, int]]] = {}

    def reference(tensor: str) -> str:
        """In a graph an output is known by its node and number, in a function by its place in the operation's list."""
        producer, _, number = tensor.partition(":")
        if tensor.startswith("^"):
            return tensor
        if producer in arguments:
            return arguments[producer]
        if producer not in produced:
            produced[producer] = _produced(nodes[producer], library)
        output, place = produced[producer][int(number or 0)][1:]
        return f"{producer}:{output}:{place}"

    def dtype(tensor: str) -> int:
        producer, _, number = tensor.partition(":")
        return produced[producer][int(number)][0] if producer in produced else nodes[producer].attr["dtype"].type

    function = function_pb2.FunctionDef()
    function.signature.name = name
    for i, tensor in enumerate(inputs):
        placeholder = nodes[tensor.partition(":")[0]]
        function.signature.input_arg.add(name=f"input_{i}", type=placeholder.attr["dtype"].type)
        if placeholder.attr["shape"].HasField("shape"):
            function.arg_attr[i].attr["_output_shapes"].list.shape.add().CopyFrom(placeholder.attr["shape"].shape)
    for node in graph.node:
        if node.name not in arguments:
            copy = function.node_def.add()
            copy.CopyFrom(node)
            copy.input[:] = [reference(tensor) for tensor in node.input]
    for i, tensor in enumerate(outputs):
        function.ret[f"output_{i}"] = reference(tensor)
        function.signature.output_arg.add(name=f"output_{i}", type=dtype(tensor))
    return function


def _produced(node: node_def_pb2.NodeDef, library: Mapping[str, op_def_pb2.OpDef]) -> list[tuple[int, str, int]]:
    """Of each output of a node: its type, and its name and place among those of the operation's definition."""
    definition = library.get(node.op) or op_def_registry.get(node.op)
    defaults = {attribute.name: attribute.default_value for attribute in definition.attr}

    def value(name: str) -> attr_value_pb2.AttrValue:
        return node.attr[name] if name in node.attr else defaults[name]

    outputs = []
    for argument in definition.output_arg:
        if argument.type_list_attr:
            types = list(value(argument.type_list_attr).list.type)
        else:
            one = value(argument.type_attr).type if argument.type_attr else argument.type
            types = [one] * (value(argument.number_attr).i if argument.number_attr else 1)
        outputs += [(type_, argument.name, place) for place, type_ in enumerate(types)]
    return outputs


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
