"""Statistics of the channels of pictures, by which a network divides what it sees."""

import numpy as np

_CONTRAST = 64.0  # usual deviation of photographs, 0..255


def usable_deviation(deviation: np.ndarray) -> np.ndarray:
    """Deviations of channels, none of them so small that a division by it would blow the channel up.

    A channel that hardly varies in the training pictures, such as red where only green is lit, holds rounding and
    traces of compression. It is scaled as the channel that varies most: divided by its own deviation its noise would
    look like a picture, and a later picture that does have red would be hundreds of deviations away.

    Args:
        deviation: float[channels], standard deviation of each channel, of values 0..255.

    Returns:
        float[channels]; in place of one below a quarter of the largest the largest; 64 for each where nothing varies.
    """
    largest = deviation.max()
    if largest < 0.01:
        return np.full_like(deviation, _CONTRAST)
    return np.where(deviation < largest / 4, largest, deviation)
