"""The forms of a model on disk: as it was published, ONNX, OpenVINO and GGUF, written by the peers' own exporters.

Each form is a folder that a peer loads as it is, with copies of the model's other files:

    plain           safetensors
    onnx-f32        onnx/model.onnx
    onnx-int8       the same with dynamic int8, for this processor
    openvino-int8   openvino/openvino_model_qint8_quantized.xml
    gguf            f16.gguf, q8_0.gguf
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bei_core.bench.workload import texts
from benchmarks.peers import checkpoints

_FOREIGN = Path(__file__).with_name("foreign")
_GGUF_TYPES = ("f16", "q8_0")


class FormError(Exception):
    """A form could not be written; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms of all models, in one folder, which are written when they are asked for."""

    folder: Path
    minilm: Path
    environments: Path  # the folder with the peers' environments

    def path(self, model: str, rerank: bool, form: str) -> Path:
        """The folder of a form. Raises FormError if the exporter fails."""
        base = self.folder / (f"{model}-reranker" if rerank else model)
        found = base / form
        if not found.exists():
            staging = base / f"{form}.part"
            shutil.rmtree(staging, ignore_errors=True)
            self._write(model, rerank, form, staging)
            staging.rename(found)
        return found

    def _write(self, model: str, rerank: bool, form: str, folder: Path) -> None:
        print(f"writing {model}{'-reranker' if rerank else ''} as {form}", flush=True)
        if form == "plain":
            checkpoints.write(model, self.minilm, folder, rerank)
            return
        plain = self.path(model, rerank, "plain")
        shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))  # no links: peers write into it
        if form == "gguf":
            self._write_gguf(plain, folder)
        else:
            self._export(plain, folder, form)

    def _export(self, plain: Path, folder: Path, form: str) -> None:
        calibration = self.folder / "texts"
        if not calibration.exists():
            calibration.mkdir()
            lines = [json.dumps({"text": text}) + "\n" for text in texts("mixed", 300, 7)]
            (calibration / "train.jsonl").write_text("".join(lines))
        self._run("sentence-transformers", _FOREIGN / "export.py", form, plain, folder, calibration, processor())

    def _write_gguf(self, plain: Path, folder: Path) -> None:
        converter = self.environments / ".venv-peer-llama-cpp" / "llama.cpp" / "convert_hf_to_gguf.py"
        for kind in _GGUF_TYPES:
            self._run("llama-cpp", converter, "--outtype", kind, "--outfile", folder / f"{kind}.gguf", plain)

    def _run(self, environment: str, script: Path, *arguments: str | Path) -> None:
        python = self.environments / f".venv-peer-{environment}" / "bin" / "python"
        done = subprocess.run([python, script, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise FormError(f"{script.name} ended with {done.returncode}: {''.join(last)[:200]}")


def processor(flags: str | None = None) -> str:
    """The name under which ONNX's exporter knows this processor (or one with these flags)."""
    known = flags if flags is not None else Path("/proc/cpuinfo").read_text()
    return "avx512_vnni" if "avx512_vnni" in known else "avx512" if "avx512f" in known else "avx2"
