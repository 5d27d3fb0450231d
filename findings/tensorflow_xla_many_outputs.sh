#!/usr/bin/env bash
# TensorFlow 2.21.0, XLA on a CPU: the same sums as 36 small outputs or as 6 larger ones, five times the compilation.
#
# Expected: a compiled function costs what it computes; whether its results come as 36 tensors or as 6 with a leading
# axis of 6 changes little. Seen, for the input transform of Winograd's filtering F(4x4, 3x3), two sums along rows and
# columns of a tile: as 36 tensors of [tiles, channels] 0.8 to 1.3 s of compilation, and peak memory grows by 83 MB; as 6
# tensors of [6, tiles, channels] 0.2 to 0.3 s and 24 MB, equal values, and a call takes 1.0 ms in place of 1.7 (AMD EPYC
# family 25 model 17, two cores). Every output becomes a fusion of its own that repeats the sums along the other side.
# Way out: stack what is alike before the second sum. The script fails unless the many outputs take more than twice as
# long to compile.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/transform.py" <<'PYTHON'
import functools
import resource
import sys
import time

import numpy as np
import tensorflow as tf

MATRIX = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
TILES = 8


def sums(parts):
    return [functools.reduce(tf.add, [part * f for f, part in zip(row, parts) if f]) for row in MATRIX]


def many(x):
    cut = [[x[:, i : i + 4 * TILES - 3 : 4, j : j + 4 * TILES - 3 : 4] for j in range(6)] for i in range(6)]
    columns = [sums(row) for row in cut]
    return [value for column in zip(*columns) for value in sums(column)]


def few(x):
    rows = tf.stack(sums([x[:, i : i + 4 * TILES - 3 : 4] for i in range(6)]))
    return sums([rows[:, :, :, j : j + 4 * TILES - 3 : 4] for j in range(6)])


x = tf.random.stateless_normal([8, 4 * TILES + 2, 4 * TILES + 2, 64], [0, 0])
tf.function(lambda a: a + 1, jit_compile=True)(x)  # starts the compiler
function = tf.function({"many": many, "few": few}[sys.argv[1]], jit_compile=True, autograph=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
results = function(x)
seconds = time.perf_counter() - begin
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"{seconds:.2f} s to compile, peak memory grew by {grown:.0f} MB, sum of squares", end=" ", file=sys.stderr)
print(f"{float(sum(tf.reduce_sum(value**2) for value in results)):.6e}", file=sys.stderr)
print(seconds)
PYTHON
export TF_CPP_MIN_LOG_LEVEL=3
for way in many few; do
  seconds=$("$folder/venv/bin/python" "$folder/transform.py" $way 2> "$folder/said")
  echo "$way: $(tail -n 1 "$folder/said")"
  declare "$way=$seconds"
done
python3 -c "import sys; sys.exit(not $many > 2 * $few)" && echo "as described"
