#!/usr/bin/env bash
# TensorFlow 2.21.0 with oneDNN: a NaN before "matrix product or convolution, bias, ReLU" comes out as 0 inside a
# tf.function, and as NaN outside one or with oneDNN off.
#
# Expected: ReLU(NaN) = NaN, as TensorFlow's ReLU, its XLA form and NumPy's maximum give, and the same answer eagerly and
# in a graph. Seen: the graph optimizer joins the three operations into one, whose ReLU, oneDNN's, is max(0, x) that
# drops NaN. A model with a damaged weight or a NaN in its input then answers with finite, plausible numbers, its loss
# stays finite, and callbacks like TerminateOnNaN see nothing. oneDNN is on by default on x86 with AVX-512 VNNI, bf16,
# AVX-VNNI or AMX, off on AVX2 alone: the same script gives 0 on one machine and NaN on the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/relu.py" <<'PYTHON'
import numpy as np
import tensorflow as tf


matrix, kernel, bias = (tf.Variable(tf.ones(shape)) for shape in ([3, 4], [3, 3, 3, 4], [4]))


def dense(x):
    return tf.nn.relu(tf.nn.bias_add(tf.matmul(x, matrix), bias))


def convolution(x):
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))


for function, shape in ((dense, [2, 3]), (convolution, [2, 8, 8, 3])):
    x = tf.fill(shape, np.nan)
    eager, graph, compiled = (
        float(tf.reduce_max(run(x)))
        for run in (function, tf.function(function), tf.function(function, jit_compile=True))
    )
    print(f"{function.__name__}: eager {eager}, graph {graph}, XLA {compiled}")
PYTHON
for onednn in 0 1; do
  echo "TF_ENABLE_ONEDNN_OPTS=$onednn"
  TF_CPP_MIN_LOG_LEVEL=3 TF_ENABLE_ONEDNN_OPTS=$onednn "$folder/venv/bin/python" "$folder/relu.py" 2>/dev/null
done | tee "$folder/seen"
# Output seen (TensorFlow 2.21.0, Python 3.11, x86-64):
diff "$folder/seen" - <<'SEEN'
TF_ENABLE_ONEDNN_OPTS=0
dense: eager nan, graph nan, XLA nan
convolution: eager nan, graph nan, XLA nan
TF_ENABLE_ONEDNN_OPTS=1
dense: eager nan, graph 0.0, XLA nan
convolution: eager nan, graph 0.0, XLA nan
SEEN
echo "as described"
