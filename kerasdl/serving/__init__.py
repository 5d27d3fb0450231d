"""Model server: `python -m kerasdl.serving saved_models` speaks TensorFlow Serving's REST API.

`repository` holds the loaded models and knows no transport, `tensor_json` turns JSON into arrays and back,
`rest` is the thin HTTP layer over both.
"""
