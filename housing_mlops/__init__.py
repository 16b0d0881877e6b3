import os

# ONNX Runtime reports to its maker from the moment it is imported, and keeps a number for this machine
# in the home folder, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
