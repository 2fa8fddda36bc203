"""Baseten's `trt_llm` block, as truss 0.18.36 defines it (`truss/base/trt_llm_config.py`).

Every key of truss's is accepted, within truss's limits, so that a config.yaml for Baseten works unchanged.
`TrtLlm.ignored` names the keys that have no effect on an encoder. A test compares these classes with truss's own. truss
itself is not imported: it is 218 MB, takes over a second to import, and is not in a serving image.

Two things that truss accepts are refused here. Its other base models (`decoder` is its default) and its second
inference stack serve generative models only. The quantization types before `fp8` are refused by its backend at push.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field
from msgspec.structs import FieldInfo, fields

Count: TypeAlias = Annotated[int, Meta(ge=1)]
Length: TypeAlias = Annotated[int, Meta(ge=1, le=1_048_576)]
Calibration: TypeAlias = Annotated[int, Meta(ge=64, le=16_384, multiple_of=64)]

BaseModel: TypeAlias = Annotated[
    Literal["encoder", "encoder_bert"],
    Meta(description="BEI serves encoders only; truss takes a block without this key for a decoder"),
]
Source: TypeAlias = Literal["HF", "GCS", "S3", "AZURE", "LOCAL", "REMOTE_URL", "BASETEN_TRAINING"]
QuantizationType: TypeAlias = Literal[
    "no_quant", "fp8", "fp8_kv", "fp8_mlp_only", "fp4", "fp4_kv", "fp4_mlp_only"
]  # fmt: skip
DefaultRoute: TypeAlias = Literal["/v1/embeddings", "/rerank", "/predict", "/predict_tokens"]

# truss/base/constants.py BEI_REQUIRED_MAX_NUM_TOKENS, and the field's own default.
_MAX_NUM_TOKENS = {"encoder": 16_384, "encoder_bert": 8_192}

# How a checkpoint that is neither a folder nor a Hugging Face repository is written as one `model_id`.
_SCHEMES = {
    "GCS": "gs",
    "S3": "s3",
    "AZURE": "azure",
    "REMOTE_URL": "https",
    "BASETEN_TRAINING": "baseten-training",
}

_READ = {
    "": {"build", "runtime"},
    "build.": {
        "base_model",
        "checkpoint_repository",
        "max_batch_size",
        "max_num_tokens",
        "max_seq_len",
        "quantization_config",
        "quantization_type",
    },
    "runtime.": {"webserver_default_route"},
}


_HUB_SECRET = "hf_access_token"  # noqa: S105 - the name of a secret, as truss spells it


class CheckpointRepository(Struct, frozen=True, kw_only=True):
    """Where the weights are."""

    source: Source
    repo: str  # a Hugging Face repository, a folder, a bucket and path, or a URL
    revision: str | None = None
    runtime_secret_name: str = _HUB_SECRET

    @property
    def secret(self) -> tuple[str, str]:
        """The setting that the secret is for, and the secret's name. truss's default name means a token for the hub."""
        is_hub = self.source in {"HF", "LOCAL"} or self.runtime_secret_name == _HUB_SECRET
        return ("hf_token" if is_hub else "checkpoint_secret", self.runtime_secret_name)

    @property
    def model_id(self) -> str:
        """The checkpoint as a `model_id`: a folder, a repository, or a URL whose scheme follows from `source`."""
        if self.source in {"HF", "LOCAL"} or "://" in self.repo:
            return self.repo
        return f"{_SCHEMES[self.source]}://{self.repo}"


class QuantizationConfig(Struct, frozen=True, kw_only=True):
    """The texts that a quantised engine is calibrated with."""

    calib_size: Calibration = 1024  # texts
    calib_dataset: str = "abisee/cnn_dailymail"
    calib_max_seq_length: Calibration = 1536  # tokens


class PluginConfiguration(Struct, frozen=True, kw_only=True):
    """Attention kernels of a decoder. truss itself turns them off for an encoder."""

    paged_kv_cache: bool = True
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = False


class Build(Struct, frozen=True, kw_only=True):
    """What the engine is built from, and its limits."""

    base_model: BaseModel
    checkpoint_repository: CheckpointRepository
    max_seq_len: Length | None = None  # tokens of one input; the model's own when None
    max_batch_size: Annotated[int, Meta(ge=1, le=2048)] = 256  # inputs a batch
    max_num_tokens: Annotated[int, Meta(gt=64, le=1_048_576)] | None = None  # tokens a batch; None: by base_model
    quantization_type: QuantizationType = "no_quant"
    quantization_config: QuantizationConfig = QuantizationConfig()
    max_beam_width: Annotated[int, Meta(ge=1, le=1)] = 1
    max_prompt_embedding_table_size: int = 0
    gather_all_token_logits: bool = False
    strongly_typed: bool = False
    tensor_parallel_count: Count = 1
    pipeline_parallel_count: int = 1
    moe_expert_parallel_option: int = -1
    sequence_parallel_count: int = 1
    plugin_configuration: PluginConfiguration = PluginConfiguration()
    num_builder_gpus: Count | None = None
    speculator: dict[str, Any] | None = None
    lora_adapters: dict[str, Any] | None = None
    lora_configuration: dict[str, Any] | None = None
    skip_build_result: bool = False


class Runtime(Struct, frozen=True, kw_only=True):
    """How the engine is served. Every key but the route is for decoders."""

    webserver_default_route: DefaultRoute | Literal["/v1/systemone"] | None = None
    kv_cache_free_gpu_mem_fraction: float = 0.9
    kv_cache_host_memory_bytes: Count | None = None
    lora_cache_max_adapter_size: Count | None = None
    lora_cache_optimal_adapter_size: Count | None = None
    lora_cache_gpu_memory_fraction: Annotated[float, Meta(gt=0, le=1)] | None = None
    lora_cache_host_memory_bytes: Count | None = None
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["max_utilization", "guaranteed_no_evict"] = "guaranteed_no_evict"
    request_default_max_tokens: Count | None = None
    served_model_name: str | None = None
    total_token_limit: int = 500_000


class TrtLlm(Struct, frozen=True, kw_only=True):
    """The whole block."""

    build: Build
    runtime: Runtime = Runtime()
    inference_stack: Annotated[
        Literal["v1"], Meta(description="truss's v2 is for generative models; leave the key out")
    ] = "v1"
    version_overrides: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, object]:
        """The settings in the block, by BEI's names, without those that it does not set."""
        repository = self.build.checkpoint_repository
        route = self.runtime.webserver_default_route
        values: dict[str, object | None] = {
            "model_id": repository.model_id,
            "revision": repository.revision,
            "max_batch_tokens": self.build.max_num_tokens or _MAX_NUM_TOKENS[self.build.base_model],
            "max_batch_requests": self.build.max_batch_size,
            "webserver_default_route": None if route == "/v1/systemone" else route,
        }
        if self.build.quantization_type != "no_quant":
            config = self.build.quantization_config
            values["quantization_type"] = self.build.quantization_type
            values |= {name: getattr(config, name) for name in config.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}

    def ignored(self) -> tuple[str, ...]:
        """The dotted keys that have another value than their default and no effect here."""
        names = [name for prefix, read in _READ.items() for name in _changed(self._part(prefix), prefix, read)]
        if self.runtime.webserver_default_route == "/v1/systemone":
            names.append("runtime.webserver_default_route")  # a route that BEI does not have
        return tuple(sorted(names))

    def _part(self, prefix: str) -> Struct:
        """The struct whose keys begin with the prefix."""
        parts: Mapping[str, Struct] = {"": self, "build.": self.build, "runtime.": self.runtime}
        return parts[prefix]


def _changed(part: Struct, prefix: str, read: set[str]) -> Iterator[str]:
    """The keys whose value is not the default, except those in `read`."""
    for info in fields(part):
        if info.name not in read and getattr(part, info.name) != _default(info):
            yield prefix + info.name


def _default(info: FieldInfo) -> object:
    """A field's default value."""
    return info.default_factory() if callable(info.default_factory) else info.default
