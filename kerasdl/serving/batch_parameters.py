"""How many requests are put together, and how TensorFlow Serving's file says it; needs no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasdl.errors import UserError
from kerasdl.serving.configuration import message_type, read

# TensorFlow Serving's session_bundle_config.proto, which its package for Python lacks.
_WRAPPED = 'label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".google.protobuf'
_SCHEMA = f"""
name: "session_bundle_config.proto" package: "tensorflow.serving" syntax: "proto3"
dependency: "google/protobuf/wrappers.proto"
message_type {{
  name: "BatchingParameters"
  field {{ name: "max_batch_size" number: 1 {_WRAPPED}.Int64Value" }}
  field {{ name: "batch_timeout_micros" number: 2 {_WRAPPED}.Int64Value" }}
  field {{ name: "max_enqueued_batches" number: 3 {_WRAPPED}.Int64Value" }}
  field {{ name: "num_batch_threads" number: 4 {_WRAPPED}.Int64Value" }}
  field {{ name: "thread_pool_name" number: 5 {_WRAPPED}.StringValue" }}
  field {{ name: "allowed_batch_sizes" number: 6 label: LABEL_REPEATED type: TYPE_INT64 }}
  field {{ name: "pad_variable_length_inputs" number: 7 label: LABEL_OPTIONAL type: TYPE_BOOL }}
  field {{ name: "enable_large_batch_splitting" number: 8 {_WRAPPED}.BoolValue" }}
  field {{ name: "max_execution_batch_size" number: 9 {_WRAPPED}.Int64Value" }}
}}
"""


@dataclass(frozen=True)
class Parameters:
    """How requests are put together; the names are those of TensorFlow Serving's `BatchingParameters`.

    Attributes:
        max_batch_size: most examples that are computed at once; a larger request is computed in parts.
        batch_timeout_micros: longest wait in microseconds for more requests; 0 takes those that are there.
        max_enqueued_batches: full batches that may wait; None leaves that to the limit of requests.
        num_batch_threads: batches of a signature that are computed side by side, of requests that fit together.
        allowed_batch_sizes: sizes to which a batch is filled up with repeated examples, the last `max_batch_size`.
        pad_variable_length_inputs: whether examples of different lengths are filled up by their first element.
        target_seconds: of a batch; as many examples are taken as were computed in that time before.
    """

    max_batch_size: int = 32
    batch_timeout_micros: int = 0
    max_enqueued_batches: int | None = None
    num_batch_threads: int = 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    target_seconds: float = 0.5

    def __post_init__(self) -> None:
        """Checks every value."""
        positive = {"max_batch_size": self.max_batch_size, "num_batch_threads": self.num_batch_threads}
        if self.max_enqueued_batches is not None:
            positive["max_enqueued_batches"] = self.max_enqueued_batches
        for name, value in positive.items():
            if value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")
        if self.batch_timeout_micros < 0:
            raise UserError(f"batch_timeout_micros must be 0 or more, not {self.batch_timeout_micros}")
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_batch_size):
            raise UserError(
                f"allowed_batch_sizes must increase and end with max_batch_size, {self.max_batch_size}, "
                f"not {', '.join(map(str, sizes))}"
            )


def read_parameters(path: Path) -> Parameters:
    """Reads TensorFlow Serving's batching parameters file, a text of the protocol buffer `BatchingParameters`.

    `max_execution_batch_size` bounds the batch where large ones are split, which is always so here. Thread pools have
    no name here, so `thread_pool_name` has no effect.

    Raises:
        UserError: it cannot be read, or a value is wrong.
    """
    message = read(path, message_type(_SCHEMA, "BatchingParameters")())
    try:
        given = {field.name: value for field, value in message.ListFields()}
        execution = given.pop("max_execution_batch_size", None)
        if given.pop("enable_large_batch_splitting", None) and execution is not None:
            given["max_batch_size"] = execution
        given.pop("thread_pool_name", None)
        values: dict[str, Any] = {name: getattr(value, "value", value) for name, value in given.items()}
        if "allowed_batch_sizes" in values:
            values["allowed_batch_sizes"] = tuple(values["allowed_batch_sizes"])
        return Parameters(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
