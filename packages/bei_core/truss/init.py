"""Makes a Truss that runs BEI. Its input is a config.yaml that was written for Baseten's own BEI.

A Truss has one of two forms. Both upload `packages/` and give the same replies:

    model.py       Truss's server loads model/model.py
    docker_server  the container runs `bei serve`, behind Baseten's proxy
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from bei_core.checkpoint import resolve
from bei_core.config.files import read_yaml
from bei_core.config.settings import Settings
from bei_core.config.trt_llm import CheckpointRepository
from bei_core.engines.registry import OPENVINO, TENSORRT_LLM, TORCH
from bei_core.errors import ConfigError
from bei_core.storage.backends import find_backend
from bei_core.truss.described import Described, Unknown, describe
from bei_core.truss.resources import check_card, pick_engine, resources_for

# A Truss is made from the package's own files and model.py. In a checkout, model.py is in model/; in a wheel, setup.py
# puts it beside this file.
PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parents[1]
MODEL = REPOSITORY / "model" / "model.py"
PACKAGED_MODEL = PACKAGE / "truss" / "model.py"

PORT = 7997

# Packages that bei_core imports and Truss's server lacks (it has numpy, prometheus-client, pyyaml and starlette). The
# versions are those of requirements/dev.lock for Python 3.11, with which BEI is tested.
REQUIREMENTS = (
    "backports-zstd==1.8.0",
    "huggingface-hub==2.4.0",
    "jinja2==3.1.6",
    "msgspec==0.22.0",
    "openvino==2026.4.1",
    "orjson==3.13.0",
    "tokenizers==0.23.3",
)

# Packages that `bei serve` needs too, because its image does not have Truss's server.
SERVER_REQUIREMENTS = (
    "click==8.5.1",
    "httptools==0.9.0",
    "numpy==2.4.6",
    "prometheus-client==0.26.0",
    "pyyaml==6.0.3",
    "starlette==1.10.0",
    "uvloop==0.23.0",
)

# Packages that TensorRT-LLM's image has in the versions that it needs; the Truss does not install others. Jinja is not
# one of them, because older versions have known escapes from its sandbox, and templates of checkpoints are not trusted.
IN_THE_GPU_IMAGE = frozenset({"huggingface-hub", "numpy", "prometheus-client", "pyyaml", "starlette", "tokenizers"})
GPU_IMAGE = {"image": "nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc1", "python_executable_path": "/usr/bin/python3"}

# The torch engine runs in Truss's own image for GPUs. PyPI's torch for Linux has the CUDA libraries.
TORCH_REQUIREMENT = "torch==2.14.0"

# The first start fetches the checkpoint and builds the engine, which on a GPU includes calibrating it.
STARTUP_S = {"cpu": 1200, "gpu": 3600}

# In TensorRT-LLM's image, `auto` chooses TensorRT-LLM. In Truss's image, `auto` would choose torch; the name is written
# because it is clearer for the reader.
_ENGINE_SETTING: Mapping[str, Mapping[str, str]] = {
    OPENVINO: {},
    TENSORRT_LLM: {"engine": "auto"},
    TORCH: {"engine": TORCH},
}

_COMMENTS = {
    "model_metadata": "bei: settings, with the names of `bei serve`'s flags, and Baseten's block, unchanged. At the\n"
    "top level of this file the block would start Baseten's own server.",
    "base_image": "The engine's image. It is fetched from NVIDIA's registry.",
    "python_version": "The tested version. For Truss's default version some packages of its own server have no wheels.",
    "requirements": "Packages that bei_core imports and the image does not have.",
    "external_package_dirs": "`truss push` copies the content of this folder into packages/ of the upload.",
    "docker_server": "The server of the container. Baseten's /predict takes any route's body, known by its fields.",
    "runtime": "The first start fetches the checkpoint and builds the engine. A hung engine is reported after 120 s.",
}
_ORDER = (
    "model_name",
    "description",
    "model_metadata",
    "base_image",
    "python_version",
    "requirements",
    "external_package_dirs",
    "docker_server",
    "environment_variables",
    "secrets",
    "resources",
    "runtime",
)


class Target(NamedTuple):
    """Where the Truss runs."""

    engine: str  # a name of the registry
    resources: Mapping[str, Any]  # Truss's `resources`


class Made(NamedTuple):
    """A Truss that was made."""

    files: Mapping[str, bytes]  # content by path
    notes: Sequence[str]  # for the user, one line each


def make(source: Path, output: Path, *, docker_server: bool = False, cpu: bool = False, engine: str = "auto") -> Made:
    """Returns the files of a Truss in the folder `output`. With `cpu`, the Truss asks for no accelerator.

    A Truss inside this repository refers to packages/; any other has a copy of it. Raises ConfigError for a config.yaml
    that cannot be read, or whose `trt_llm` block is not for an encoder; UnsupportedModelError, CheckpointError and
    ConfigError for a model that the engine cannot serve.
    """
    if cpu and engine not in ("auto", OPENVINO):
        raise ConfigError(f"--cpu means --engine {OPENVINO}; give one of --cpu and --engine {engine}")
    given = dict(read_yaml(source))
    if not isinstance(given.get("trt_llm"), Mapping):
        raise ConfigError(
            f"{source} has no trt_llm block at its top level; give a config.yaml that was written for Baseten's BEI"
        )
    settings = Settings.from_truss_config(
        {name: given[name] for name in ("trt_llm", "model_metadata") if name in given}
    )
    target, notes = choose_target(given, settings, OPENVINO if cpu else engine)
    inside = not PACKAGED_MODEL.exists() and output.resolve().is_relative_to(REPOSITORY)
    packages = os.path.relpath(REPOSITORY / "packages", output.resolve()) if inside else None
    config = configured(given, target, docker_server=docker_server, packages=packages)
    files = {"config.yaml": written(config, source.name)}
    if not docker_server:
        files["model/model.py"] = _model()
    if not inside:
        files |= _packages()
    ignored = () if settings.trt_llm is None else settings.trt_llm.ignored()
    return Made(files, [*notes, *(f"trt_llm.{key} has no effect here" for key in ignored)])


def choose_target(given: Mapping[str, Any], settings: Settings, engine: str) -> tuple[Target, list[str]]:
    """Returns engine and resources for a config's model, and notes. `engine` is a name of the registry, or auto.

    Raises the errors of `make`. On a GPU, `engine` must not be auto if the class of the model is unknown.
    """
    resources = dict(given.get("resources") or {})
    card = str(resources.get("accelerator") or "").partition(":")[0]
    gpu_engines = (TENSORRT_LLM, TORCH) if settings.tensor_parallel_size == 1 else (TORCH,)
    candidates = (engine,) if engine != "auto" else gpu_engines if card else (OPENVINO,)
    if candidates != (OPENVINO,) and not card:
        raise ConfigError(f"--engine {engine} needs a GPU, and the file's resources name no accelerator")
    if given["trt_llm"]["build"]["checkpoint_repository"].get("source") == "BASETEN_TRAINING":
        resolve(settings.model_id or "")  # raises, with the reason and what to do
    model, notes = describe(settings), []
    if isinstance(model, Unknown) and len(candidates) > 1:
        raise ConfigError(
            f"the class of {settings.model_id} is not known, so no engine can be chosen: {model.reason}. Name one that "
            f"can serve it: --engine {TENSORRT_LLM}, --engine {TORCH} or --cpu"
        )
    if isinstance(model, Unknown):
        notes.append(f"not checked whether {candidates[0]} can serve {settings.model_id}: {model.reason}")
    known = model if isinstance(model, Described) else None
    chosen = candidates[0] if known is None else pick_engine(known.spec, settings, candidates)
    check_card(card if chosen != OPENVINO else "", chosen, settings.quantization_type or "no_quant")
    sized, more = resources_for(resources, chosen, known, settings)
    return Target(chosen, sized), notes + more


def configured(
    given: Mapping[str, Any], target: Target, *, docker_server: bool, packages: str | None = None
) -> dict[str, Any]:
    """Returns the Truss's config, made from Baseten's (`given`). Keys that do not concern the engine are copied."""
    config = {name: value for name, value in given.items() if name not in {"trt_llm", "python_version", "requirements"}}
    engine, on_gpu = target.engine, target.engine != OPENVINO
    config["resources"] = dict(target.resources)
    metadata = dict(given.get("model_metadata") or {})
    block = {**(metadata.pop("bei", None) or {}), "trt_llm": given["trt_llm"]}
    config["model_metadata"] = {"bei": {**_ENGINE_SETTING[engine], **_devices(target, given), **block}, **metadata}
    config |= {"base_image": GPU_IMAGE} if engine == TENSORRT_LLM else {"python_version": "py311"}
    lines, others = _requirements(engine, docker_server=docker_server), _others(given)
    if any(_name(line) == "torch" for line in others):  # the user's version, such as one for an older driver
        lines = [line for line in lines if line != TORCH_REQUIREMENT]
    config["requirements"] = lines + _for_block(given["trt_llm"]) + others
    if packages is not None:
        config["external_package_dirs"] = [packages]
    if docker_server:
        config["docker_server"] = _docker_server()
        config["environment_variables"] = {**(given.get("environment_variables") or {}), "PYTHONPATH": "/packages"}
    config["runtime"] = _runtime(given.get("runtime") or {}, docker_server=docker_server, on_gpu=on_gpu)
    return config


def _devices(target: Target, given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the setting `devices` for the torch engine on several GPUs, unless it divides the model among them."""
    count = str(target.resources.get("accelerator") or "").partition(":")[2]
    is_divided = int(given["trt_llm"]["build"].get("tensor_parallel_count") or 1) > 1
    if target.engine != TORCH or is_divided or not count.isdigit() or int(count) < 2:
        return {}
    return {"devices": [str(number) for number in range(int(count))]}


