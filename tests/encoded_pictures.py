"""Encoded pictures of every kind that people bring, with the pixels that each of them shows.

What Pillow writes it also reads, by decoders of its own: the reference. What it does not write is built from bytes.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # the EXIF tag

RNG = np.random.default_rng(0)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).resize((41, 29), Image.Resampling.BICUBIC)
)
"""A small scene in colour, of odd sides, smooth enough for a JPEG: uint8[29, 41, 3]."""
OPAQUE = Image.fromarray(PIXELS)
OPACITY = np.clip(RNG.integers(-200, 456, PIXELS.shape[:2]), 0, 255).astype(np.uint8)
SEEN_THROUGH = Image.fromarray(np.dstack([PIXELS, OPACITY]))  # has colours where nothing is to be seen of them


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def by_pillow(content):
    """uint8[height, width, 3]: upright, on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def turned(pixels, orientation):
    """The stored pixels of a picture as they are to be seen (CIPA DC-008, table 5)."""
    rows_are_rows = pixels if orientation < 5 else pixels.swapaxes(0, 1)
    vertical, horizontal = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1),
                            5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]  # fmt: skip
    return rows_are_rows[::vertical, ::horizontal]


def tiff(orientation, order="<", kind=3, before=()):
    """EXIF data: a directory of the tags `before` and the orientation, in either byte order."""
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in before]
    value = struct.pack(order + {3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}[kind], orientation).ljust(4, b"\xaa")
    entries.append(struct.pack(f"{order}HHI", ORIENTATION, kind, 1) + value)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return header + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*segments):
    """The scene as a JPEG with segments behind the JFIF one."""
    plain = encoded(OPAQUE, "JPEG", quality=95)
    behind = 4 + struct.unpack(">H", plain[4:6])[0]
    return plain[:behind] + b"".join(segments) + plain[behind:]


