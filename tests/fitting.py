"""Trained models of applications, for their tests."""

import dataclasses

import keras
import numpy as np

from kerasdl.training.checkpoint import Checkpoint


def fitted(module, config, data, folder, *callbacks, resume=False):
    """A trained model of an application, without the files that `train` of the command line writes beside it."""
    keras.utils.set_random_seed(config.seed)
    model = module.build_model(config, data)
    monitor, maximize = module.OBJECTIVE.metric, module.OBJECTIVE.direction == "max"
    saver = Checkpoint(folder, monitor=monitor, maximize=maximize, resume=resume)
    module.train(config, model, data, [*callbacks, saver])
    return model


def few(data, examples, held=40):
    """The same data with so many training examples, and fewer to validate and to test; of text 72 characters each."""
    train, validation, test = _first(data.train, examples), _first(data.validation, held), _first(data.test(), held)
    return dataclasses.replace(data, train=train, validation=validation, test=lambda: test)


def _first(examples, count):
    if hasattr(examples, "of"):
        return examples.of(np.arange(count))
    if isinstance(examples, str):
        return examples[: 72 * count]
    if isinstance(examples, (list, tuple)):  # pictures of a size each, or two texts
        return type(examples)(_first(one, count) for one in examples)
    if dataclasses.is_dataclass(examples):
        return type(examples)(*(getattr(examples, field.name)[:count] for field in dataclasses.fields(examples)))
    return examples[:count]


class StopsBefore(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.last = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.last:
            raise KeyboardInterrupt
