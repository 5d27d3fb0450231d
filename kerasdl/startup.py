"""Starts TensorFlow without the lines that it writes to stderr on every start."""

import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from kerasdl import processor
from kerasdl.errors import UserError


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

    TensorFlow is set up for this processor; and Keras, which it imports, with the settings that blocks, graphs and the
    numbers of the cards are made for, whatever keras.json says. What the environment asks for in vain is said on
    standard error.

    Args:
        inference: set it up for models that are used, not trained, see `processor.tune_for_inference`.

    Returns:
        The module `tensorflow`.

    Raises:
        UserError: an environment variable holds what nobody understands, keras.json is broken, or Keras was imported
            with another backend before.
    """
    processor.configure()
    asked = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with silenced():
        try:
            import keras
        except (ValueError, AttributeError, OSError) as error:  # it reads keras.json at the import
            place = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras.json"
            if not place.exists():
                raise
            raise UserError(f"Keras cannot be imported ({error}); repair or remove {place}") from error
        import tensorflow as tf

        tf.config.list_physical_devices()
    processor.divide(tf)
    if keras.config.backend() != "tensorflow":
        raise UserError(f"Keras was imported with the backend {keras.config.backend()}; expected tensorflow")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    if inference:
        processor.tune_for_inference(tf)
    notes = processor.notes(tf)
    if asked not in (None, "", "tensorflow"):
        notes = [*notes, f"KERAS_BACKEND={asked} asks for another backend; everything here runs on tensorflow"]
    for line in notes:
        _say_once(line)
    return tf


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def import_keras(*, inference: bool = False) -> ModuleType:
    """Imports Keras, and TensorFlow with it; see `import_tensorflow`.

    Args:
        inference: as there.

    Returns:
        The module `keras`.
    """
    import_tensorflow(inference=inference)
    import keras

    return keras
