"""Hyperparameter searches: `tuning/<application>.py` holds the space of `apps/<application>.py`, one function."""
