#!/usr/bin/env bash
# TensorFlow 2.21.0: a tf.cond with a tf.while_loop in each branch takes graph optimization from the whole function.
#
# Expected: which operations a tf.function fuses does not depend on a conditional elsewhere in it. Seen: a function with
# relu(bias_add(matmul(x, w), b)) runs one fused operation if a loop stands beside it, alone or in one branch of a
# tf.cond; with a loop in each branch, MatMul, BiasAdd and Relu run one by one, and the graph has 4 times the nodes: the
# optimizer gives up ("The graph couldn't be sorted in topological order", "Ignoring multi-device function optimization
# failure"), and the function runs as it was traced. Results are right, and at TF_CPP_MIN_LOG_LEVEL=2 or more nothing is
# said. Many reports quote the message; this is a cause of it. Way out: one loop whose body holds the conditional, which
# the last line shows. The script fails unless exactly the third function lacks the fused operation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/loops.py" <<'PYTHON'
import tensorflow as tf
from tensorflow.python.eager import context


def total(x, step, part=tf.reduce_sum):
    count = tf.shape(x)[0]
    return tf.while_loop(lambda i, _: i < count, lambda i, t: (i + step, t + part(x[i : i + step])), (0, 0.0))[1]


def is_short(x):
    return tf.shape(x)[0] < 64


WAYS = {
    "a loop": lambda x: total(x, 8),
    "a loop in one branch": lambda x: tf.cond(is_short(x), lambda: total(x, 8), lambda: tf.reduce_sum(x)),
    "a loop in each branch": lambda x: tf.cond(is_short(x), lambda: total(x, 8), lambda: total(x, 16)),
    "branches in a loop": lambda x: total(
        x,
        tf.where(is_short(x), 8, 16),
        lambda part: tf.cond(is_short(x), lambda: tf.reduce_sum(part), lambda: -tf.reduce_sum(-part)),
    ),
}
fused = []
for name, way in WAYS.items():
    function = tf.function(lambda x, w, b: way(x) + tf.reduce_sum(tf.nn.relu(tf.nn.bias_add(tf.matmul(x, w), b))))
    context.enable_run_metadata()
    value = function(tf.ones([32, 16]), tf.ones([16, 16]), tf.ones([16]))
    metadata = context.export_run_metadata()
    context.disable_run_metadata()
    graphs = [graph for function in metadata.function_graphs for graph in function.partition_graphs]
    operations = [node.op for graph in graphs for node in graph.node]
    fused.append(any("FusedMatMul" in operation for operation in operations))
    print(f"{name}: {float(value)}, {len(operations)} nodes, {'fused' if fused[-1] else 'not fused'}")
raise SystemExit(fused != [True, True, False, True])
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/loops.py" && echo "as described"
