#!/usr/bin/env bash
# TensorFlow 2.21.0: a function that `convert_variables_to_constants_v2` made writes its inputs as text at each call.
#
# Expected: with constants for variables a call does less, and takes less time, whatever goes in.
# Seen: the frozen function is described by a signature that none of its calls fits, by position or by name. Each call
# tries it first; what fails is told in a TypeError that holds the values of all inputs, and that nobody sees; then the
# call goes another way. A row of 999 numbers, the most that NumPy prints whole, takes twenty times as long as before
# freezing, 32 encoded pictures of 100 kB a tenth of a second, and of 1 MB more than a second. Nothing of it is in a
# profile of TensorFlow's operations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/calls.py" <<'PYTHON'
import os
import statistics
import sys
import time

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

print("tensorflow", tf.__version__)


def measured(call):
    """TypeErrors in one call, and its median time in ms."""
    call()
    frames, seconds = 0, []

    def trace(frame, event, argument):
        nonlocal frames
        frames += event == "exception" and argument[0] is TypeError
        return trace

    sys.settrace(trace)
    call()
    sys.settrace(None)
    for _ in range(15):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return frames, 1000 * statistics.median(seconds)


scale = tf.Variable(2.0)
numbers = tf.function(lambda x: tf.reduce_sum(x) * scale)
lengths = tf.function(lambda x: tf.cast(tf.strings.length(x), tf.float32) * scale)
for name, made, spec, x in (
    ("16 numbers", numbers, tf.TensorSpec((1, None), tf.float32, "x"), tf.ones((1, 16))),
    ("999 numbers", numbers, tf.TensorSpec((1, None), tf.float32, "x"), tf.ones((1, 999))),
    ("100 kB of bytes", lengths, tf.TensorSpec((None,), tf.string, "x"), tf.constant([os.urandom(100_000)])),
    ("32 x 100 kB of bytes", lengths, tf.TensorSpec((None,), tf.string, "x"), tf.constant([os.urandom(100_000)] * 32)),
):
    function = made.get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(function)
    tf.debugging.assert_equal(function(x), frozen(x)[0])
    before, by_position, by_name = measured(lambda: function(x)), measured(lambda: frozen(x)), measured(lambda: frozen(x=x))
    print(f"{name:20}  as it was {before[1]:6.2f} ms; frozen {by_position[1]:6.2f} ms, by name {by_name[1]:6.2f} ms")
    assert before[0] == 0, "the function's own call raises"
    assert by_position[0] and by_name[0], "a frozen function's call raises no TypeError any more"
    assert by_position[1] > before[1], "a frozen function is called as fast as before"
assert by_position[1] > 20 * before[1], "bytes no longer cost time"
print("as described")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/calls.py"
# Seen (AMD EPYC family 25 model 17, two cores):
#   tensorflow 2.21.0
#   16 numbers            as it was   0.19 ms; frozen   0.34 ms, by name   0.33 ms
#   999 numbers           as it was   0.16 ms; frozen   2.68 ms, by name   2.84 ms
#   100 kB of bytes       as it was   0.17 ms; frozen   1.29 ms, by name   1.27 ms
#   32 x 100 kB of bytes  as it was   0.16 ms; frozen  81.92 ms, by name  84.34 ms
