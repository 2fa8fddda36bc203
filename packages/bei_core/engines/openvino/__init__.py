"""The CPU engine, on OpenVINO."""

import sys

# OpenVINO and nncf report their use to Google Analytics as they are imported, and write an id into ~/intel. Both do
# without where the package that does it cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
