"""Encoded pictures to pixels, in TensorFlow's graph: the one decoder of training, of the commands and of every export.

So a model sees the same pixels wherever a picture comes in. What TensorFlow's own operations leave out is added here:

    orientation    of EXIF data, in JPEG, PNG and WebP: the picture stands upright
    transparency   laid on white: colours that are hidden under it do not show
    animations     give their first frame, laid on the whole canvas where it is smaller
    BMP            of 1, 2, 4, 8 and 16 bits, with palettes, masks and headers of all versions; not run-length encoded

Of 16 bits a channel the upper byte is taken, grey becomes RGB, and colour profiles are ignored, as are
orientations that stand in XMP data alone. All operations run on the CPU, and every server of TensorFlow 2.21 has them.

Source: EXIF: CIPA DC-008; PNG: W3C PNG (third edition); GIF: GIF89a specification; WebP: RFC 9649; BMP: Microsoft,
BITMAPV5HEADER.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
"""What is read; a file's content decides, whatever its name ends in."""

NAMED = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
"""The formats in a sentence."""

MAX_PIXELS = 178_956_970
"""More are refused, by the header alone: a small file may hold a picture that fills the memory."""

_KINDS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF....WEBP")
"""What the content of each format begins with, in the order of `FORMATS`; a dot stands for any byte."""

_SIZES = {3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # bytes of the EXIF types that hold a number, by the types' numbers


def square(encoded: tf.Tensor, size: int | tf.Tensor, *, squash: bool = False) -> tf.Tensor:
    """A picture as a square of pixels: the middle of it or all of it, scaled with antialiasing.

    Args:
        encoded: string[], the content of a file.
        size: side of the result in pixels.
        squash: scale the whole picture, each side on its own, rather than cut out the middle square.

    Returns:
        uint8[size, size, 3].

    Raises:
        tf.errors.InvalidArgumentError: the picture cannot be decoded; see `reason`.
    """
    with tf.device("cpu:0"):
        # A side that stays so long leaves the scaling to the antialiasing below: at most about one level is different.
        image = decode(encoded, least=16 * size)
        if not squash:
            height, width = tf.unstack(tf.shape(image)[:2])
            side = tf.minimum(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[top : top + side, left : left + side]
        image = tf.image.resize(image, [size, size], antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def decode(encoded: tf.Tensor, *, least: int | tf.Tensor = 2**31 - 1) -> tf.Tensor:
    """A picture upright, in its own size, on white where it is transparent.

    It is one function of TensorFlow, whoever calls it: it is traced once, and stands once in an export.

    Args:
        encoded: string[], the content of a file.
        least: a JPEG is decoded at 1/2, 1/4 or 1/8, for a fraction of the time, as long as no side gets shorter than
            this, in pixels; by default in its own size.

    Returns:
        uint8[height, width, 3].

    Raises:
        tf.errors.InvalidArgumentError: the picture cannot be decoded; see `reason`.
    """
    return _decode(encoded, tf.convert_to_tensor(least, tf.int32))


@tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)])
def _decode(encoded: tf.Tensor, least: tf.Tensor) -> tf.Tensor:
    with tf.device("cpu:0"):
        raw = tf.io.decode_raw(encoded, tf.uint8)
        plain = tf.constant(1, tf.int64)

        def unknown() -> tuple[tf.Tensor, tf.Tensor]:
            with _require(tf.constant(False), f"no {NAMED} inside"):
                return tf.zeros([1, 1, 3], tf.uint8), plain

        branches = [
            lambda: _jpeg(encoded, raw, least),
            lambda: _png(encoded, raw),
            lambda: (_gif(encoded, raw), plain),
            lambda: (_bmp(raw), plain),
            lambda: _webp(encoded, raw),
            unknown,
        ]
        image, orientation = tf.switch_case(_kind(raw), [_apart(branch) for branch in branches])
        image = tf.ensure_shape(image, [None, None, 3])
        upright = tf.cond(orientation > 1, _apart(lambda: _upright(image, orientation)), lambda: image)
        return tf.ensure_shape(upright, [None, None, 3])


