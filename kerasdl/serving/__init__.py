"""Model server: `python -m kerasdl.serving saved_models` speaks TensorFlow Serving's REST API.

`repository` holds the loaded models and knows no transport, `configuration` says which, `tensor_json` turns JSON into
arrays and back, `metrics` counts, `rest` is the thin HTTP layer over them.
"""
