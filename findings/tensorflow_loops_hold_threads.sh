#!/usr/bin/env bash
# TensorFlow 2.21.0: calls of functions from threads of Python wait for loops in the calls of other threads.
#
# Expected: a call of a `tf.function` from a thread of its own runs beside those of other threads, as the interpreter lock
# is not held; more callers than cores share the cores, as threads of an operating system do.
# Seen: each loop in a graph (`tf.while_loop`) holds one of TensorFlow's threads for operations side by side until its last
# step, and there are as many as cores. When as many loops run, a call that adds two numbers waits until one of them has
# ended: seconds here, for ever beside loops without end. A server that gives each model threads of its own so lets one
# model hold up all others. With one more such thread (`set_inter_op_parallelism_threads`) the call takes milliseconds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2> /dev/null
cat > "$folder/loops.py" <<'PYTHON'
import sys
import threading
import time

import tensorflow as tf

THREADS, LOOPS = int(sys.argv[1]), 2
tf.config.threading.set_inter_op_parallelism_threads(THREADS)


@tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
def count(times):
    return tf.while_loop(lambda i: i < times, lambda i: (i + 1,), (tf.constant(0),))[0]


@tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
def add(x):
    return x + 1


def seconds(function, value):
    began = time.perf_counter()
    function(tf.constant(value)).numpy()
    return time.perf_counter() - began


seconds(count, 10), seconds(add, 1)  # the first calls prepare the graphs
steps = int(4 * 100_000 / seconds(count, 100_000))  # four seconds
loops = [threading.Thread(target=seconds, args=(count, steps)) for _ in range(LOOPS)]
for loop in loops:
    loop.start()
time.sleep(0.5)
waited = seconds(add, 1)
running = sum(loop.is_alive() for loop in loops)
for loop in loops:
    loop.join()
print(f"tensorflow {tf.__version__}: {LOOPS} loops, {THREADS} threads: x + 1 took {waited:.3f} s, {running} loops ran on")
if THREADS == LOOPS:
    assert waited > 1 and running < LOOPS, "the call did not wait for a loop"
else:
    assert waited < 0.5 and running == LOOPS, "the call waited for a loop"
PYTHON
export TF_CPP_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" "$folder/loops.py" 2 2> /dev/null
"$folder/venv/bin/python" "$folder/loops.py" 3 2> /dev/null
echo "as described: a loop holds a thread until it ends"
