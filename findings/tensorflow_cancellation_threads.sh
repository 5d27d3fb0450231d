#!/usr/bin/env bash
# TensorFlow 2.21.0: a call that was given no cancellation is ended when that of another thread is.
#
# Expected: `CancellationManager.get_cancelable_function(f)` gives a function whose calls end when the manager says so, and
# no others. Around the call it enters a context; contexts of TensorFlow that say how a call runs (device, graph, tape)
# belong to their thread.
# Seen: this context is one variable of the module. While one thread is in such a call, the calls of all other threads run
# under its manager: cancelling it ends them, too, with CancelledError, plain calls and those with a manager of their own
# alike. And at its end the variable is emptied, so that a call under another manager can no longer be cancelled.
# A server that ends the work of one client so ends that of others. `execute_with_cancellation` of
# tensorflow.python.eager.execute takes the manager as an argument and does what was expected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2> /dev/null
cat > "$folder/threads.py" <<'PYTHON'
import itertools
import threading
import time

import tensorflow as tf
from tensorflow.python.eager import cancellation, context, execute

print("tensorflow", tf.__version__)


@tf.function
def count(times):
    return tf.while_loop(lambda i: i < times, lambda i: (i + 1,), (tf.constant(0),))[0]


function = count.get_concrete_function(tf.TensorSpec([], tf.int32))
LONG, SHORT = tf.constant(2_000_000_000), tf.constant(2_000_000)  # hours, and seconds


def by_context(manager, times):
    return manager.get_cancelable_function(function)(times)


def by_argument(manager, times):
    inner, runtime = function._inference_function, context.context()
    attributes = tuple(itertools.chain(*runtime.function_call_options.as_attrs().items()))
    return execute.execute_with_cancellation(
        inner.name.decode(), 1, [times], attributes, runtime, cancellation_manager=manager
    )[0]


def ended(call):
    """What became of a call."""
    try:
        return int(call())
    except tf.errors.CancelledError:
        return "cancelled"


for way in (by_context, by_argument):
    first, found = cancellation.CancellationManager(), {}
    calls = {"with the manager": lambda: way(first, LONG), "plain": lambda: function(SHORT)}
    threads = []
    for name, call in calls.items():
        threads.append(threading.Thread(target=lambda name=name, call=call: found.update({name: ended(call)})))
        threads[-1].start()
        time.sleep(0.3)
    first.start_cancel()
    for thread in threads:
        thread.join()
    print(f"{way.__name__}:", ", ".join(f"{name} {found[name]}" for name in calls))
PYTHON
found=$(TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/threads.py" 2> /dev/null)
echo "$found"
expected="by_context: with the manager cancelled, plain cancelled
by_argument: with the manager cancelled, plain 2000000"
if [ "$(echo "$found" | tail -2)" = "$expected" ]; then
  echo "as described"
else
  echo "this has changed"
  exit 1
fi