def written(config: Mapping[str, Any], source: str) -> bytes:
    """Returns the text of a config.yaml, with comments above the keys that BEI needs."""
    names = [name for name in _ORDER if name in config] + [name for name in config if name not in _ORDER]
    parts = [f"# Made by `bei truss init` from a {source} for Baseten's BEI.\n"]
    for name in names:
        comment = "".join(f"# {line}\n" for line in _COMMENTS.get(name, "").splitlines())
        text = yaml.safe_dump({name: config[name]}, sort_keys=False, allow_unicode=True, width=120)
        parts.append(f"\n{comment}{text}" if comment else text)
    return "".join(parts).encode()


def _requirements(engine: str, *, docker_server: bool) -> list[str]:
    """Returns the requirements of a Truss. On a GPU, they lack the CPU engine and packages that the image has."""
    lines = sorted((*REQUIREMENTS, *(SERVER_REQUIREMENTS if docker_server else ())))
    if engine == OPENVINO:
        return lines
    if engine == TORCH:
        return [*(line for line in lines if not line.startswith("openvino==")), TORCH_REQUIREMENT]
    lines = [line for line in lines if line.split("==")[0] not in {"openvino", *IN_THE_GPU_IMAGE}]
    # Truss's server puts numpy<2 into the image before these lines are read.
    return lines if docker_server else [*lines, "numpy>=2,<3"]


