"""What an image classifier looks at: the activations of its layers, and maps of the places that matter.

Every function takes one image [height, width, channels] as the model takes it (its scale and dtype).
"""

import itertools
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasdl.errors import UserError

_OCCLUSION_BATCH = 64


def activation_maps(model: keras.Model, image: np.ndarray, layer_name: str) -> np.ndarray:
    """Computes what each channel of a layer answers to an image.

    Args:
        model: a functional or sequential model; its output is of no concern.
        image: [height, width, channels].
        layer_name: a layer whose output is [batch, height, width, channels], not one of a nested model.

    Returns:
        float32[height, width, channels] of the layer.

    Raises:
        UserError: if the model has no such layer, or the layer has no maps.
        ValueError: if the image does not fit the model.

    Source: Zeiler & Fergus 2013, arXiv:1311.2901, section 4, without its projection back to pixels.
    """
    image = _fitting(model, image)
    with_maps = [layer.name for layer in model.layers if _has_maps(layer)]
    if layer_name not in with_maps:
        raise UserError(
            f"Layer '{layer_name}' has no activation maps in model '{model.name}'; expected one of"
            f" {', '.join(with_maps)}; name one of these."
        )
    submodel = keras.Model(model.inputs[0], model.get_layer(layer_name).output)
    return np.asarray(ops.convert_to_numpy(submodel(image[None], training=False))[0], np.float32)


def occlusion_saliency(
    predict: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    class_index: int,
    *,
    window: int = 8,
    stride: int = 4,
) -> np.ndarray:
    """Measures how much the probability of a class drops when a grey window hides a place.

    The window is filled with the mean of the image, which is grey at whatever scale the model takes. Beside
    the places that the stride reaches, it is put at the last row and column, so that every pixel is hidden.

    Args:
        predict: images float32[batch, height, width, channels] -> logits or probabilities [batch, classes]. If no
            output is negative and each row sums to 1, they are taken as probabilities, else they go through a softmax.
        image: [height, width, channels].
        class_index: the class.
        window: side of the window in pixels.
        stride: step of the window in pixels, at most the window.

    Returns:
        float32[height, width], between -1 and 1: the mean drop over all windows that cover the pixel.
        Negative where hiding the place makes the class more probable.

    Raises:
        UserError: if there is no such class.
        ValueError: if the window does not fit the image.

    Source: Zeiler & Fergus 2013, arXiv:1311.2901, section 4.2.
    """
    image = image.astype(np.float32)
    height, width = image.shape[:2]
    if not 1 <= stride <= window <= min(height, width):
        raise ValueError(
            f"Window {window} and stride {stride} do not fit an image of {height} x {width} pixels; expected"
            " 1 <= stride <= window <= its shorter side; choose smaller ones."
        )
    outputs = [predict(image[None])]
    classes = outputs[0].shape[-1]
    if not 0 <= class_index < classes:
        raise UserError(f"There is no class {class_index}; expected 0 to {classes - 1}; choose one of these.")
    places = list(itertools.product(_starts(height, window, stride), _starts(width, window, stride)))
    grey = image.mean()
    for first in range(0, len(places), _OCCLUSION_BATCH):
        batch = places[first : first + _OCCLUSION_BATCH]
        hidden = np.repeat(image[None], len(batch), axis=0)
        for row, (top, left) in enumerate(batch):
            hidden[row, top : top + window, left : left + window] = grey
        outputs.append(predict(hidden))
    intact, *others = _probabilities(np.concatenate(outputs))[:, class_index]
    drops, covers = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), probability in zip(places, others, strict=True):
        drops[top : top + window, left : left + window] += intact - probability
        covers[top : top + window, left : left + window] += 1
    return (drops / covers).astype(np.float32)


def of_likeliest(predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> tuple[int, np.ndarray]:
    """The likeliest class of a picture, and the `occlusion_saliency` of it.

    Args:
        predict: images uint8[batch, height, width, channels] -> probabilities [batch, classes].
        image: uint8[height, width, channels].
    """
    label = int(predict(image[None])[0].argmax())
    return label, occlusion_saliency(lambda images: predict(np.rint(images).astype(np.uint8)), image, label)


def _fitting(model: keras.Model, image: np.ndarray) -> np.ndarray:
    (expected,) = model.inputs
    shape = expected.shape[1:]
    if image.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, image.shape, strict=True)):
        raise ValueError(
            f"The image has shape {image.shape}; expected {shape} as model '{model.name}' takes it;"
            " pass one image, resized."
        )
    return image.astype(expected.dtype)


def _has_maps(layer: keras.Layer) -> bool:
    # The output of a model within the model belongs to a graph of its own, which does not start at the image.
    if isinstance(layer, keras.layers.InputLayer | keras.Model):
        return False
    return isinstance(layer.output, keras.KerasTensor) and len(layer.output.shape) == 4


def _starts(length: int, window: int, stride: int) -> list[int]:
    return sorted({*range(0, length - window, stride), length - window})


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    outputs = np.asarray(outputs, np.float32)
    # The tolerance forgives a softmax in half precision.
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=-1), 1, atol=0.01):
        return outputs
    return ops.convert_to_numpy(ops.softmax(outputs))
