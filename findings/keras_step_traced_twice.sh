#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: `fit` traces the training step of every new model twice.
#
# Expected: one trace. The model is built and compiled; `fit` calls a symbolic build before it makes the function, and
# the JAX backend makes the optimizer's variables there.
# Seen: the optimizer's variables (and those of a metric that was given as a function) are made within the step.
# TensorFlow, seeing variables made in a first trace, drops it and traces again: for a deep or unrolled network the
# time before the first step doubles, without a message. `optimizer.build` before `fit`, and metrics given as objects,
# leave one trace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow==2.21.0
cat > "$folder/traces.py" <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf

print("keras", keras.__version__, "tensorflow", tf.__version__)


def deviation(truth, guess):
    return keras.ops.mean(keras.ops.abs(truth - guess))


def traces(what, *, build, metrics):
    count = []

    class Counted(keras.layers.Layer):
        def call(self, x):
            count.append(1)
            return x

    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Counted()(inputs)))
    model.compile(keras.optimizers.Adam(), "mse", metrics=metrics, jit_compile=False)
    if build:
        model.optimizer.build(model.trainable_variables)
    count.clear()
    model.fit(np.ones([64, 3]), np.ones([64, 2]), batch_size=8, epochs=2, verbose=0)
    print(f"{what}: {len(count)}")


traces("as people write it", build=False, metrics=[])
traces("optimizer built before", build=True, metrics=[])
traces("optimizer built before, metric a function", build=True, metrics=[deviation])
traces("optimizer built before, metric an object", build=True, metrics=[keras.metrics.MeanAbsoluteError()])
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1 "$folder/venv/bin/python" "$folder/traces.py" 2> "$folder/errors" |
  tee "$folder/seen" || { cat "$folder/errors"; exit 1; }
# Output seen (Python 3.11, x86-64):
diff "$folder/seen" - <<'SEEN'
keras 3.15.1 tensorflow 2.21.0
as people write it: 2
optimizer built before: 1
optimizer built before, metric a function: 2
optimizer built before, metric an object: 1
SEEN
echo "as described"
