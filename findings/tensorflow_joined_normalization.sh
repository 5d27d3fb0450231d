#!/usr/bin/env bash
# TensorFlow 2.21.0, oneDNN on AVX2: a convolution joined with its batch normalization takes several times as long as
# the two apart.
#
# Expected: the graph optimizer joins convolution, batch normalization and ReLU because that saves time. Seen: one
# picture of 32x32x48, 48 filters of 3x3: joined 5.1 ms, apart 0.6 ms, medians (AMD EPYC family 26 model 2, two cores, oneDNN
# held to AVX2; times as oneDNN logs them). oneDNN computes both by the same kernel, x64:gemm:jit; joined, it subtracts,
# multiplies and adds in operations behind that kernel. oneDNN is off by default on AVX2 alone, so this meets who sets
# TF_ENABLE_ONEDNN_OPTS=1 there for the training, which gains. Way out: in inference
# tf.config.optimizer.set_experimental_options({"remapping": False}).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/network.py" <<'PYTHON'
import sys

import tensorflow as tf

tf.config.optimizer.set_experimental_options({"remapping": sys.argv[1] == "joined"})
kernel = tf.Variable(tf.random.normal([3, 3, 48, 48]))
statistics = [tf.Variable(tf.ones([48])) for _ in range(4)]


@tf.function
def network(x):
    names = ("scale", "offset", "mean", "variance")
    x = tf.nn.conv2d(x, kernel, 1, "SAME")
    x = tf.raw_ops.FusedBatchNormV3(x=x, is_training=False, **dict(zip(names, statistics, strict=True)))[0]
    return tf.nn.relu(x)


for _ in range(50):
    network(tf.ones([1, 32, 32, 48])).numpy()
PYTHON
cat > "$folder/median.py" <<'PYTHON'
import statistics
import sys

rows = [line.rstrip("\n").split(",") for line in sys.stdin if ",exec," in line]
kinds = {kind: [float(row[-1]) for row in rows if row[5] == kind] for kind in ("convolution", "batch_normalization")}
print(sum(statistics.median(times) for times in kinds.values() if times))
PYTHON
export ONEDNN_VERBOSE=1 ONEDNN_MAX_CPU_ISA=AVX2 TF_ENABLE_ONEDNN_OPTS=1 TF_CPP_MIN_LOG_LEVEL=3
for way in joined apart; do
  ms=$("$folder/venv/bin/python" "$folder/network.py" $way 2>/dev/null | python3 "$folder/median.py")
  echo "$way: $ms ms"
  declare "$way=$ms"
done
python3 -c "import sys; sys.exit(not $joined > 2 * $apart)" && echo "as described"
