"""Starts TensorFlow without the lines that it writes to stderr on every start."""

import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from kerasdl import processor


@contextmanager
def silenced() -> Iterator[None]:
    """Catches what is written to file descriptor 2; it appears only when the block raises.

    C++ code writes its start-up lines there before any log level holds. Of later messages only fatal ones show (level
    3), unless TF_CPP_MIN_LOG_LEVEL is set: what fails raises, and oneDNN logs errors where it just steps aside for
    another implementation.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except Exception:
            captured.seek(0)
            os.write(original, captured.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)


def import_tensorflow(*, inference: bool = False) -> ModuleType:
    """Imports TensorFlow and finds its devices, silently; the GPU driver complains only then.

    TensorFlow is set up for this processor. What the environment asks for in vain is said on standard error.

    Args:
        inference: set it up for models that are used, not trained, see `processor.tune_for_inference`.

    Returns:
        The module `tensorflow`.

    Raises:
        UserError: an environment variable holds what nobody understands.
    """
    processor.configure()
    with silenced():
        import tensorflow as tf

        tf.config.list_physical_devices()
    if inference:
        processor.tune_for_inference(tf)
    for line in processor.notes(tf):
        _say_once(line)
    return tf


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def import_keras(*, inference: bool = False) -> ModuleType:
    """Imports Keras, and TensorFlow through it, silently.

    Args:
        inference: as for `import_tensorflow`.

    Returns:
        The module `keras`.
    """
    processor.configure()
    with silenced():
        import keras

        keras.config.backend()
    if keras.config.backend() == "tensorflow":
        import_tensorflow(inference=inference)
    return keras
