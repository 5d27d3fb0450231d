"""Model server: `python -m kerasdl.serving saved_models` speaks TensorFlow Serving's REST API, and KServe's.

`repository` holds the loaded models and knows no transport, `configuration` says which, `tensor_json` turns JSON into
arrays and back, `metrics` counts, `rest` is the thin HTTP layer over them.
`kserve_tensor` and `kserve` are the same for KServe's protocol, `waiting` is what both HTTP layers share.
`documentation` describes the models, `access` stands before all and says who may ask.
"""
