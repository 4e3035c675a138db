"""The model: tensors in, tensors out."""

import os

# ONNX Runtime, when imported, starts a record of its use under the home directory, made to be
# sent. A trading daemon tells nobody what it runs, and writes nothing outside its state folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
