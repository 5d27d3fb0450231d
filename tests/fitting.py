"""Trained models of applications, for their tests."""

import keras

from kerasdl.training.checkpoint import Checkpoint


def fitted(module, config, data, folder, *callbacks, resume=False):
    """A trained model of an application, without the files that `train` of the command line writes beside it."""
    keras.utils.set_random_seed(config.seed)
    model = module.build_model(config, data)
    monitor, maximize = module.OBJECTIVE.metric, module.OBJECTIVE.direction == "max"
    saver = Checkpoint(folder, monitor=monitor, maximize=maximize, resume=resume)
    module.train(config, model, data, [*callbacks, saver])
    return model


class StopsBefore(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.last = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.last:
            raise KeyboardInterrupt
