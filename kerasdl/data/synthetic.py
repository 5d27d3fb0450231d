"""Made images and texts that a network can learn from and a linear model cannot: no download, no files."""

import math
from collections.abc import Callable

import numpy as np

_MIN_CONTRAST, _MAX_CONTRAST = 96, 160  # steps of 256 on a circle of colour values
_NOISE = 6.0  # standard deviation, in steps of 256


def shapes(num_examples: int, *, size: int = 32, num_classes: int = 4, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws filled shapes at random places, sizes, angles and colours, one an image; the label is the shape.

    Foreground and background differ by at least 96 of 256 in every channel, up or down at random: neither
    colour nor brightness tells the class. Classes are equally frequent, to within one example.

    Args:
        num_examples: number of images.
        size: image height and width in pixels; shapes are hard to tell apart below 16.
        num_classes: the first so many of `SHAPE_NAMES`.
        seed: the same seed gives the same images.

    Returns:
        images uint8[num_examples, size, size, 3] and labels int32[num_examples].

    Raises:
        ValueError: if there are not that many shapes.

    Source: own.
    """
    if not 2 <= num_classes <= len(SHAPE_NAMES):
        raise ValueError(f"There are 2 to {len(SHAPE_NAMES)} shapes; got num_classes={num_classes}: ask for fewer.")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_examples) % num_classes).astype(np.int32)
    radius = rng.uniform(0.28, 0.42, num_examples) * size
    center = radius + rng.random((2, num_examples)) * (size - 2 * radius)
    angle = rng.uniform(0, 2 * np.pi, num_examples)
    distance = np.empty((num_examples, size, size, 1), np.float32)
    for label, signed_distance in enumerate(_SIGNED_DISTANCES[:num_classes]):
        chosen = labels == label
        x, y = _local_grid(size, center[:, chosen], radius[chosen], angle[chosen])
        distance[chosen, :, :, 0] = signed_distance(x, y) * radius[chosen, None, None]
    coverage = np.clip(0.5 - distance, 0, 1)  # a pixel on the edge is partly covered

    background = rng.integers(0, 256, (num_examples, 1, 1, 3))
    contrast = rng.integers(_MIN_CONTRAST, _MAX_CONTRAST + 1, background.shape)
    foreground = (background + contrast) % 256
    images = _NOISE * rng.standard_normal((num_examples, size, size, 3), np.float32)
    images += background.astype(np.float32) + coverage * (foreground - background).astype(np.float32)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def _local_grid(size: int, center: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, with the shape upright at the origin and radius 1: x and y, float32[n, size, size]."""
    pixel = np.arange(size) + 0.5
    x = ((pixel - center[0][:, None]) / radius[:, None]).astype(np.float32)[:, None, :]
    y = ((pixel - center[1][:, None]) / radius[:, None]).astype(np.float32)[:, :, None]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cos * x + sin * y, cos * y - sin * x


# Signed distances from the outline, negative inside, in radii; every shape fits the unit disc.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.85


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 0.7, 0.7)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) * (math.sqrt(3) / 2) + y / 2, -y) - 0.5


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.95, 0.25), _box(x, y, 0.25, 0.95))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.7) - 0.2


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Folded into one tenth of the plane, the outline of a five-pointed star is a line from tip to notch.
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(y, x) + tenth) % (2 * tenth) - tenth)
    length = np.hypot(x, y)
    notch_x, notch_y = 0.4 * math.cos(tenth), 0.4 * math.sin(tenth)
    normal_x, normal_y = notch_y, 1 - notch_x
    outwards = (length * np.cos(angle) - 1) * normal_x + length * np.sin(angle) * normal_y
    return outwards / math.hypot(normal_x, normal_y)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.45, y))


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 0.95, 0.22)


def _frame(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(_box(x, y, 0.52, 0.52)) - 0.17


def _half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y + 0.4) - 0.9, -0.4 - y)


_SIGNED_DISTANCES: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = [
    _circle,
    _square,
    _triangle,
    _cross,
    _ring,
    _star,
    _crescent,
    _bar,
    _frame,
    _half_disc,
]

SHAPE_NAMES = tuple(distance.__name__[1:].replace("_", " ") for distance in _SIGNED_DISTANCES)
"""The classes of `shapes`, in the order of their labels."""


def bookkeeping(length: int, *, seed: int) -> str:
    """Lines of made-up accounts, `anna pays "bread" (3+4)=7;`: what a recurrent network can learn to predict.

    After a name, an item or a bracket is begun, the rest of it follows; quotes and brackets close; the sum is that of
    its bracket. Who, what and how much are drawn at random.

    Args:
        length: characters.
        seed: any integer.

    Returns:
        The text.

    Source: own.
    """
    rng = np.random.default_rng(seed)
    names, verbs = ("anna", "bruno", "clara", "dmitri", "elena"), ("pays", "owes", "lends")
    items = ("bread", "copper wire", "honey", "ink and paper", "salt")
    lines: list[str] = []
    missing = length
    while missing > 0:
        first, second = rng.integers(0, 5, 2)
        deed = f'{rng.choice(names)} {rng.choice(verbs)} "{rng.choice(items)}"'
        lines.append(f"{deed} ({first}+{second})={first + second};\n")
        missing -= len(lines[-1])
    return "".join(lines)[:length]


def reviews(num_examples: int, *, seed: int) -> tuple[list[str], np.ndarray]:
    """Writes short made-up reviews whose verdict often stands far behind its negation; the label is the sentiment.

    One sentence gives the verdict, such as "the plot is not what anyone i know would call good .": its adjective is as
    often good as bad, and as often negated as not, whatever the label. The other sentences are the same for both
    labels; some of them hold a negation that denies nothing. So no single word tells anything, and few pairs of
    neighbours do: one has to remember whether this sentence was negated until its adjective comes.

    Args:
        num_examples: number of reviews, 10 to 45 words each, as many of one label as of the other to within one.
        seed: the same seed gives the same reviews.

    Returns:
        The texts, in lower case, and labels int32[num_examples]: 0 negative, 1 positive.

    Source: own.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_examples) % 2).astype(np.int32)

    def one_of(*phrases: str) -> str:
        return phrases[rng.integers(len(phrases))]

    def subject() -> str:
        return one_of("the plot", "the music", "the cast", "this film", "the ending")

    def aside() -> str:
        return one_of(
            f"{subject()} was made by {one_of('a friend', 'an uncle', 'a neighbour')} of mine .",
            f"i had not heard of {subject()} before .",
            f"we saw it on a {one_of('rainy', 'quiet', 'cold')} {one_of('day', 'evening', 'sunday')} .",
            f"nobody talks about {subject()} .",
            f"it is {one_of('two', 'three', 'four')} hours long .",
        )

    def verdict(positive: bool) -> str:
        negated = rng.random() < 0.5
        verb = one_of("is not", "was never", "is hardly") if negated else one_of("is", "was", "is surely")
        between = one_of("", "", "what anyone i know would call", "at the end of the day", "for my own taste")
        adjective = one_of("good", "great", "lovely") if positive != negated else one_of("bad", "dull", "awful")
        return " ".join([subject(), verb, *between.split(), adjective, "."])

    texts = []
    for label in labels:
        sentences = [aside() for _ in range(rng.integers(1, 4))]
        sentences.insert(rng.integers(len(sentences) + 1), verdict(bool(label)))
        texts.append(" ".join(sentences))
    return texts, labels
