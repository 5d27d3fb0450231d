"""Trains applications on one device and on two, in a process of its own: `python tests/on_devices.py FOLDER`.

The processor is divided by KERASDL_CPU_DEVICES, which TensorFlow takes only before its first operation. Of each
application there are two runs, FOLDER/APPLICATION/1 and 2, on little data; of the denoiser also one that was stopped
after an epoch and went on, `resumed`.
"""

import dataclasses
import importlib
import sys
from pathlib import Path

import fitting
import keras
import numpy as np
import tensorflow as tf

from apps import _run
from kerasdl import startup
from kerasdl.training import devices, optimizers

startup.import_keras()  # divides the processor
FIELDS = {
    "cifar10": {"architecture": "lenet"},
    "denoiser": {"clip_norm": 0.05},
    "sentiment": {"word_dropout": 0.0, "clip_norm": None},
    "vae": {},
    "dcgan": {"validation_pictures": 8},
}
"""By application: the first three then draw nothing in a step, and the denoiser clips the gradient."""
MAKE = optimizers.make
optimizers.make = lambda kind, *values, **options: MAKE("sgd", *values)  # Adam would divide rounding by rounding


def trained(module, name, folder, count, *others, resume=False):
    fields = {"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "precision": "float32", "devices": count}
    fields |= {"cache": folder.parent / "cache", **FIELDS[name]}
    known = {field.name for field in dataclasses.fields(module.Config)}
    config = dataclasses.replace(module.tiny()[0], **{name: value for name, value in fields.items() if name in known})
    data = fitting.few(module.tiny(config)[1], 40, 11)
    folder.mkdir(parents=True, exist_ok=True)
    saver = _run.checkpoint.Checkpoint(folder, monitor="val_loss", maximize=False, resume=resume)
    module.train(config, _run.built(module, config, data), data, [*others, saver])


def drawn(file):
    """What dropout draws on each of two devices, in two steps."""
    with devices.scope(2):
        noise = keras.Input((50,))
        model = keras.Model(noise, keras.layers.Dropout(0.5, seed=0)(noise))
    devices.prepare(model)
    step = tf.function(lambda: model(tf.ones([1, 50]), training=True))
    strategy = model.distribute_strategy
    np.save(file, [strategy.experimental_local_results(strategy.run(step)) for _ in range(2)])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    drawn(root / "drawn.npy")
    for name in FIELDS:
        module = importlib.import_module(f"apps.{name}")
        for count in (1, 2):
            trained(module, name, root / name / str(count), count)
        if name == "denoiser":
            try:
                trained(module, name, root / name / "resumed", 2, fitting.StopsBefore(1))
            except KeyboardInterrupt:
                trained(module, name, root / name / "resumed", 2, resume=True)
