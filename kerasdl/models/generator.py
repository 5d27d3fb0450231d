"""A generator of pictures by its signatures, those of an export or in memory: for metrics, figures and verbs.

generator = Generator(export.signatures(folder))
pictures = generator.draw(generator.noise(64, seed=0))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl import command_line
from kerasdl.data import pipeline
from kerasdl.decoding import latents
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.metrics import generated_pictures


class Generator:
    """Draws pictures of latents, and of classes if it is conditional.

    Args:
        signatures: `from_latent` takes latent float32[n, latent_dim], and class_index int32[n] if the generator is
            conditional, and gives image float32[n, height, width, channels], 0..255. The other is `generate`.
        class_names: of a conditional one; `draw`, `noise` and `generate` do without.
    """

    def __init__(self, signatures: Mapping[str, Any], class_names: Sequence[str] | None = None) -> None:
        inputs = signatures["from_latent"].inputs
        self.latent_dim: int = inputs["latent"].shape[1]
        self.conditional = "class_index" in inputs
        self._signatures, self._class_names = signatures, list(class_names or ())

    def noise(self, count: int, *, seed: int) -> np.ndarray:
        """Latents float32[count, latent_dim] for a measurement, the same each time."""
        return latents.draw([count], [seed], self.latent_dim).numpy()

    def draw(self, latent: np.ndarray, labels: np.ndarray | None = None, name: str = "") -> np.ndarray:
        """uint8 pictures of latents, and of labels int[n], which are not looked at without classes.

        With a name the progress is shown, see `pipeline.slices`.
        """
        made = []
        for part in pipeline.slices(len(latent), 100, name):
            classes = (
                {"class_index": tf.constant(labels[part], tf.int32)} if labels is not None and self.conditional else {}
            )
            image = self._signatures["from_latent"](latent=tf.constant(latent[part]), **classes)["image"]
            made.append(np.rint(image).astype(np.uint8))
        return np.concatenate(made)

    def generate(self, count: int, seed: int, truncation: float = 0.0, class_index: int = -1) -> dict[str, np.ndarray]:
        """What the signature `generate` answers; the class is for a conditional generator alone."""
        given = {"count": tf.constant([count]), "seed": tf.constant([seed]), "truncation": tf.constant([truncation])}
        if self.conditional:
            given["class_index"] = tf.constant([class_index])
        return {name: value.numpy() for name, value in self._signatures["generate"](**given).items()}

    def classes(self, words: Sequence[str]) -> list[int]:
        """The numbers of the classes that a person named by --classes, see `kerasdl.command_line.positions`.

        Raises:
            UserError: there is no such class, or the generator is not conditional.
        """
        if words and not self.conditional:
            raise UserError("this model knows no classes; leave --classes out, or train one with --conditional")
        return command_line.positions(words, self._class_names, "class", "classes")

    def files(self, count: int, seed: int, truncation: float, classes: Sequence[int]) -> tuple[list[bytes], list[str]]:
        """`count` PNG files of each class, where -1 is any, and a name for each file.

        That of the eighth one of seed 0 is `cat_0-00007`, or without classes `0-00007`.
        """
        contents: list[bytes] = []
        names = []
        for index in classes:
            answer = self.generate(count, seed, truncation, index)
            contents += answer["image_bytes"].tolist()
            kinds = [f"{self._class_names[i]}_" for i in answer["class_index"]] if self.conditional else [""] * count
            names += [f"{kind}{seed}-{i:05d}" for i, kind in enumerate(kinds)]
        return contents, names

    def ways(self, start: np.ndarray, end: np.ndarray, steps: int, classes: Sequence[int] = ()) -> np.ndarray:
        """Pictures uint8[count * steps, height, width, channels] on the ways from latents to others, way by way.

        Classes are for a conditional generator, one for each way in turn; empty: all of them. See
        `kerasdl.decoding.latents.interpolate`.
        """
        rows = latents.interpolate(start, end, steps).numpy().reshape(len(start) * steps, -1)
        kinds = np.resize(np.array(classes or range(max(1, len(self._class_names)))), len(start))
        return self.draw(rows, np.repeat(kinds, steps))

    def sheet(self) -> np.ndarray:
        """Pictures for a grid that is eight wide; of a conditional generator a row a class, ten at most."""
        rows = min(10, len(self._class_names)) if self.conditional else 8
        return self.draw(self.noise(8 * rows, seed=2), np.repeat(np.arange(rows), 8))

    def figures(self, folder: Path, space: Any, known: np.ndarray, images: np.ndarray) -> None:
        """Draws samples, the nearest training picture of eight of them, and ways from latent to latent.

        Args:
            folder: receives samples.png, neighbours.png and interpolation.png.
            space: a `feature_space.FeatureSpace`, in which neighbours are looked for.
            known: float32[n, features] of the training pictures.
            images: these, uint8[n, height, width, channels].
        """
        sheet = self.sheet()
        plots.image_grid(sheet, folder / "samples.png", columns=8)
        some = sheet[:: len(sheet) // 8][:8]
        index, _ = generated_pictures.nearest_neighbours(space.features(some), known)
        plots.image_grid(np.concatenate([some, images[index[:, 0]]]), folder / "neighbours.png", columns=8)
        start, end = np.split(self.noise(16, seed=3), 2)
        plots.image_grid(self.ways(start, end, 8), folder / "interpolation.png", columns=8)
