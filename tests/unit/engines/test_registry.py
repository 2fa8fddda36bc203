"""The choice of an engine: nvidia-smi is a script on PATH, and packages are installed or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bei_core.engines import registry
from bei_core.engines.registry import OPENVINO, TENSORRT_LLM, TORCH, Gpu, candidates, find_gpu, require
from bei_core.errors import EngineUnavailableError

H100, A10, T4 = "NVIDIA H100 80GB HBM3, 9.0", "NVIDIA A10G, 8.6", "Tesla T4, 7.5"

SetUp = Callable[..., None]

# A package torch whose `torch.cuda.init` raises an error, or nothing if it is None.
FAKE_TORCH = """
class cuda:
    def init():
        if (error := {}) is not None:
            raise error
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetUp:
    """Imitate a machine whose nvidia-smi is `script` (None: no nvidia-smi), with the packages `installed`."""

    def set_up(script: str | None, installed: tuple[str, ...] = (OPENVINO,)) -> None:
        folder = tmp_path / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if script is not None:
            (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
            (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin" if script else str(folder))
        (tmp_path / "torch.py").write_text(FAKE_TORCH.format("None") if TORCH in installed else "raise ImportError")
        monkeypatch.syspath_prepend(tmp_path)
        registry._run_trial.cache_clear()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in installed else None)

    return set_up


def says(*cards: str) -> str:
    """An nvidia-smi script for these GPUs, which answers only the expected query."""
    asked = '[ "$*" = "-i 0 --query-gpu=name,compute_cap --format=csv,noheader" ] || exit 2'
    return "\n".join([asked, *(f"echo '{card}'" for card in cards)])


# --- The card


@pytest.mark.parametrize(
    ("cards", "found"),
    [
        ((H100,), Gpu("NVIDIA H100 80GB HBM3", (9, 0))),
        ((A10, T4), Gpu("NVIDIA A10G", (8, 6))),
        (("NVIDIA RTX PRO 6000, Server Edition, 12.0",), Gpu("NVIDIA RTX PRO 6000, Server Edition", (12, 0))),
    ],
)
def test_the_card_is_the_drivers_first(machine: SetUp, cards: tuple[str, ...], found: Gpu) -> None:
    machine(says(*cards))
    assert find_gpu() == found


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "it prints nothing"),
        ("echo 'No devices were found'", "No devices were found"),
        (f"echo '{H100}'; exit 18", "returned non-zero exit status 18"),
        ("echo 'Tesla K80, [N/A]'", "Tesla K80, [N/A]"),
        ("echo 'NVIDIA H100, 9'", "NVIDIA H100, 9"),
        (f"echo 'WARNING: infoROM is corrupted'; echo '{H100}'", "WARNING: infoROM is corrupted"),
        ("printf '\\377\\376, 9.0\\n'", "can't decode byte 0xff"),
        ("kill -9 $$", "died with <Signals.SIGKILL: 9>"),
        ("exec sleep 600", "timed out after 0.1 seconds"),
    ],
)
def test_a_driver_that_lists_no_gpu_causes_a_warning(
    machine: SetUp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, said: str
) -> None:
    machine(script, installed=(OPENVINO, TENSORRT_LLM))
    if "sleep" in script:
        monkeypatch.setattr(registry, "_TIMEOUT_S", 0.1)
    assert candidates("auto") == [OPENVINO]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("nvidia-smi lists no GPU, so none is used: ")
    assert said in record.message


@pytest.mark.parametrize("visible", ["", "-1", "-2", "NoDevFiles", "none", "void", "-1,0"])
def test_cards_that_cuda_may_not_use_are_not_there(
    machine: SetUp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, visible: str
) -> None:
    machine(says(H100), installed=(OPENVINO, TENSORRT_LLM))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert candidates("auto") == [OPENVINO]
    assert not caplog.records


