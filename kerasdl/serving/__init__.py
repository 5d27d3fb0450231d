"""Model server: `python -m kerasdl.serving saved_models` speaks TensorFlow Serving's REST API, and its gRPC API.

`repository` holds the loaded models and knows no transport, `configuration` says which, `predictor` runs them for both
transports, `metrics` counts. `rest`, with `tensor_json` that turns JSON into arrays and back, and `grpc` are the thin
layers over them.
"""
