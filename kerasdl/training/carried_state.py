"""Callbacks for layers that carry their state from batch to batch."""

from typing import Any

import keras
import numpy as np


class FreshStarts(keras.callbacks.Callback):
    """Empties the carried state of every row before an epoch and a test, and of some rows before a batch.

    Args:
        reset_ratio: share of the rows that begin anew before a batch; which ones follows from seed, epoch and batch.
        seed: any integer.

    Source: own.
    """

    def __init__(self, *, reset_ratio: float, seed: int) -> None:
        super().__init__()
        self.reset_ratio = reset_ratio
        self.seed = seed
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins the data anew."""
        self.epoch = epoch
        self._keep(lambda rows: np.zeros((rows, 1)))

    def on_test_begin(self, logs: Any = None) -> None:
        """Begins the validation data."""
        self._keep(lambda rows: np.zeros((rows, 1)))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Some rows begin anew."""
        if self.reset_ratio and batch:
            seed = [self.seed, self.epoch, batch]
            self._keep(lambda rows: np.random.default_rng(seed).random((rows, 1)) >= self.reset_ratio)

    def _keep(self, share: Any) -> None:
        for layer in self.model.layers:
            for state in layer.states if getattr(layer, "stateful", False) else ():
                state.assign(state * keras.ops.cast(share(state.shape[0]), state.dtype))