def _for_block(block: Mapping[str, Any]) -> list[str]:
    """Returns the requirements that depend on the block: the driver of the object store that has the checkpoint."""
    backend = find_backend(msgspec.convert(block["build"]["checkpoint_repository"], CheckpointRepository).model_id)
    return [backend.requirement] if backend is not None and backend.requirement else []


def _others(given: Mapping[str, Any]) -> list[str]:
    """Returns the requirements in the user's config, except packages that BEI requires itself."""
    ours = {_name(line) for line in (*REQUIREMENTS, *SERVER_REQUIREMENTS)}
    return [line for line in given.get("requirements") or () if _name(line) not in ours]


def _name(line: str) -> str:
    """Returns the name of the package in a requirement, such as "torch" for "Torch >= 2.9"."""
    return re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def _docker_server() -> dict[str, object]:
    return {
        "start_command": f"python3 -m bei_core.cli serve --config /app/config.yaml --port {PORT}",
        "server_port": PORT,
        "predict_endpoint": "/invocations",
        "readiness_endpoint": "/health/ready",
        "liveness_endpoint": "/health/live",
    }


def _runtime(given: Mapping[str, Any], *, docker_server: bool, on_gpu: bool) -> dict[str, Any]:
    """Returns Truss's `runtime` settings; those of the user (`given`) replace ours."""
    checks = {
        "startup_threshold_seconds": STARTUP_S["gpu" if on_gpu else "cpu"],
        "restart_threshold_seconds": 300,
        "stop_traffic_threshold_seconds": 60,
    }
    # Truss's default is 1. 4096 is more than max_concurrent_requests, so that BEI itself refuses excess requests.
    ours = {} if docker_server else {"predict_concurrency": 4096}
    return {**ours, **given, "health_checks": {**checks, **(given.get("health_checks") or {})}}


def _model() -> bytes:
    """The content of model.py. Raises ConfigError if this file is neither in a wheel nor in a checkout."""
    try:
        return (PACKAGED_MODEL if PACKAGED_MODEL.exists() else MODEL).read_bytes()
    except OSError as fault:
        raise ConfigError(
            f"there is no {MODEL}; run `bei truss init` from BEI's repository or an installed wheel"
        ) from fault


def _packages() -> dict[str, bytes]:
    """The files of bei_core, content by path in a Truss, without compiled files and the wheel's copy of model.py."""
    return {
        f"packages/bei_core/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path != PACKAGED_MODEL
    }
