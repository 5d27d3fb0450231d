"""Scores of models on arrays, one module per kind of task."""
