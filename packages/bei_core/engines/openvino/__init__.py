"""The CPU engine, on OpenVINO."""

import sys

# OpenVINO reports its use to Google Analytics when it is imported, and writes an id into ~/intel. The package
# `openvino_telemetry` does this, and OpenVINO works without it; so this line makes its import fail.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# OpenVINO also imports its converter of models of other formats, which takes 0.14 s of 0.4, and works without it, too.
_CONVERTER = "openvino.tools.ovc"
_is_new = sys.modules.setdefault(_CONVERTER, None) is None  # type: ignore[arg-type]
import openvino  # noqa: E402, F401

if _is_new:
    del sys.modules[_CONVERTER]  # so that other code in this process may import it
