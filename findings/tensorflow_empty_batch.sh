#!/usr/bin/env bash
# TensorFlow 2.21.0 with oneDNN: a convolution of an empty batch has the shape of its input.
#
# Expected: 0 pictures of 8x6x3, 4 filters, stride 2, padding "SAME": shape (0, 4, 3, 4), as without oneDNN and in XLA.
# Seen: (0, 8, 6, 3). What follows (a dense layer, a concatenation) then fails with a message about shapes that nobody
# wrote, or passes wrong shapes on; the last batch of a filter that lets nothing through is enough to meet it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/empty.py" <<'PYTHON'
import tensorflow as tf


def convolution(x):
    return tf.nn.conv2d(x, tf.zeros([3, 3, 3, 4]), 2, "SAME")


for run in (convolution, tf.function(convolution), tf.function(convolution, jit_compile=True)):
    print(tuple(run(tf.zeros([0, 8, 6, 3])).shape), end=" ")
print()
PYTHON
for onednn in 0 1; do
  echo "TF_ENABLE_ONEDNN_OPTS=$onednn: eager, graph, XLA"
  TF_CPP_MIN_LOG_LEVEL=3 TF_ENABLE_ONEDNN_OPTS=$onednn "$folder/venv/bin/python" "$folder/empty.py" 2>/dev/null
done | tee "$folder/seen"
# Output seen (TensorFlow 2.21.0, Python 3.11, x86-64):
diff "$folder/seen" - <<'SEEN'
TF_ENABLE_ONEDNN_OPTS=0: eager, graph, XLA
(0, 4, 3, 4) (0, 4, 3, 4) (0, 4, 3, 4) 
TF_ENABLE_ONEDNN_OPTS=1: eager, graph, XLA
(0, 8, 6, 3) (0, 8, 6, 3) (0, 4, 3, 4) 
SEEN
echo "as described"
