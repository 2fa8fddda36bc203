"""The CPU engine, on OpenVINO."""

import sys

# OpenVINO reports its use to Google Analytics when it is imported, and writes an id into ~/intel. The package
# `openvino_telemetry` does this, and OpenVINO works without it; so this line makes its import fail.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
