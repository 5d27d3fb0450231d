#!/usr/bin/env bash
# TensorFlow 2.21.0: a call that fails cancels the CancellationManager that it was given.
#
# Expected: a `CancellationManager` says what its owner says: `is_cancelled` is true after `start_cancel`, and the calls
# that got it end then. A call that fails by itself (an assertion, a wrong index) raises its error and tells nobody else.
# Seen: the failing call cancels the manager itself. `is_cancelled` is true though nobody has called `start_cancel`, and
# every later call with the same manager, of any function on any input, ends with CancelledError. So a manager cannot tell
# whether the caller has left, and what tries again after an error needs a new one for each attempt.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2> /dev/null
cat > "$folder/failed.py" <<'PYTHON'
import tensorflow as tf
from tensorflow.python.eager import cancellation


@tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
def root(x):
    with tf.control_dependencies([tf.debugging.assert_non_negative(x)]):
        return tf.sqrt(x)


def outcome(manager, value):
    try:
        called = manager.get_cancelable_function(root.get_concrete_function())
        return called(tf.constant([value])).numpy().tolist()
    except tf.errors.OpError as error:
        return type(error).__name__


manager = cancellation.CancellationManager()
seen = [outcome(manager, 4.0), manager.is_cancelled]
seen += [outcome(manager, -4.0), manager.is_cancelled]
seen += [outcome(manager, 4.0), outcome(cancellation.CancellationManager(), 4.0)]
print("tensorflow", tf.__version__, seen)
expected = [[2.0], False, "InvalidArgumentError", True, "CancelledError", [2.0]]
assert seen == expected, f"was {expected}"
PYTHON
export TF_CPP_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" "$folder/failed.py" 2> /dev/null
echo "as described: the failed call has cancelled its manager"