def jpegs():
    plain = by_pillow(jpeg_with())
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            yield (
                f"jpeg {subsampling} {progressive}",
                encoded(OPAQUE, "JPEG", subsampling=subsampling, progressive=progressive),
            )
    yield "jpeg grey", encoded(OPAQUE.convert("L"), "JPEG")
    cmyk = encoded(OPAQUE.convert("CMYK"), "JPEG", quality=95)
    yield "jpeg cmyk", cmyk
    ycck = cmyk.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")
    assert ycck != cmyk
    yield "jpeg ycck", ycck
    for orientation in range(1, 9):
        for order in "<>":
            exif = segment(0xE1, b"Exif\0\0" + tiff(orientation, order, before=[(0x100, 6), (0x101, 0x01120003)]))
            yield f"jpeg {orientation} {order}", jpeg_with(exif), turned(plain, orientation)
    exif = segment(0xE1, b"Exif\0\0" + tiff(6))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='3'/>")
    profile = segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(60000)) + segment(0xE2, b"ICC_PROFILE\0\2\2" + bytes(9000))
    comment = segment(0xFE, b"\xff\xe1 a comment Exif\0\0")
    others = [xmp, profile, segment(0xED, b"Photoshop"), comment, segment(0xDB, bytes(65)), b"\xff\xff\xff"]
    long = segment(0xE1, b"Exif\0\0" + tiff(8, ">", kind=4))
    yield "jpeg behind others", jpeg_with(*others, exif), turned(plain, 6)
    yield "jpeg before others", jpeg_with(exif, *others), turned(plain, 6)
    yield "jpeg long value", jpeg_with(long), turned(plain, 8)
    for kind in (4, 6, 8, 9):
        for order in "<>":
            strange = jpeg_with(segment(0xE1, b"Exif\0\0" + tiff(6, order, kind=kind)))
            yield f"jpeg exif type {kind} {order}", strange, turned(plain, 6)
    yield "jpeg two", jpeg_with(exif, segment(0xE1, b"Exif\0\0" + tiff(3))), turned(plain, 6)
    without_jfif = jpeg_with(exif)
    yield "jpeg exif first", without_jfif[:2] + without_jfif[20:], turned(plain, 6)
    broken = {"zero": tiff(0), "nine": tiff(9), "no text": b"", "cut": tiff(6)[:13], "order": b"XX*\0" + tiff(6)[4:],
              "far": b"II*\0\xff\xff\xff\xff" + tiff(6)[8:], "back": b"II*\0\0\0\0\0" + tiff(6)[8:],
              "many": tiff(6)[:8] + b"\xff\xff", "text": tiff(6)[:12] + b"\2\0" + tiff(6)[14:]}  # fmt: skip
    for name, content in broken.items():
        yield f"jpeg broken exif {name}", jpeg_with(segment(0xE1, b"Exif\0\0" + content)), plain


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, colors, *chunks, behind=()):
    """A PNG from values [height, width] or [height, width, channels]; `colors` is the type of its header."""
    height, width = values.shape[:2]
    flat = values.reshape(height, -1)
    if depth < 8:
        bits = (flat[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        rows = flat.astype(">u2" if depth == 16 else "u1")
    header = struct.pack(">2I5B", width, height, depth, colors, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data[:9]), chunk(b"IDAT", data[9:]), *behind]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def on_white(pixels, opacity):
    pixels, opacity = pixels.astype(int), opacity[..., None].astype(int)
    return np.round((pixels * opacity + 255 * (255 - opacity)) / 255).astype(np.uint8)


def pngs():
    for depth in (1, 2, 4, 8, 16):
        values = RNG.integers(0, 2**depth, (9, 13))
        values[0, :2] = 0, 2**depth - 1
        grey = np.repeat((values * 255 // (2**depth - 1) if depth < 16 else values >> 8)[..., None], 3, -1)
        yield f"png grey {depth}", png(values, depth, 0), grey
        clear = chunk(b"tRNS", struct.pack(">H", int(values[3, 3])))
        yield (
            f"png grey {depth} clear",
            png(values, depth, 0, clear),
            np.where((values == values[3, 3])[..., None], 255, grey),
        )
        if depth <= 8:
            palette = RNG.integers(0, 256, (2**depth, 3), np.uint8)
            opacity = RNG.integers(0, 256, 2**depth, np.uint8)
            colors = chunk(b"PLTE", palette.tobytes())
            yield f"png palette {depth}", png(values, depth, 3, colors), palette[values]
            some = chunk(b"tRNS", opacity[:-1].tobytes())
            opacity[-1] = 255
            yield (
                f"png palette {depth} clear",
                png(values, depth, 3, colors, some),
                on_white(palette[values], opacity[values]),
            )
    for depth in (8, 16):
        upper = depth - 8
        values = RNG.integers(0, 2**depth, (9, 13, 4))
        values[:4, ..., 3], values[4, ..., 3] = 0, 2**depth - 1
        color, opacity = values[..., :3] >> upper, values[..., 3] >> upper
        yield f"png rgb {depth}", png(values[..., :3], depth, 2), color
        clear = chunk(b"tRNS", struct.pack(">3H", *map(int, values[3, 3, :3])))
        expected = np.where((values[..., :3] == values[3, 3, :3]).all(-1, keepdims=True), 255, color)
        yield f"png rgb {depth} clear", png(values[..., :3], depth, 2, clear), expected
        yield f"png rgba {depth}", png(values, depth, 6), on_white(color, opacity)
        yield (
            f"png grey alpha {depth}",
            png(values[..., 2:], depth, 4),
            on_white(color[..., 2:], opacity) * [[[1, 1, 1]]],
        )
    for orientation in range(1, 9):
        exif = chunk(b"eXIf", tiff(orientation, "<>"[orientation % 2]))
        for place in ({"behind": [exif]}, {}):
            content = png(PIXELS, 8, 2, *([] if place else [chunk(b"iTXt", b"Orientation\0" * 9), exif]), **place)
            yield f"png {orientation} {place and 'behind'}", content, turned(PIXELS, orientation)


def gifs():
    palette = OPAQUE.quantize(60)
    yield "gif", encoded(palette, "GIF")
    yield "gif grey", encoded(OPAQUE.convert("L"), "GIF")
    yield "gif clear", encoded(palette, "GIF", transparency=7, comment=b"\x2c" * 700)
    yield "gif clear interlaced", encoded(palette, "GIF", transparency=palette.getpixel((3, 3)), interlace=1)
    yield "gif of transparent", encoded(SEEN_THROUGH, "GIF")
    frames = [SEEN_THROUGH.rotate(90), OPAQUE.rotate(180)]
    yield "gif animation", encoded(palette, "GIF", save_all=True, append_images=frames, loop=0)
    yield "gif animation clear", encoded(SEEN_THROUGH, "GIF", save_all=True, append_images=frames, loop=3, disposal=2)
    for own_table in (False, True):  # the frame is smaller than the canvas, the second one larger
        table = b"\x10\x20\x30\xff\0\0\0\xff\0\0\0\xff"
        screen = struct.pack("<2H3B", 9, 7, 0 if own_table else 0x81, 0, 0) + (b"" if own_table else table)
        control = b"\x21\xf9\4\1\0\0\1\0"

        def frame(left, top, width, height, own_table=own_table, table=table):
            bits = "".join(f"{code:03b}"[::-1] for code in [*(c for i in range(width * height) for c in (4, i % 4)), 5])
            data = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))  # a clear code before each
            descriptor = b"\x2c" + struct.pack("<4HB", left, top, width, height, 0x81 if own_table else 0)
            return descriptor + (table if own_table else b"") + b"\2" + bytes([len(data)]) + data + b"\0"

        expected = np.full((7, 9, 3), 255)
        colors = np.array([[0x10, 0x20, 0x30], [255] * 3, [0, 255, 0], [0, 0, 255]])
        expected[2:5, 3:8] = colors[np.arange(15) % 4].reshape(3, 5, 3)
        content = b"GIF89a" + screen + control + frame(3, 2, 5, 3) + frame(0, 0, 9, 7) + b";"
        yield f"gif small frame {own_table}", content, expected


def webps():
    for name, image in (("opaque", OPAQUE), ("clear", SEEN_THROUGH)):
        for lossless in (False, True):
            yield f"webp {name} {lossless}", encoded(image, "WEBP", lossless=lossless)
            frames = [image.rotate(180), image.rotate(90)]
            yield (
                f"webp animation {name} {lossless}",
                encoded(image, "WEBP", lossless=lossless, save_all=True, append_images=frames),
            )
        for orientation in range(1, 9):
            exif = tiff(orientation, "<>"[orientation % 2])
            exif = exif if orientation % 3 else b"Exif\0\0" + exif
            content = encoded(image, "WEBP", lossless=True, exif=exif)
            yield (
                f"webp {name} {orientation}",
                content,
                turned(by_pillow(encoded(image, "WEBP", lossless=True)), orientation),
            )
    # A first frame that is smaller than the canvas.
    animation = encoded(OPAQUE, "WEBP", lossless=True, save_all=True, append_images=[OPAQUE.rotate(180)])
    begin = animation.index(b"VP8X")
    wider = animation[: begin + 12] + struct.pack("<I", 60)[:3] + struct.pack("<I", 40)[:3] + animation[begin + 18 :]
    frame = wider.index(b"ANMF") + 8
    moved = wider[:frame] + b"\4\0\0\3\0\0" + wider[frame + 6 :]
    expected = np.full((41, 61, 3), 255)
    expected[6 : 6 + PIXELS.shape[0], 8 : 8 + PIXELS.shape[1]] = PIXELS
    yield "webp small frame", moved, expected


def bmp(rows, bits, *, header=40, coding=0, masks=b"", palette=b"", top_down=False, size=None, gap=0):
    """A BMP from the bytes of its rows, the upper one first."""
    height, width = size
    rows = [row + bytes(-len(row) % 4) for row in rows]
    data = b"".join(rows if top_down else rows[::-1])
    signed = -height if top_down else height
    if header == 12:
        fields = struct.pack("<I4H", 12, width, height, 1, bits)
    else:
        used = len(palette) // 4
        fields = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, coding, len(data), 0, 0, used, 0)
        fields += masks
        fields += bytes(max(header - len(fields), 0))
    begin = 14 + len(fields) + len(palette) + gap
    return b"BM" + struct.pack("<IHHI", begin + len(data), 0, 0, begin) + fields + palette + bytes(gap) + data


