#!/usr/bin/env bash
# TensorFlow 2.21.0: three plain pictures of which decode_image, decode_png and decode_gif give other pixels than the
# file holds, without an error.
#
# 1. BMP of 8 bits with a palette. Expected: the palette's colours (or a refusal). Seen: the indices into the palette
#    as grey levels, so that a colour picture comes out as noise, nearly black if its palette is small.
# 2. PNG with fewer than 8 bits a pixel and no transparency, decoded with channels=4. Expected: opacity 255 everywhere,
#    as with 8 bits. Seen: the largest number of those bits: 1, 3 or 15. Whoever lays such a picture on a background,
#    as one does for transparent ones, gets the background. With channels=3 the same files are right.
# 3. GIF with a transparent colour. Expected: the colour that the palette holds there, or something to tell it by. Seen:
#    black, for every transparent pixel, and no channel that says which they were.
#
# A model that was trained on pictures read by another library sees other pictures through a SavedModel that decodes
# them by these operations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 pillow==12.0.0
cat > "$folder/pictures.py" <<'PYTHON'
import io

import numpy as np
import tensorflow as tf
from PIL import Image


def stored(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def first_pixel(content):
    by_pillow = Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0))
    by_tensorflow = tf.io.decode_image(content, channels=3, expand_animations=False)[0, 0]
    return f"Pillow {[*by_pillow]}, TensorFlow {by_tensorflow.numpy().tolist()}"


red = Image.new("RGB", (4, 4), (200, 30, 40)).quantize(2)
print("BMP with a palette:", first_pixel(stored(red, "BMP")))
for bits in (1, 2, 4, 8):
    content = stored(red, "PNG", bits=bits)
    alpha = np.unique(tf.io.decode_png(content, channels=4)[..., 3]).tolist()
    print(f"PNG of {bits} bits: {first_pixel(content)}, opacity {alpha}")
content = stored(red, "GIF", transparency=0)
print("GIF, this colour transparent:", first_pixel(content))
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/pictures.py" 2>/dev/null | tee "$folder/seen"
# Output seen (TensorFlow 2.21.0, Pillow 12.0.0, Python 3.11, x86-64):
diff "$folder/seen" - <<'SEEN'
BMP with a palette: Pillow [200, 30, 40], TensorFlow [0, 0, 0]
PNG of 1 bits: Pillow [200, 30, 40], TensorFlow [200, 30, 40], opacity [1]
PNG of 2 bits: Pillow [200, 30, 40], TensorFlow [200, 30, 40], opacity [3]
PNG of 4 bits: Pillow [200, 30, 40], TensorFlow [200, 30, 40], opacity [15]
PNG of 8 bits: Pillow [200, 30, 40], TensorFlow [200, 30, 40], opacity [255]
GIF, this colour transparent: Pillow [200, 30, 40], TensorFlow [0, 0, 0]
SEEN
echo "as described"
