"""The one exception that every transport turns into its own kind of error reply."""

import enum


class Code(enum.IntEnum):
    """Canonical status codes; the numbers are those of gRPC and of `tf.errors.OpError.error_code`."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """A request, or the load of a model, that cannot be answered as asked.

    Args:
        code: canonical status code.
        message: text for the client, in the words of TensorFlow Serving where it has them.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["ServingError"], tuple[Code, str]]:
        """Also from another process."""
        return ServingError, (self.code, self.message)


def no_signature(name: str) -> ServingError:
    """The error of a signature that a model does not have."""
    return ServingError(Code.INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def')
