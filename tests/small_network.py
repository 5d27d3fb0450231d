"""A small network in the place of one of keras.applications, whose many operations take most of a test's time."""

import keras


def preprocess_input(pixels):
    """Pixels 0..255 -> -1..1."""
    return pixels / 127.5 - 1


def network(include_top=False, weights=None, input_shape=(64, 64, 3)):
    """As `keras.applications.MobileNetV2`: halves the sides five times, with residual blocks of names alike."""
    assert not include_top
    image = x = keras.Input(input_shape)
    for number in range(5):
        x = keras.layers.Conv2D(8, 3, 2, "same", use_bias=False, name=f"block_{11 + number}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block_{11 + number}_norm")(x)
        x = keras.layers.ReLU(6.0, name=f"block_{11 + number}_relu")(x)
        y = keras.layers.DepthwiseConv2D(3, padding="same", name=f"block_{11 + number}_depthwise")(x)
        x = keras.layers.Add(name=f"block_{11 + number}_add")([x, y])
    x = keras.layers.Conv2D(24, 1, use_bias=False, name="last_conv")(x)
    x = keras.layers.BatchNormalization(name="last_norm")(x)
    model = keras.Model(image, keras.layers.ReLU(6.0, name="last_relu")(x), name="small")
    if weights is not None:
        model.load_weights(weights)
    return model
