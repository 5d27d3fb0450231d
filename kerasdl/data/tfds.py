"""Standard data sets through TensorFlow Datasets, from a folder on disk or by its own download."""

import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl.errors import UserError

DATA_DIR = "KERASDL_DATA_DIR"


def builder(name: str, data_dir: Path | None = None) -> Any:
    """Finds a prepared data set, or prepares it.

    Looks for `<data_dir>/<name>/.../dataset_info.json`, where data_dir is the argument, else the environment
    variable KERASDL_DATA_DIR, else TFDS' own default folder. What is found there is read without any network;
    what is missing is downloaded by TFDS.

    Args:
        name: TFDS name, such as `cifar10` or `imdb_reviews/plain_text`.
        data_dir: TFDS data folder.

    Returns:
        A `tfds.core.DatasetBuilder` that is ready to be read.

    Raises:
        UserError: neither found nor downloadable, or damaged.
    """
    import tensorflow_datasets as tfds

    place = Path(data_dir or os.environ.get(DATA_DIR) or tfds.core.constants.DATA_DIR).expanduser()
    prepared = sorted((place / name).glob("*/dataset_info.json"), key=lambda path: _version(path.parent.name))
    if prepared:
        with _reading(name, prepared[-1].parent):
            return tfds.builder_from_directory(prepared[-1].parent)
    try:
        found = tfds.builder(name, data_dir=place, try_gcs=False)
        _look_up(found.url_infos)
        found.download_and_prepare()
    except Exception as error:  # TFDS lets through whatever its HTTP client, the disk or a checksum raises
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the data set {name} is not in {place} and could not be downloaded ({reason}); "
            f"give the TFDS folder that holds it with --data-dir or {DATA_DIR}, or run once with a network"
        ) from None
    return found


def _look_up(urls: Iterable[str]) -> None:
    """Looks for the hosts of a download: without a network TFDS would try again for more than three minutes.

    Raises:
        OSError: there is no such host, or no network; behind a proxy, which does the looking up, it is not asked.
    """
    if urllib.request.getproxies():
        return
    for host in sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls}):
        socket.getaddrinfo(host, None)


@contextmanager
def _reading(name: str, place: Path) -> Iterator[None]:
    """Names the data set and its folder where its files are damaged or missing."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:  # TensorFlow and TFDS raise whatever a cut or missing file leads to
        lines = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the records of {name} in {place} are damaged ({lines[0].strip()[:200]}); copy them anew, or let TFDS "
            "prepare them in another folder"
        ) from None


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


def images(name: str, split: str, data_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole image classification split into memory, in the order of its files.

    Args:
        name: TFDS name with features `image` and `label`, all images of one size.
        split: TFDS split, such as `train` or `test`.
        data_dir: see `builder`.

    Returns:
        uint8[examples, height, width, channels] and int32[examples].

    Raises:
        UserError: see `builder`.
    """
    import tensorflow_datasets as tfds

    found = builder(name, data_dir)
    channels = found.info.features["image"].shape[-1]
    encoded = found.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )

    def decode(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        # It takes PNG as well; of a JPEG the pixels are those of `picture_decoding`, which here would take too long.
        return tf.io.decode_jpeg(example["image"], channels=channels, dct_method="INTEGER_ACCURATE"), example["label"]

    with _reading(name, found.data_dir):
        examples = encoded.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(found.info.splits[split].num_examples)
        pictures, labels = next(iter(examples))
    return pictures.numpy(), labels.numpy().astype(np.int32)


def class_names(name: str, data_dir: Path | None = None) -> list[str]:
    """Names of the classes of a classification data set, by label.

    Raises:
        UserError: see `builder`.
    """
    return list(builder(name, data_dir).info.features["label"].names)


def texts(name: str, split: str, data_dir: Path | None = None) -> tuple[list[str], np.ndarray]:
    """Reads a whole text classification split into memory, in the order of its files.

    Args:
        name: TFDS name with features `text` and `label`, such as `imdb_reviews/plain_text`.
        split: TFDS split, such as `train`, `test` or `unsupervised`.
        data_dir: see `builder`.

    Returns:
        The texts and int32[examples], -1 for a text without a label.

    Raises:
        UserError: see `builder`.
    """
    examples = _whole(name, split, data_dir)
    return [written.decode("utf-8") for written in examples["text"].numpy()], examples["label"].numpy().astype(np.int32)


def text(name: str, split: str, data_dir: Path | None = None) -> str:
    """Reads a split of running text; several examples are joined by a newline.

    Args:
        name: TFDS name with the feature `text`, such as `tiny_shakespeare`, whose splits are one example each.
        split: TFDS split, such as `train`, `validation` or `test`.
        data_dir: see `builder`.

    Raises:
        UserError: see `builder`.
    """
    return b"\n".join(_whole(name, split, data_dir)["text"].numpy()).decode("utf-8")


def captioned(name: str, split: str, data_dir: Path | None = None) -> Iterator[tuple[str, bytes, list[str]]]:
    """Reads the pictures of a split with their captions one after the other, in the order of its files.

    Args:
        name: TFDS name with features `image`, `image/filename` and `captions/text`, such as `coco_captions/2014`.
        split: TFDS split, such as `val`, or several, such as `train+restval`.
        data_dir: see `builder`.

    Yields:
        The picture's file name, its bytes as they are stored, which is encoded, and its captions.

    Raises:
        UserError: see `builder`; or the records are damaged.
    """
    import tensorflow_datasets as tfds

    found = builder(name, data_dir)
    examples = found.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    rows = examples.as_numpy_iterator()
    while True:
        with _reading(name, found.data_dir):
            example = next(rows, None)
        if example is None:
            return
        captions = [caption.decode("utf-8") for caption in example["captions"]["text"]]
        yield example["image/filename"].decode("utf-8"), example["image"], captions


def _whole(name: str, split: str, data_dir: Path | None) -> dict[str, tf.Tensor]:
    import tensorflow_datasets as tfds

    found = builder(name, data_dir)
    with _reading(name, found.data_dir):
        examples = found.as_dataset(
            split=split, read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        )
        return next(iter(examples.batch(found.info.splits[split].num_examples)))
