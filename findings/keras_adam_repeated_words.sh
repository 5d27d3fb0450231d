#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: Adam, AdamW, RMSprop and Adagrad take other steps for an embedding as soon as a
# batch holds a word twice.
#
# Expected: a sparse gradient (tf.IndexedSlices, what an Embedding layer has) stands for the dense one in which the
# parts of each row are summed; Keras 2 summed them first. PyTorch's SparseAdam coalesces them, too.
# Seen: the parts are squared one by one, so that the second moment is the sum of the squares and not the square of the
# sum. Of a word that stands n times in a batch, Adam's first step is sqrt(n) times as large as its learning rate, which
# is the most that Adam's first step can be: frequent words get a higher rate, without a message. SGD is right; so is
# Adam behind global_clipnorm, since clipping makes the gradient dense. But the norm that is clipped by is that of the
# parts, too: a gradient of norm 9.06, clipped to 1, has a norm of 2.86 and not of 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow==2.21.0
cat > "$folder/steps.py" <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf

print("keras", keras.__version__, "tensorflow", tf.__version__)
TIMES = 9


def first_step(optimizer):
    """How far the vector of a word that stands nine times in the batch moves, and that of one that stands there once."""
    words = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(3, 1, embeddings_initializer="zeros")
    model = keras.Model(words, embedding(words))
    model.compile(optimizer, loss=lambda truth, guess: keras.ops.sum(guess - truth), jit_compile=False)
    batch = np.array([[1] * TIMES + [2]])
    model.fit(batch, np.zeros([1, TIMES + 1, 1]), verbose=0)
    moved = embedding.embeddings.numpy()[:, 0]
    return " and ".join(f"{abs(value):.3f}" for value in moved[1:])


print("learning rate 0.1; first step of a word that stands nine times, and of one that stands once")
kinds = keras.optimizers
print("SGD:", first_step(kinds.SGD(0.1)))
print("Adam:", first_step(kinds.Adam(0.1)))
print("AdamW:", first_step(kinds.AdamW(0.1, weight_decay=0.0)))
print("Adam, global_clipnorm=1e6:", first_step(kinds.Adam(0.1, global_clipnorm=1e6)))
print("SGD, global_clipnorm=1:", first_step(kinds.SGD(0.1, global_clipnorm=1.0)))
print("RMSprop, rho=0:", first_step(kinds.RMSprop(0.1, rho=0.0)))
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1 "$folder/venv/bin/python" "$folder/steps.py" 2> "$folder/errors" |
  tee "$folder/seen" || { cat "$folder/errors"; exit 1; }
# Output seen (Python 3.11, x86-64):
diff "$folder/seen" - <<'SEEN'
keras 3.15.1 tensorflow 2.21.0
learning rate 0.1; first step of a word that stands nine times, and of one that stands once
SGD: 0.900 and 0.100
Adam: 0.300 and 0.100
AdamW: 0.300 and 0.100
Adam, global_clipnorm=1e6: 0.100 and 0.100
SGD, global_clipnorm=1: 0.285 and 0.032
RMSprop, rho=0: 0.300 and 0.100
SEEN
echo "as described"