@pytest.mark.parametrize("visible", ["GPU-8932f937", "MIG-GPU-8932f937/1/0,1"])
def test_a_card_by_its_uuid_is_taken_for_the_first(
    machine: SetUp, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    machine(says(H100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpu() == Gpu("NVIDIA H100 80GB HBM3", (9, 0))


@pytest.mark.parametrize("visible", ["1,0", "1"])
def test_the_first_visible_card_is_the_one_that_counts(
    machine: SetUp, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    machine(f'[ "$1 $2" = "-i 1" ] && echo "{H100}"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpu() == Gpu("NVIDIA H100 80GB HBM3", (9, 0))


def test_a_tool_that_cannot_be_run_names_no_card(machine: SetUp, tmp_path: Path) -> None:
    machine("exit 0")
    (tmp_path / "bin" / "nvidia-smi").write_bytes(b"\x7fELF of another processor")
    assert find_gpu() is None
    machine(None)
    assert find_gpu() is None


# --- auto


@pytest.mark.parametrize("card", [H100, A10])
def test_auto_is_tensorrt_llm_where_card_and_package_are(
    machine: SetUp, caplog: pytest.LogCaptureFixture, card: str
) -> None:
    machine(says(card), installed=(OPENVINO, TENSORRT_LLM))
    assert candidates("auto") == [TENSORRT_LLM, OPENVINO]
    assert not caplog.records


def test_auto_prefers_tensorrt_llm_to_torch(machine: SetUp, caplog: pytest.LogCaptureFixture) -> None:
    machine(says(H100), installed=(OPENVINO, TORCH))
    assert candidates("auto") == [TORCH, OPENVINO]
    machine(says(H100), installed=(OPENVINO, TORCH, TENSORRT_LLM))
    assert candidates("auto") == [TENSORRT_LLM, TORCH, OPENVINO]
    machine(says(H100), installed=(TORCH,))
    assert candidates("auto") == [TORCH], "a GPU's image may lack the package of the CPU engine"
    machine(None, installed=(OPENVINO, TORCH))
    assert candidates("auto") == [OPENVINO]
    assert not caplog.records


def test_auto_is_torch_with_the_settings_that_only_torch_has(machine: SetUp, caplog: pytest.LogCaptureFixture) -> None:
    machine(says(H100), installed=(OPENVINO, TORCH, TENSORRT_LLM))
    assert candidates("auto", with_devices=True) == [TORCH]
    assert not caplog.records
    machine(says(H100), installed=(OPENVINO, TENSORRT_LLM))
    assert candidates("auto", with_devices=True) == [OPENVINO]
    assert "TensorRT-LLM has no settings devices and tensor_parallel_size; torch is not installed" in caplog.text


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12020)."


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        (FAKE_TORCH.format("AssertionError('Torch not compiled with CUDA enabled')"), "Torch not compiled with CUDA"),
        (FAKE_TORCH.format(f"RuntimeError('{OLD_DRIVER}')"), OLD_DRIVER),
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("import os; os._exit(3)", "returned non-zero exit status 3"),
    ],
)
def test_torch_that_cannot_use_the_gpu_is_not_chosen(
    machine: SetUp, tmp_path: Path, caplog: pytest.LogCaptureFixture, torch: str, said: str
) -> None:
    """On the CPU the engine openvino is much faster."""
    machine(says(H100), installed=(OPENVINO, TORCH))
    (tmp_path / "torch.py").write_text(torch)
    assert candidates("auto") == [OPENVINO]
    (record,) = caplog.records
    assert record.message.startswith("NVIDIA H100 80GB HBM3 (compute capability 9.0) is not used")
    assert "torch cannot use it: " in record.message
    assert said in record.message
    assert candidates(TORCH) == [TORCH], "by name it runs on the CPU"


def test_auto_is_the_cpu_where_there_is_no_card(machine: SetUp, caplog: pytest.LogCaptureFixture) -> None:
    machine(None, installed=(OPENVINO, TENSORRT_LLM))
    assert candidates("auto") == [OPENVINO]
    assert not caplog.records


@pytest.mark.parametrize(
    ("card", "installed", "said"),
    [
        (H100, (OPENVINO,), "NVIDIA H100 80GB HBM3 (compute capability 9.0) is not used, and the CPU engine runs "
         "instead: TensorRT-LLM is not installed: pip install tensorrt-llm==1.4.0rc1 --extra-index-url "
         "https://pypi.nvidia.com, or the image in docs/gpu.md; torch is not installed: pip install 'bei-core[torch]'"),
        (T4, (OPENVINO, TENSORRT_LLM), "Tesla T4 (compute capability 7.5) is not used, and the CPU engine runs "
         "instead: TensorRT-LLM supports compute capability 8.0 (Ampere) and newer; torch supports compute"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_not_used_causes_a_warning(
    machine: SetUp, caplog: pytest.LogCaptureFixture, card: str, installed: tuple[str, ...], said: str
) -> None:
    machine(says(card), installed)
    assert candidates("auto") == [OPENVINO]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(said)
    assert record.message.endswith("; set engine=openvino to silence this")
    caplog.clear()
    assert candidates("openvino") == [OPENVINO]
    assert not caplog.records


# --- By name


@pytest.mark.parametrize(
    ("engine", "command"),
    [
        (OPENVINO, "pip install openvino"),
        (TENSORRT_LLM, "pip install tensorrt-llm==1.4.0rc1 --extra-index-url"),
        (TORCH, r"pip install 'bei-core\[torch\]'"),
    ],
)
def test_the_error_for_an_engine_without_its_package_has_the_install_command(
    machine: SetUp, engine: str, command: str
) -> None:
    machine(says(H100), installed=())
    for ask in (candidates, require):
        with pytest.raises(EngineUnavailableError, match=f"the {engine} engine needs the package {engine}: {command}"):
            ask(engine)
    machine(says(H100), installed=(engine,))
    assert candidates(engine) == [engine]


def test_an_unknown_name_lists_the_known_ones(machine: SetUp) -> None:
    machine(None)
    with pytest.raises(EngineUnavailableError, match="engine 'onnx' is not one of openvino, tensorrt_llm, torch"):
        candidates("onnx")
