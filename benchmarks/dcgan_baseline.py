"""keras-io's recipe for a DCGAN, trained as long as asked and scored as the application's export is.

    python -m benchmarks.dcgan_baseline --dataset cifar10 --minutes 25        (about 35 minutes, a quiet machine)

The recipe is that of "DCGAN to generate face images": no normalization, leaky ReLU, one Dropout, Adam(1e-4), batch 32,
pictures 0..1, generated and real ones judged in one batch with noisy labels, and new pictures for the generator's step.
Its pictures have 64 pixels; at 32 the layers stay as they are and each map has half the side. As in the Keras 2 it was
written for, Dropout works in training: under Keras 3 a `train_step` that does not ask for training would turn it off.

Training and test pictures, the feature space and the metrics are those of `apps.dcgan`; so run it where the export was
evaluated, whose feature network runs/features holds. Pictures that exist are scored without a new training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _results

LATENTS, BATCH, COUNT = 128, 32, 10_000


def game(generator: Any, discriminator: Any, optimizers: tuple[Any, Any], loss: Any) -> Any:
    """The example's model and `train_step`, compiled.

    Args:
        generator: latents -> pictures.
        discriminator: pictures -> their probability, or logit, of being generated.
        optimizers: of the generator and of the discriminator.
        loss: cross-entropy of what the discriminator gives.
    """
    import keras
    import tensorflow as tf

    class GAN(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.discriminator = generator, discriminator
            self.generator_optimizer, self.discriminator_optimizer = optimizers
            self.means = [keras.metrics.Mean(name) for name in ("d_loss", "g_loss")]

        @property
        def metrics(self) -> list[Any]:
            return self.means

        def train_step(self, real: Any) -> dict[str, Any]:
            count = tf.shape(real)[0]
            latents = [tf.random.normal([count, generator.input_shape[-1]]) for _ in range(2)]
            generated = generator(latents[0], training=True)
            is_generated = tf.concat([tf.ones([count, 1]), tf.zeros([count, 1])], 0)
            is_generated += 0.05 * tf.random.uniform([2 * count, 1])
            with tf.GradientTape() as tape:
                judged = discriminator(tf.concat([generated, real], 0), training=True)
                discriminator_loss = loss(is_generated, judged)
            self._step(tape, discriminator_loss, discriminator, self.discriminator_optimizer)
            with tf.GradientTape() as tape:
                judged = discriminator(generator(latents[1], training=True), training=True)
                generator_loss = loss(tf.zeros([count, 1]), judged)
            self._step(tape, generator_loss, generator, self.generator_optimizer)
            for mean, value in zip(self.means, (discriminator_loss, generator_loss), strict=True):
                mean.update_state(value)
            return {mean.name: mean.result() for mean in self.means}

        def _step(self, tape: Any, loss: Any, network: Any, optimizer: Any) -> None:
            weights = network.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    model = GAN()
    model.compile()
    return model


def networks(channels: int) -> tuple[Any, Any]:
    """The example's generator and discriminator for 32 pixels."""
    import keras
    from keras import layers

    generator = keras.Sequential([keras.Input((LATENTS,)), layers.Dense(4 * 4 * 128), layers.Reshape((4, 4, 128))])
    for filters in (128, 256, 512):
        generator.add(layers.Conv2DTranspose(filters, 4, strides=2, padding="same"))
        generator.add(layers.LeakyReLU(0.2))
    generator.add(layers.Conv2D(channels, 5, padding="same", activation="sigmoid"))
    discriminator = keras.Sequential([keras.Input((32, 32, channels))])
    for filters in (64, 128, 128):
        discriminator.add(layers.Conv2D(filters, 4, strides=2, padding="same"))
        discriminator.add(layers.LeakyReLU(0.2))
    for layer in (layers.Flatten(), layers.Dropout(0.2), layers.Dense(1, activation="sigmoid")):
        discriminator.add(layer)
    return generator, discriminator


def trained(images: np.ndarray, minutes: float) -> tuple[Any, int]:
    """The generator of so many minutes of training, and its steps.

    Args:
        images: uint8[n, 32, 32, channels].
        minutes: from the begin of `fit`.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    generator, discriminator = networks(images.shape[-1])
    optimizers = keras.optimizers.Adam(1e-4), keras.optimizers.Adam(1e-4)
    model = game(generator, discriminator, optimizers, keras.losses.BinaryCrossentropy())
    batches = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images)).batch(BATCH)
    end = time.perf_counter() + 60 * minutes

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = time.perf_counter() > end

    model.fit(
        batches.map(lambda part: tf.cast(part, tf.float32) / 255),
        epochs=10_000,
        shuffle=False,  # the batches are shuffled already
        callbacks=[Stop()],
        verbose=2,
    )
    return generator, int(optimizers[0].iterations)


def drawn(generator: Any, count: int) -> np.ndarray:
    """uint8[count, 32, 32, channels] of new latents."""
    latents = np.random.default_rng(1).standard_normal((count, LATENTS), np.float32)
    parts = [generator.predict_on_batch(latents[i : i + 100]) for i in range(0, count, 100)]
    return np.rint(255 * np.concatenate(parts)).astype(np.uint8)


class Saved:
    """Pictures in place of a signature that draws them: `apps.dcgan.evaluate` asks for all of them, in parts."""

    def __init__(self, images: np.ndarray) -> None:
        self.rest = images
        self.inputs = {"latent": np.empty([0, LATENTS], np.float32)}

    def __call__(self, latent: Any) -> dict[str, np.ndarray]:
        """The next pictures, 0..255, as many as there are latents."""
        part, self.rest = np.split(self.rest, [len(latent)])
        return {"image": part}


def main() -> None:
    """Trains if need be, scores, and writes benchmarks/results/dcgan_baseline_<dataset>.json."""
    from apps import dcgan
    from kerasdl.files import atomic_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("cifar10", "mnist"), default="cifar10")
    parser.add_argument("--minutes", type=float, default=25, help="of training (default 25)")
    parser.add_argument("--data-dir", type=Path, help="TFDS folder; else KERASDL_DATA_DIR, else TFDS' own default")
    arguments = parser.parse_args()
    config = dcgan.Config(dataset=arguments.dataset, data_dir=arguments.data_dir)
    data = dcgan.load_data(config)
    path = Path("runs/dcgan_baseline") / f"{arguments.dataset}-{arguments.minutes:g}-minutes.npz"
    if not path.exists():
        generator, steps = trained(data.train.images, arguments.minutes)
        with atomic_path(path) as temporary:
            np.savez(temporary, images=drawn(generator, COUNT), steps=steps)
    with np.load(path) as file:
        images, steps = file["images"], int(file["steps"])
    metrics = dcgan.evaluate(config, {"from_latent": Saved(images)}, data)
    row = {
        "model": "keras-io's DCGAN recipe",
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in metrics.items()},
        "training_minutes": arguments.minutes,
        "steps": steps,
    }
    print(row)
    _results.write(
        f"dcgan_baseline_{arguments.dataset}",
        f"{data.description}; {COUNT:,} generated pictures; trained on {data.info['training_pictures']} for "
        f"{arguments.minutes:g} minutes, float32, batch {BATCH}",
        [row],
    )


if __name__ == "__main__":
    main()
