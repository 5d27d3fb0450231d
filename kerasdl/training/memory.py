"""Letting go of a model that was trained, for processes that train one after the other."""

import gc
import types
import weakref
from typing import Any

import keras
from tensorflow.python.framework import ops

_OF_GRAPHS = "CustomGradient-"
_TYPE = "type"


def release() -> None:
    """Frees what Keras and TensorFlow keep of models that nobody holds any more.

    `tf.custom_gradient` registers the gradient of each call in a graph for ever, and with it the graph, that of a whole
    step of training (TensorFlow issue 97697): 3 to 10 MiB a training. Here the graph holds the gradient, and not the
    registry, so that both are gone when the graph is; a graph that is still in use keeps its gradients.
    """
    entries: dict[str, dict[str, Any]] = ops.gradient_registry._registry
    for name in [name for name in entries if name.startswith(_OF_GRAPHS)]:
        _hold_weakly(entries, name)
    keras.utils.clear_session(free_memory=False)
    gc.collect()


def _hold_weakly(entries: dict[str, dict[str, Any]], name: str) -> None:
    gradient = entries[name][_TYPE]
    graph = _graph_of(gradient) if isinstance(gradient, types.FunctionType) else None
    if graph is None:
        return
    graph._gradients_of_calls = [*getattr(graph, "_gradients_of_calls", ()), gradient]
    held = weakref.ref(gradient, lambda _: entries.pop(name, None))
    entries[name][_TYPE] = _Held(held)


class _Held:
    """A gradient that its graph holds."""

    def __init__(self, gradient: "weakref.ref[types.FunctionType]") -> None:
        self.gradient = gradient

    def __call__(self, operation: Any, *upstream: Any) -> Any:
        """What the gradient itself gives."""
        gradient = self.gradient()
        assert gradient is not None, "the graph of this gradient is gone"
        return gradient(operation, *upstream)


def _graph_of(gradient: types.FunctionType) -> Any:
    """The graph of the tensors in the closure of a gradient, or of a function in that; None without any."""
    waiting: list[Any] = [gradient]
    for function in waiting:
        for cell in function.__closure__ or ():
            content = cell.cell_contents
            if isinstance(content, types.FunctionType) and content not in waiting and len(waiting) < 20:
                waiting.append(content)
            parts = content if isinstance(content, (list, tuple)) else [content]
            for part in parts:
                graph = getattr(part, "graph", None)
                if isinstance(graph, ops.Graph):
                    return graph
    return None
