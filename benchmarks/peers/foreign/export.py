"""Writes a model in a form of ONNX or OpenVINO, by sentence-transformers' own exporters and in its environment.

    export.py FORM MODEL FOLDER TEXTS CPU

FORM is onnx-f32, onnx-int8 (dynamic, for CPU: avx2, avx512 or avx512_vnni) or openvino-int8 (static, calibrated with
the texts of the folder TEXTS). FOLDER has the model's other files already.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from optimum.intel import OVQuantizationConfig
from sentence_transformers import (
    SentenceTransformer,
    export_dynamic_quantized_onnx_model,
    export_static_quantized_openvino_model,
)

# Each text is padded to 384 tokens, so the usual 300 texts take hours with a large model.
_NUM_TEXTS = 32


def write_onnx(source: str, folder: Path, cpu: str | None) -> None:
    """Write onnx/model.onnx in f32, or in int8 for a kind of processor."""
    model = SentenceTransformer(source, backend="onnx", device="cpu", model_kwargs={"export": True})
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model.save_pretrained(scratch)
        if cpu:
            export_dynamic_quantized_onnx_model(model, cpu, scratch, file_suffix="int8")
            Path(scratch, "onnx", "model_int8.onnx").replace(Path(scratch, "onnx", "model.onnx"))
            Path(scratch, "onnx", "model.onnx_data").unlink(missing_ok=True)  # f32 weights of a large model
        shutil.move(Path(scratch, "onnx"), folder / "onnx")


def write_openvino(source: str, folder: Path, texts: str) -> None:
    """Write the model as OpenVINO's in int8, calibrated with `texts`."""
    model = SentenceTransformer(source, backend="openvino", device="cpu", model_kwargs={"export": True})
    export_static_quantized_openvino_model(
        model,
        OVQuantizationConfig(num_samples=_NUM_TEXTS),
        str(folder),
        dataset_name=texts,
        dataset_config_name="default",
        dataset_split="train",
        column_name="text",
    )


if __name__ == "__main__":
    form, given, target, prose, processor = sys.argv[1:]
    if form == "openvino-int8":
        write_openvino(given, Path(target), prose)
    else:
        write_onnx(given, Path(target), processor if form == "onnx-int8" else None)
