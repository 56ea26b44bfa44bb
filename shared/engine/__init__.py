"""Inference engines.

ONNX Runtime's official builds for Linux and macOS report its use to their maker, and write an
identifier to disk, from the moment they are imported. Nobody asked for that here: it is switched
off before any engine can be imported, unless the environment says otherwise.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
