#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: `fit` under tf.distribute.MirroredStrategy trains otherwise than on one device.
#
# Expected: two replicas with half of the batch each take the step of one device with the whole batch; what dropout
# draws for one half has nothing to do with what it draws for the other.
# Seen: 1. Every replica draws the same dropout mask: the state of a seed generator is mirrored, and no replica's number
# goes into the seed. 2. `global_clipnorm` clips the gradient of each replica before they are summed. Where two halves
# have gradients of norms 9 and 1 in one direction, the step is that of a clipped 9/2 plus a clipped 1/2 and not of a
# clipped 5. Neither is said anywhere. SGD without both equals one device.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow==2.21.0
cat > "$folder/replicas.py" <<'PYTHON'
import contextlib

import keras
import numpy as np
import tensorflow as tf

print("keras", keras.__version__, "tensorflow", tf.__version__)
halves = [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()]
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def scope(devices):
    return strategy.scope() if devices == 2 else contextlib.nullcontext()


masks = []


class Watched(keras.layers.Dropout):
    def call(self, inputs, training=None):
        kept = super().call(inputs, training=training)
        if training:
            tf.numpy_function(lambda rows: masks.append(rows != 0), [kept], [])
        return kept


with scope(2):
    inputs = keras.Input((40,))
    model = keras.Model(inputs, keras.layers.Dense(1)(Watched(0.5, seed=0)(inputs)))
    model.compile("sgd", "mse", jit_compile=False)
model.fit(np.ones([8, 40]), np.ones([8, 1]), batch_size=8, verbose=0)
print("shapes of the dropout masks:", [mask.shape for mask in masks], "equal:", bool((masks[0] == masks[1]).all()))


def step(devices, **options):
    """How far the weight of a linear model goes in one step; the gradients of the two examples are 9 and 1."""
    with scope(devices):
        inputs = keras.Input((1,))
        model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs))
        loss = keras.losses.MeanAbsoluteError()
        model.compile(keras.optimizers.SGD(1.0, **options), loss, jit_compile=False)
    model.fit(np.array([[9.0], [1.0]]), np.ones([2, 1]), batch_size=2, verbose=0, shuffle=False)
    return f"{float(model.get_weights()[0][0, 0]):.2f}"


print("step of SGD on one device and on two:", step(1), step(2))
print("with global_clipnorm=1:", step(1, global_clipnorm=1.0), step(2, global_clipnorm=1.0))
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1 "$folder/venv/bin/python" "$folder/replicas.py" 2> "$folder/errors" |
  tee "$folder/seen" || { cat "$folder/errors"; exit 1; }
# Output seen (Python 3.11, x86-64):
diff "$folder/seen" - <<'SEEN'
keras 3.15.1 tensorflow 2.21.0
shapes of the dropout masks: [(4, 40), (4, 40)] equal: True
step of SGD on one device and on two: 5.00 5.00
with global_clipnorm=1: 1.00 1.50
SEEN
echo "as described"
