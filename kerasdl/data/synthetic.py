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
    coverage = _coverage(labels, size, center, radius, angle)

    background = rng.integers(0, 256, (num_examples, 1, 1, 3))
    contrast = rng.integers(_MIN_CONTRAST, _MAX_CONTRAST + 1, background.shape)
    foreground = (background + contrast) % 256
    images = _NOISE * rng.standard_normal((num_examples, size, size, 3), np.float32)
    images += background.astype(np.float32) + coverage * (foreground - background).astype(np.float32)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def _coverage(label: np.ndarray, size: int, center: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers: float32[n, size, size, 1], 0 to 1."""
    distance = np.empty((len(label), size, size, 1), np.float32)
    for drawn, signed_distance in enumerate(_SIGNED_DISTANCES):
        chosen = label == drawn
        x, y = _local_grid(size, center[:, chosen], radius[chosen], angle[chosen])
        distance[chosen, :, :, 0] = signed_distance(x, y) * radius[chosen, None, None]
    return np.clip(0.5 - distance, 0, 1)  # a pixel on the edge is partly covered


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

_WARM = {"red": (220, 30, 40), "orange": (245, 140, 20), "yellow": (245, 225, 40)}
_COOL = {"green": (30, 160, 60), "blue": (40, 80, 230), "purple": (160, 50, 200)}
_RADII = {"small": 0.125, "large": 0.21}  # of the picture's side
_MARGIN = 1 / 32  # left free around each shape, in the same unit
_RELATIONS = ("left of", "right of", "above", "below")


def scenes(num_examples: int, *, size: int = 32, seed: int) -> tuple[np.ndarray, list[str]]:
    """Draws two shapes on noisy grey, with a caption like "a small red circle left of a large blue square".

    One shape is warm (red, orange or yellow), the other cool (green, blue or purple), and the warm one is named
    first: so a picture has one true caption. Each shape is small or large and one of the first four of
    `SHAPE_NAMES`, upright; the relation is "left of", "right of", "above" or "below". All these are uniform and
    independent of each other, so that no word but "a" and "of" can be guessed from the others: 2304 captions of 9 or
    10 words are equally likely.

    Both shapes lie wholly inside, and are apart by at least a sixteenth of the side in the direction of the
    relation; the distance of their centres in the other direction is at most half of that in this one.

    Args:
        num_examples: number of pictures.
        size: image height and width in pixels; small shapes are hard to tell apart below 32.
        seed: the same seed gives the same pictures and captions.

    Returns:
        images uint8[num_examples, size, size, 3] and captions, in lower case.

    Source: own.
    """
    rng = np.random.default_rng(seed)
    # Index 0 is the warm shape, index 1 the cool one.
    shape = rng.integers(0, 4, (2, num_examples))
    scale = rng.integers(0, len(_RADII), (2, num_examples))
    color = rng.integers(0, len(_WARM), (2, num_examples))
    relation = rng.integers(0, len(_RELATIONS), num_examples)

    radius = np.array(list(_RADII.values()))[scale] * size
    center = _apart(rng, radius + _MARGIN * size, relation, size)
    half_turn = np.full(num_examples, math.pi)  # rows count downwards: this points a triangle up
    grey = rng.integers(96, 161, (num_examples, 1, 1, 1)).astype(np.float32)
    images = _NOISE * rng.standard_normal((num_examples, size, size, 3), np.float32) + grey
    phrases = []
    for i, palette in enumerate((_WARM, _COOL)):
        coverage = _coverage(shape[i], size, center[i], radius[i], half_turn)
        contrast = np.array(list(palette.values()), np.float32)[color[i], None, None] - grey
        images += coverage * contrast
        sizes, colors = list(_RADII), list(palette)
        drawn = zip(scale[i], color[i], shape[i], strict=True)
        phrases.append([f"a {sizes[s]} {colors[c]} {SHAPE_NAMES[k]}" for s, c, k in drawn])
    captions = [
        f"{warm} {_RELATIONS[r]} {cool}" for warm, r, cool in zip(phrases[0], relation, phrases[1], strict=True)
    ]
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), captions


def _apart(rng: np.random.Generator, room: np.ndarray, relation: np.ndarray, size: int) -> np.ndarray:
    """Centres of two discs with the radii room[2, n], the first to the second as `_RELATIONS` says: [2, xy, n]."""
    before, behind = np.sort(rng.random((2, len(relation))), axis=0) * (size - 2 * room.sum(axis=0))
    along = np.stack([room[0] + before, 2 * room[0] + room[1] + behind])
    along = np.where(relation % 2 == 1, size - along, along)
    deviation = np.abs(along[1] - along[0]) / 2
    first = rng.uniform(room[0], size - room[0])
    low, high = np.maximum(room[1], first - deviation), np.minimum(size - room[1], first + deviation)
    across = np.stack([first, rng.uniform(low, high)])
    return np.stack([np.where(relation < 2, along, across), np.where(relation < 2, across, along)], axis=1)


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
