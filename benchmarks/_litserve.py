"""A peer of `benchmarks.serving_speed`: LitServe around a signature, with its own batching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import litserve


class Api(litserve.LitAPI):
    """Answers one example a request; LitServe starts a process with a copy of it, so it stands in a module.

    Args:
        folder: of the export.
        name: of the signature's input.
        decoded: an example as the signature takes it, of one of a request.
        answer: of the label and the probabilities.
    """

    def __init__(
        self, folder: str, name: str, decoded: Callable[[Any], bytes], answer: Callable[..., Any], **options: Any
    ) -> None:
        super().__init__(**options)
        self.folder, self.name, self.decoded, self.answer = folder, name, decoded, answer

    def setup(self, device: str) -> None:
        import tensorflow as tf

        self.loaded = tf.saved_model.load(self.folder)
        self.signature = self.loaded.signatures["serving_default"]

    def decode_request(self, request) -> bytes:  # with an annotation it would be a parameter of the URL
        return self.decoded(request["instances"][0])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, batch: list[bytes]) -> list[Any]:
        import tensorflow as tf

        found = self.signature(**{self.name: tf.constant(batch)})
        return list(zip(found["label"].numpy(), found["probabilities"].numpy(), strict=True))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": [self.answer(*output)]}
