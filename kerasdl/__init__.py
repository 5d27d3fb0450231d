"""Reusable Keras functional-API blocks, training, export and serving; knows no application."""
