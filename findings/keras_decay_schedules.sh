#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: with weight decay a training step computes the learning rate's schedule once for
# each variable.
#
# Expected: a step has one learning rate, and its schedule is evaluated once; so it is without weight decay.
# Seen: the optimizer asks for its rate again at each variable that decays, and a schedule is no number but a dozen or
# more operations that count steps, compare and take a cosine. Each read of the step's number is a read of a variable,
# which TensorFlow does not merge. A network of 60 variables begins its training three times as slowly, and each step
# runs about a thousand operations more: what is lost is seen in small networks, whose steps take milliseconds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 tensorflow==2.21.0
cat > "$folder/count.py" <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf

print("keras", keras.__version__, "tensorflow", tf.__version__)
LAYERS = 30


def traced(weight_decay):
    """How often a step evaluates its schedule, and of how many operations its graph is made."""
    asked = []

    class Cosine(keras.optimizers.schedules.CosineDecay):
        def __call__(self, step):
            asked.append(step)
            return super().__call__(step)

    image = x = keras.Input((8,))
    for _ in range(LAYERS):
        x = keras.layers.Dense(8)(x)
    model = keras.Model(image, x)
    optimizer = keras.optimizers.SGD(Cosine(0.01, 100, warmup_target=0.1, warmup_steps=10), weight_decay=weight_decay)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(batch))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    asked.clear()
    graph = step.get_concrete_function(tf.zeros([4, 8])).graph.as_graph_def()
    nodes = len(graph.node) + sum(len(function.node_def) for function in graph.library.function)
    return len(asked), nodes


print("a step of", 2 * LAYERS, "variables: times that the schedule is computed, operations of its graph")
for name, weight_decay in (("without weight decay", None), ("with weight decay", 1e-4)):
    times, nodes = traced(weight_decay)
    print(f"{name}: {times}, {nodes}")
PYTHON
found=$(TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/count.py" 2> /dev/null)
echo "$found"
without=$(echo "$found" | sed -n 's/^without weight decay: \([0-9]*\), \([0-9]*\)$/\1 \2/p')
decayed=$(echo "$found" | sed -n 's/^with weight decay: \([0-9]*\), \([0-9]*\)$/\1 \2/p')
read -r times_without nodes_without <<< "$without"
read -r times_with nodes_with <<< "$decayed"
if [ "$times_without" = 1 ] && [ "$times_with" = 61 ] && [ "$nodes_with" -gt $((nodes_without + 1000)) ]; then
  echo "as described"
else
  echo "this has changed"
  exit 1
fi
