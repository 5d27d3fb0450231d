"""The check that every block makes first."""

import keras


def require_symbolic(x: object, block: str) -> None:
    """Refuses a tensor that holds values, or one that a layer's `call()` received.

    A block makes new weights each time it is called. On a concrete array, or inside `call()`, these would be
    random at every call and never train, without any error.

    Args:
        x: what the block was called on.
        block: name of the block, for the message.

    Raises:
        ValueError: x is no `keras.KerasTensor`.
    Source: own.
    """
    if not isinstance(x, keras.KerasTensor):
        raise ValueError(
            f"{block} was called on a {type(x).__name__}, expected a symbolic tensor: a block makes new weights "
            "at each call, so call it once, on keras.Input(...) inside build_model, and call the model made of it"
        )