def grey(image: tf.Tensor) -> tf.Tensor:
    """Brightness of RGB pixels; what is grey already keeps its values.

    Args:
        image: uint8[..., 3].

    Returns:
        uint8[..., 1].

    Source: ITU-R BT.601, in integers as in Pillow.
    """
    weighted = tf.cast(image, tf.int32) * [19595, 38470, 7471]
    return tf.cast((tf.reduce_sum(weighted, -1, keepdims=True) + 32768) // 65536, tf.uint8)


def reason(error: Exception) -> str:
    """Why a picture could not be read, in a few words.

    Args:
        error: of reading the file, or of running a graph that decodes it.
    """
    message = str(error)
    if isinstance(error, OSError):
        return error.strerror or message
    if stated := re.search(r"assertion failed: \[(.+?)\]", message):
        return stated[1]
    if known := re.search("|".join(FORMATS), message):
        return f"a damaged {known[0]}"
    return f"no {NAMED} that can be decoded"


# --- Formats: each gives uint8[height, width, 3], most with the EXIF orientation 1 to 8 ------------------------------


def _jpeg(encoded: tf.Tensor, raw: tf.Tensor, least: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    def at_scale(ratio: int) -> Callable[[], tf.Tensor]:
        return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    height, width = tf.unstack(tf.image.extract_jpeg_shape(encoded)[:2])
    with _no_bomb(height, width):
        side = tf.minimum(height, width)
        halvings = sum(tf.cast(side // ratio >= least, tf.int32) for ratio in (2, 4, 8))
        image = tf.switch_case(halvings, [at_scale(ratio) for ratio in (1, 2, 4, 8)])

    def is_exif(head: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all((head == [0xFFE1, 0, *_words(b"Exif\0\0")]) | [False, True, False, False, False])

    def goes_on(_: tf.Tensor, head: tf.Tensor) -> tf.Tensor:
        return (head[0] > 0xFF00) & (head[0] != 0xFFDA) & ~is_exif(head)  # 0xFFDA: the picture itself begins

    def following(at: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        at += tf.where(head[0] == 0xFFFF, 1, 2 + head[1])  # any number of 0xFF may stand before a marker
        return at, _numbers(encoded, at, 5, tf.uint16)

    begin = tf.constant(2)
    at, head = tf.while_loop(goes_on, following, [begin, _numbers(encoded, begin, 5, tf.uint16)])
    return image, _orientation(raw, _either(is_exif(head), at + 4, -1))


def _png(encoded: tf.Tensor, raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    palette_alpha, exif = tf.unstack(_chunks(encoded, (b"tRNS", b"eXIf"), png=True))
    with _no_bomb(_integer(raw, 16, 4, True), _integer(raw, 20, 4, True)):
        # With fewer than 8 bits, four channels are wrong where there is no transparency: the alpha is not scaled.
        transparent = ((_integer(raw, 25, 1) & 4) > 0) | (palette_alpha >= 0)
        image = tf.cond(
            transparent,
            lambda: _on_white(tf.io.decode_png(encoded, channels=4)),
            lambda: tf.io.decode_png(encoded, channels=3),
        )
    return image, _orientation(raw, exif)


def _gif(encoded: tf.Tensor, raw: tf.Tensor) -> tf.Tensor:
    def table_bytes(packed: tf.Tensor) -> tf.Tensor:
        return _either((packed & 0x80) > 0, 3 * 2 ** (1 + (packed & 7)), 0)

    def extension(at: tf.Tensor, control: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        (end,) = tf.while_loop(
            lambda part: _integer(raw, part, 1) > 0, lambda part: (part + 1 + _integer(raw, part, 1),), [at + 2]
        )
        return end + 1, _either(_integer(raw, at + 1, 1) == 0xF9, at, control)

    none = tf.constant(-1, tf.int64)
    shared = table_bytes(_integer(raw, 10, 1))
    frame, control = tf.while_loop(
        lambda at, _: _integer(raw, at, 1) == 0x21, extension, [13 + shared, none]
    )  # the first frame's descriptor, and what says which of its colours is transparent
    left, top, width, height = (_integer(raw, frame + place, 2) for place in (1, 3, 5, 7))
    own = table_bytes(_integer(raw, frame + 9, 1))
    index = 3 * _integer(raw, control + 6, 1)
    transparent = (control >= 0) & ((_integer(raw, control + 3, 1) & 1) > 0) & (index < _either(own > 0, own, shared))
    # TensorFlow makes transparent pixels black, and cuts the canvas to the largest frame. So the transparent colour
    # becomes a white one, and the frame is put into the corner, before it decodes.
    file = _replaced(encoded, frame + 1, b"\0\0\0\0")

    def whitened() -> tf.Tensor:
        opaque = _replaced(file, control + 3, b"\0")
        return _replaced(opaque, _either(own > 0, frame + 10, 13) + index, b"\xff\xff\xff")

    canvas = [tf.maximum(_integer(raw, 8, 2), top + height), tf.maximum(_integer(raw, 6, 2), left + width)]
    with _no_bomb(*canvas):
        file = tf.cond(transparent, whitened, lambda: file)
        image = tf.io.decode_image(file, channels=3, expand_animations=False)[:height, :width]
    return _on_canvas(image, top, left, *canvas)


def _webp(encoded: tf.Tensor, raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    extended = _integer(raw, 12, 4, True) == _name(b"VP8X")
    animated = extended & ((_integer(raw, 20, 1) & 2) > 0)

    def still() -> tf.Tensor:
        header = _either(
            _integer(raw, 12, 4, True) == _name(b"VP8L"),
            (_integer(raw, 21, 4) & 0x3FFF) * (_integer(raw, 21, 4) // 2**14 & 0x3FFF),
            (_integer(raw, 26, 2) & 0x3FFF) * (_integer(raw, 28, 2) & 0x3FFF),
        )
        pixels = _either(extended, (1 + _integer(raw, 24, 3)) * (1 + _integer(raw, 27, 3)), header)
        with _no_bomb(pixels, 1):
            return opaque(encoded)

    def first_frame() -> tf.Tensor:
        # TensorFlow's own reading of animations writes past its buffer where the file has no transparency. So the
        # first frame becomes a file of its own.
        left, top = 2 * _integer(raw, frame, 3), 2 * _integer(raw, frame + 3, 3)
        canvas = 1 + _integer(raw, 27, 3), 1 + _integer(raw, 24, 3)
        length = _integer(raw, frame - 4, 4) - 16
        with _require((frame >= 0) & (length > 0), "a damaged WebP"), _no_bomb(*canvas):
            size = tf.gather(
                tf.constant([bytes([i]) for i in range(256)]), (length + 22) // [1, 2**8, 2**16, 2**24] % 256
            )
            file = tf.strings.join(
                [
                    tf.constant(b"RIFF"),
                    tf.strings.reduce_join(size),
                    tf.constant(b"WEBPVP8X\x0a\0\0\0\x10\0\0\0"),
                    tf.strings.substr(encoded, frame + 6, 6),  # width and height
                    tf.strings.substr(encoded, frame + 16, length),
                ]
            )
            return _on_canvas(opaque(file), top, left, *canvas)

    def opaque(file: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_webp(file)[0]
        return tf.cond(tf.shape(image)[-1] == 4, lambda: _on_white(image), lambda: image)

    frame, exif = tf.unstack(_chunks(encoded, (b"ANMF", b"EXIF"), png=False))
    return tf.cond(animated, first_frame, still), _orientation(raw, exif)


def _bmp(raw: tf.Tensor) -> tf.Tensor:
    header = _integer(raw, 14, 4)
    core = header == 12
    width = _either(core, _integer(raw, 18, 2), _integer(raw, 18, 4))
    signed = _integer(raw, 22, 4)
    signed = _either(core, _integer(raw, 20, 2), _either(signed < 2**31, signed, signed - 2**32))
    height = tf.abs(signed)  # negative: the rows begin at the top
    bits = _either(core, _integer(raw, 24, 2), _integer(raw, 28, 2))
    coding = _either(core, 0, _integer(raw, 30, 4))
    masked = (coding == 3) | (coding == 6)
    stride, begin = (width * bits + 31) // 32 * 4, _integer(raw, 10, 4)
    known = tf.reduce_any(bits == [1, 2, 4, 8, 16, 24, 32]) & (width > 0) & (height > 0)
    whole = known & (begin + stride * height <= tf.size(raw, tf.int64))

    def rows() -> tf.Tensor:
        stored = tf.reshape(raw[begin : begin + stride * height], [height, stride])
        return tf.cond(signed > 0, lambda: stored[::-1], lambda: stored)

    def by_palette() -> tf.Tensor:
        places = tf.cast(2 ** tf.range(8 - bits, -1, -bits), tf.int32)
        index = tf.cast(rows(), tf.int32)[..., None] // places % tf.cast(2**bits, tf.int32)
        index = tf.reshape(index, [height, -1])[:, :width]
        given, entry = _integer(raw, 46, 4), _either(core, 3, 4)
        count = _either(core | (given == 0) | (given > 256), 2**bits, given)
        first = 14 + header + _either(masked & (header == 40), 12, 0)
        colors = tf.reshape(raw[first : first + entry * count], [count, entry])[:, 2::-1]
        return tf.gather(tf.pad(colors, [[0, 256 - count], [0, 0]]), index)

    def by_masks() -> tf.Tensor:
        bytes_each = bits // 8
        values = tf.cast(tf.reshape(rows()[:, : width * bytes_each], [height, width, bytes_each]), tf.int64)
        values = tf.reduce_sum(values * 256 ** tf.range(bytes_each), -1, keepdims=True)
        usual = _either(bits == 16, [0x7C00, 0x3E0, 0x1F, 0], [0xFF0000, 0xFF00, 0xFF, 0])
        given = tf.stack([_integer(raw, place, 4) for place in (54, 58, 62, 66)])
        alpha = (header >= 56) | (coding == 6)
        masks = _either(masked, _either(alpha, given, given * [1, 1, 1, 0]), usual)
        lowest = tf.maximum(masks & -masks, 1)
        highest = masks // lowest
        pixels = tf.cast((values & masks) // lowest * 255 // tf.maximum(highest, 1), tf.uint8)
        return tf.cond(masks[3] > 0, lambda: _on_white(pixels), lambda: pixels[..., :3])

    def by_bytes() -> tf.Tensor:
        return tf.reshape(rows()[:, : width * bits // 8], [height, width, bits // 8])[..., 2::-1]

    with (
        _require(masked | (coding == 0), "a compressed BMP; save it without compression"),
        _require(whole, "a damaged BMP"),
        _no_bomb(height, width),
    ):
        whole_bytes = (bits >= 24) & ~masked
        return tf.cond(bits <= 8, by_palette, lambda: tf.cond(whole_bytes, by_bytes, by_masks))


# --- Parts -----------------------------------------------------------------------------------------------------------


def _apart(branch: Callable[[], Any]) -> Callable[[], Any]:
    """A branch that is not inlined: TensorFlow walks through inlined ones even where they are not taken."""

    def placed() -> Any:
        with tf.device("cpu:0"):  # functions do not inherit it
            return branch()

    return tf.function(placed, autograph=False, experimental_attributes={"_noinline": True})


def _kind(raw: tf.Tensor) -> tf.Tensor:
    """Index into `_KINDS`, int32; their number for none of them."""
    length = max(map(len, _KINDS))
    begin = raw[:length]
    begin = tf.pad(begin, [[0, length - tf.size(begin)]])
    expected = tf.constant([list(kind.ljust(length, b".")) for kind in _KINDS], tf.uint8)
    same = tf.reduce_all((begin == expected) | (expected == ord(".")), 1)
    return tf.argmax(tf.concat([same, [True]], 0), output_type=tf.int32)


def _name(name: bytes) -> int:
    return int.from_bytes(name, "big")


def _words(text: bytes) -> list[int]:
    return [_name(text[place : place + 2]) for place in range(0, len(text), 2)]


def _either(holds: tf.Tensor, one: tf.Tensor | int, other: tf.Tensor | int) -> tf.Tensor:
    """The one int64 or the other."""
    return tf.where(holds, tf.cast(one, tf.int64), tf.cast(other, tf.int64))


def _integer(raw: tf.Tensor, at: tf.Tensor | int, size: int, big: tf.Tensor | bool = False) -> tf.Tensor:
    """The number in some bytes, unsigned int64, the last byte first unless it is `big`; 0 behind the end."""
    part = tf.cast(raw[at : at + size], tf.int64)
    return tf.reduce_sum(part * _weights(size, big)[: tf.size(part)])


def _weights(size: int, big: tf.Tensor | bool) -> tf.Tensor:
    weights = [256**place for place in range(size)]
    return _either(big, weights[::-1], weights)


def _numbers(encoded: tf.Tensor, at: tf.Tensor, count: int, kind: tf.DType, big: bool = True) -> tf.Tensor:
    """Unsigned numbers int32[count] from a place on; 0 behind the end. Of 4 bytes they stay below 2**31."""
    at, length = tf.minimum(at, tf.strings.length(encoded)), count * kind.size
    part = tf.strings.substr(encoded, at, length)
    return tf.cast(tf.io.decode_raw(part, kind, little_endian=not big, fixed_length=length), tf.int32)


def _chunks(encoded: tf.Tensor, names: Sequence[bytes], *, png: bool) -> tf.Tensor:
    """Places int64[names] of the data in the first chunk of each name; -1 without one.

    Both formats begin a chunk with 8 bytes: WebP's with its name and size, PNG's with its size and name. After a PNG's
    data there are 4 bytes of checksum, after a WebP's one that makes their number even.
    """
    wanted = [int.from_bytes(name, "big" if png else "little") for name in names]

    def goes_on(at: tf.Tensor, head: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (at < end) & (head[0 if png else 1] >= 0)

    def following(at: tf.Tensor, head: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size, name = (head[0], head[1]) if png else (head[1], head[0])
        found = tf.where((name == wanted) & (found < 0), at + 8, found)
        at += 8 + tf.minimum(size, end) + (4 if png else size % 2)
        return at, _numbers(encoded, at, 2, tf.int32, png), found

    end, begin = tf.strings.length(encoded), tf.constant(8 if png else 12)
    first = _numbers(encoded, begin, 2, tf.int32, png)
    _, _, found = tf.while_loop(goes_on, following, [begin, first, tf.fill([len(names)], -1)])
    return tf.cast(found, tf.int64)


def _orientation(raw: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Orientation 1 to 8, int64, of the EXIF data at a place; 1 where there is none (place -1), or nothing sensible."""

    def read() -> tf.Tensor:
        begin = _either(_integer(raw, at, 4, True) == _name(b"Exif"), at + 6, at)
        order = _integer(raw, begin, 4, True)
        big = order == _name(b"MM\0*")
        end = tf.size(raw, tf.int64)
        directory = _either(big | (order == _name(b"II*\0")), begin + _integer(raw, begin + 4, 4, big), end)
        count = tf.minimum(_integer(raw, directory, 2, big), tf.maximum(end - directory - 2, 0) // 12)
        entries = tf.cast(tf.reshape(raw[directory + 2 : directory + 2 + 12 * count], [count, 12]), tf.int64)

        def column(at: int, size: int) -> tf.Tensor:
            return tf.reduce_sum(entries[:, at : at + size] * _weights(size, big), -1)

        kind = column(2, 2)
        value = tf.zeros_like(kind)
        for number, size in _SIZES.items():
            value = tf.where(kind == number, column(8, size), value)
        found = value[(column(0, 2) == 0x0112) & tf.reduce_any(kind[:, None] == [*_SIZES], -1)]
        first = tf.concat([found, [1]], 0)[0]
        return _either((first >= 1) & (first <= 8), first, 1)

    return tf.cond(at >= 0, _apart(read), lambda: tf.constant(1, tf.int64))


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors a picture that was stored in an EXIF orientation."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    return tf.reverse(image, tf.boolean_mask([0, 1], tf.stack([upside_down, mirrored])))


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """uint8[height, width, 3] of uint8[height, width, 4], the last of which is the opacity."""
    image = tf.ensure_shape(image, [None, None, 4])

    def blended() -> tf.Tensor:
        color, alpha = (tf.cast(part, tf.int32) for part in (image[..., :3], image[..., 3:]))
        return tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(image[..., 3] == 255), lambda: image[..., :3], blended)


def _on_canvas(image: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Lays a picture on a white one of another size."""
    below, beside = height - top - tf.shape(image, tf.int64)[0], width - left - tf.shape(image, tf.int64)[1]
    return tf.pad(image, [[top, below], [left, beside], [0, 0]], constant_values=255)


def _replaced(text: tf.Tensor, at: tf.Tensor, part: bytes) -> tf.Tensor:
    """A string[] with other bytes at a place."""
    before, after = tf.strings.substr(text, tf.constant(0, tf.int64), at), at + len(part)
    return tf.strings.join([before, tf.constant(part), tf.strings.substr(text, after, tf.int64.max)])


def _no_bomb(height: tf.Tensor, width: tf.Tensor) -> AbstractContextManager[object]:
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    return _require(pixels <= MAX_PIXELS, f"more than {MAX_PIXELS // 10**6} million pixels")


def _require(holds: tf.Tensor, message: str) -> AbstractContextManager[object]:
    """What is computed inside fails with a message where a condition does not hold."""
    return tf.control_dependencies([tf.debugging.Assert(holds, [message])])
