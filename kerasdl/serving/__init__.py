"""Model server: `python -m kerasdl.serving saved_models` speaks the APIs of TensorFlow Serving, and KServe's.

`repository` holds the loaded models and knows no transport, `configuration` says which; `predictor` runs them for all
transports, `batching` puts requests together, `metrics` counts. `rest` and `kserve`, with `tensor_json` and
`kserve_tensor` that turn JSON into arrays and back, and `grpc` are the thin layers over them; `waiting` is what both
HTTP layers share, `lane` computes what takes long. `documentation` describes the models, `access` stands before all and
says who may ask.
"""