def bmps():
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        image = SEEN_THROUGH if mode == "RGBA" else OPAQUE.convert(mode)
        yield f"bmp {mode}", encoded(image, "BMP")
    for bits in (1, 2, 4, 8):
        index = RNG.integers(0, 2**bits, (9, 13))
        packed = np.packbits(((index[..., None] >> np.arange(bits)[::-1]) & 1).reshape(9, -1).astype(np.uint8), axis=1)
        rows = [row.tobytes() for row in packed]
        colors = RNG.integers(0, 256, (2**bits, 3), np.uint8)
        three = colors[:, ::-1].tobytes()
        four = np.pad(colors[:, ::-1], [(0, 0), (0, 1)]).tobytes()
        for top_down in (False, True):
            content = bmp(rows, bits, palette=four, size=(9, 13), top_down=top_down, gap=6 * top_down)
            yield f"bmp palette {bits} {top_down}", content, colors[index]
        yield f"bmp palette {bits} core", bmp(rows, bits, header=12, palette=three, size=(9, 13)), colors[index]
        yield f"bmp palette {bits} v4", bmp(rows, bits, header=108, palette=four, size=(9, 13)), colors[index]
    few = bmp([bytes([0, 1, 2])] * 2, 8, palette=bytes(4) + b"\1\2\3\0" + b"\4\5\6\0", size=(2, 3))
    yield "bmp few colours", few, np.array([[[0, 0, 0], [3, 2, 1], [6, 5, 4]]] * 2)
    values = RNG.integers(0, 2**16, (9, 13))
    rows = [row.astype("<u2").tobytes() for row in values]
    five = np.stack([(values >> shift & 31) * 255 // 31 for shift in (10, 5, 0)], -1)
    six = np.stack([(values >> 11) * 255 // 31, (values >> 5 & 63) * 255 // 63, (values & 31) * 255 // 31], -1)
    yield "bmp 16", bmp(rows, 16, size=(9, 13)), five
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    for header in (40, 52, 108, 124):
        for top_down in (False, True):
            content = bmp(rows, 16, header=header, coding=3, masks=masks, size=(9, 13), top_down=top_down)
            yield f"bmp 16 masks {header} {top_down}", content, six
    pixels = RNG.integers(0, 256, (9, 13, 4), np.uint8)
    blue_first = [row[:, 2::-1].tobytes() for row in pixels]
    for header in (12, 40, 124):
        yield f"bmp 24 {header}", bmp(blue_first, 24, header=header, size=(9, 13)), pixels[..., :3]
    rows = [row[:, [2, 1, 0, 3]].tobytes() for row in pixels]
    yield "bmp 32", bmp(rows, 32, size=(9, 13), top_down=True), pixels[..., :3]
    masks = struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    rows = [row.tobytes() for row in pixels]
    yield "bmp 32 masks", bmp(rows, 32, coding=3, masks=masks[:12], size=(9, 13)), pixels[..., :3]
    for header in (56, 108, 124):
        content = bmp(rows, 32, header=header, coding=3, masks=masks, size=(9, 13))
        yield f"bmp 32 alpha {header}", content, on_white(pixels[..., :3], pixels[..., 3])


def every_kind():
    """Name -> content and the pixels uint8[height, width, 3] that are to be seen."""
    found = [*jpegs(), *pngs(), *gifs(), *webps(), *bmps()]
    return {name: (content, *(expected or [by_pillow(content)])) for name, content, *expected in found}


def damaged():
    """Name -> content and a part of the reason why it cannot be read."""
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    cut = {form: content[: len(content) // 2] for form in ("JPEG", "PNG", "GIF", "BMP", "WebP")
           for content in [encoded(noise, form)]}  # fmt: skip
    cases = {form: (content, f"a damaged {form}") for form, content in cut.items()}
    cases |= {f"{form} head": (content[:30], f"a damaged {form}") for form, content in cut.items()}
    cases["palette"] = encoded(noise.convert("P"), "BMP")[:300], "a damaged BMP"
    cases["depth"] = bmp([bytes(9)] * 2, 24, size=(2, 3)).replace(b"\1\0\x18\0", b"\1\0\x07\0"), "a damaged BMP"
    cases["nothing"] = bmp([], 24, size=(0, 3)), "a damaged BMP"
    cases["run-length"] = bmp([bytes(12)] * 2, 8, coding=1, palette=bytes(1024), size=(2, 12)), "a compressed BMP"
    animation = encoded(OPAQUE, "WEBP", save_all=True, append_images=[OPAQUE.rotate(180)])
    cases["animation"] = animation.replace(b"ANMF", b"ANMG"), "a damaged WebP"
    inside = "no JPEG, PNG, GIF, BMP or WebP inside"
    cases |= {
        "empty": (b"", inside),
        "text": (b"<html>404 not found</html>", inside),
        "tiff": (encoded(noise, "TIFF"), inside),
    }
    bomb = struct.pack(">2I5B", 60000, 60000, 8, 2, 0, 0, 0)
    large = "more than 178 million pixels"
    cases["large PNG"] = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bomb) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), large
    gif = encoded(OPAQUE.quantize(60), "GIF")
    cases["large GIF"] = gif[:6] + b"\xff\xff\xff\xff" + gif[10:], large
    return cases
