#!/usr/bin/env bash
# TensorFlow 2.21.0: the configuration given to enable_eager_execution is dropped without a word.
#
# Expected: `tf.compat.v1.enable_eager_execution(config=ConfigProto(...))` says in its documentation that config is "to
# configure the environment in which operations are executed", and that options which conflict raise ValueError; on
# TensorFlow 2 it is only "not necessary". Code that limits the threads of a server by it, before the first operation,
# should get them, or an error.
# Seen: where eager execution is the default, the function returns before it looks at its arguments. The threads stay as
# they were, and even a config that is no ConfigProto is taken. `tf.config.threading` works; options that have no function
# there, such as `experimental.disable_thread_spinning`, have no public way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2> /dev/null
cat > "$folder/threads.py" <<'PYTHON'
import sys

import tensorflow as tf

print("tensorflow", tf.__version__)
way = sys.argv[1]
if way == "config":
    tf.compat.v1.enable_eager_execution(config=tf.compat.v1.ConfigProto(intra_op_parallelism_threads=7))
elif way == "wrong":
    tf.compat.v1.enable_eager_execution(config="seven threads, please")
else:
    tf.config.threading.set_intra_op_parallelism_threads(7)
tf.constant(1) + 1
print(way, "setting", tf.config.threading.get_intra_op_parallelism_threads())
PYTHON
found=$(for way in config wrong function; do
  TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/threads.py" "$way" 2> /dev/null
done)
echo "$found"
expected="tensorflow 2.21.0
config setting 0
tensorflow 2.21.0
wrong setting 0
tensorflow 2.21.0
function setting 7"
if [ "$found" = "$expected" ]; then
  echo "as described"
else
  echo "this has changed"
  exit 1
fi
