"""Settings: everything about a server that can be chosen, declared once.

Flags, environment variables, keys of config.yaml, `--help` and docs/settings.md are all made from the fields of
`Settings`; a new setting is one new field. Flags win over the environment, the environment over config.yaml, and
config.yaml over the defaults. Names are those of text-embeddings-inference, so that its launch lines work here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from bei_core.config import sources
from bei_core.config.cache_dir import default_cache_dir
from bei_core.config.declaration import About, Declared, declared
from bei_core.config.files import read_secret, read_yaml
from bei_core.config.model_names import at_hub, name_and_id
from bei_core.config.trt_llm import Count, DefaultRoute, QuantizationType, TrtLlm
from bei_core.errors import ConfigError
from bei_core.models.pooling import PoolingSetting
from bei_core.storage.backends import redact, store_schemes

NonEmpty: TypeAlias = Annotated[str, Meta(min_length=1)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Index: TypeAlias = Annotated[str, Meta(pattern="^[0-9]+$", description="the number of a GPU, such as 0")]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65_535)]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
Url: TypeAlias = Annotated[str, Meta(pattern="^https?://", description="a URL that begins with http:// or https://")]


class Settings(Struct, frozen=True, kw_only=True):
    """The settings of one server. `load` and `from_truss_config` check every value."""

    model_id: Annotated[
        NonEmpty | None,
        About(
            f"Model to serve: a folder, a Hugging Face repository, {store_schemes()}, or https:// of a tar.",
            decides_engine=True,
        ),
    ] = None
    models: Annotated[
        tuple[NonEmpty, ...],
        About(
            "Several models in one server, in place of model_id; each is a model_id or name=model_id.",
            flags=("--model", "--models"),
            bare=False,
            excludes=("model_id",),
        ),
    ] = ()
    revision: Annotated[
        NonEmpty | None,
        About(
            "Branch, tag or commit of the Hugging Face repository.",
            unset="its main branch",
            of_one_model=True,
            decides_engine=True,
        ),
    ] = None
    served_model_name: Annotated[
        NonEmpty | None, About("Name of the model in replies.", unset="model_id", of_one_model=True)
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        About("Type that the engine computes in; auto takes bfloat16 where the hardware has it, else float32."),
    ] = "auto"
    pooling: Annotated[
        PoolingSetting | None,
        About(
            "How the vectors of a text's tokens become one vector.",
            unset="what the model's files say",
            of_one_model=True,
            decides_engine=True,
        ),
    ] = None
    dense_path: Annotated[
        NonEmpty | None,
        About(
            "Folder of the model's Dense module; only the one that modules.json names is supported.",
            unset="the one of modules.json",
            of_one_model=True,
        ),
    ] = None
    engine: Annotated[
        Literal["auto", "openvino", "tensorrt_llm", "torch"],
        About(
            "Engine; on a supported GPU auto takes tensorrt_llm or torch, whichever is installed; else openvino.",
            bare=False,
        ),
    ] = "auto"
    devices: Annotated[
        tuple[Index, ...], About("GPUs of the torch engine, a copy on each.", unset="the first", split=True, bare=False)
    ] = ()
    tensor_parallel_size: Annotated[Count, About("GPUs that the torch engine divides a model among.", bare=False)] = 1
    torch_compile: Annotated[bool, About("Compile the layers of the torch engine on a GPU.", bare=False)] = True
    default_prompt: Annotated[
        str | None, About("Text that is put before every input.", unset="the model's default prompt", of_one_model=True)
    ] = None
    default_prompt_name: Annotated[
        NonEmpty | None,
        About(
            "Name of the prompt in config_sentence_transformers.json that is put before every input.",
            unset="the model's default prompt",
            of_one_model=True,
            excludes=("default_prompt",),
        ),
    ] = None
    rerank_template: Annotated[
        NonEmpty | None,
        About(
            "Prompt of a reranker: a known template's name, its text, its JSON, or none.",
            unset="the model's chat template, or by its name",
            of_one_model=True,
            decides_engine=True,
        ),
    ] = None
    auto_truncate: Annotated[
        bool, About("Truncate inputs that are too long; without it they are refused. A request may choose.")
    ] = True
    trt_llm: Annotated[
        TrtLlm | None, About("Baseten's trt_llm block, as JSON; every setting that is given wins over it.", bare=False)
    ] = None

    quantization_type: Annotated[
        Literal[QuantizationType, "int8_weight_only", "int4_weight_only"] | None,
        About("Quantisation; on a CPU fp8 is int8, fp4 int4_weight_only.", unset="no_quant, or fp8 if dtype is int8"),
    ] = None
    smooth_quant_alpha: Annotated[
        Share | None,
        About(
            "SmoothQuant: the share of outliers of activations that moves into the weights.",
            unset="chosen for each layer",
        ),
    ] = None
    calib_dataset: Annotated[
        NonEmpty, About("Texts to calibrate with: packaged, a .txt file (one a line) or a .jsonl file (text).")
    ] = "packaged"
    calib_size: Annotated[Count, About("Number of texts to calibrate with.")] = 512
    calib_max_seq_length: Annotated[Count, About("Maximum tokens of a text to calibrate with.")] = 1536
    quality_mean_cosine: Annotated[
        Share, About("Least mean cosine to f32 on held-out texts; a quantised engine below it is refused.")
    ] = 0.99
    quality_top_label_agreement: Annotated[
        Share, About("Least share of held-out texts for which a quantised classifier keeps f32's label.")
    ] = 0.97
    quality_rank_correlation: Annotated[
        Share, About("Least Spearman correlation of a quantised classifier's or reranker's scores to f32's.")
    ] = 0.98

    max_batch_tokens: Annotated[Count, About("Maximum tokens of one forward pass.")] = 16_384
    max_batch_requests: Annotated[
        Count | None, About("Maximum inputs of one forward pass.", unset="as many as max_batch_tokens allows")
    ] = None
    max_client_batch_size: Annotated[Count, About("Maximum inputs of one request.")] = 2048
    max_concurrent_requests: Annotated[
        Count, About("Maximum requests that are accepted and not yet answered; more get status 429.")
    ] = 2048
    max_queue_tokens: Annotated[
        Count, About("Maximum tokens that are accepted and not yet computed; more get status 429.")
    ] = 1_048_576
    max_queue_wait_s: Annotated[
        Positive,
        About(
            "Maximum expected seconds until a request is computed; else 429 (normal priority at 80%, low at 50%).",
            bare=False,
        ),
    ] = 10.0
    hang_timeout_s: Annotated[
        Positive, About("Seconds after which a batch hangs; ten times its expected time if that is more.", bare=False)
    ] = 120.0
    engine_process: Annotated[
        bool, About("Run each engine in a process of its own; it is started again if it crashes or hangs.", bare=False)
    ] = False
    payload_limit: Annotated[Count, About("Maximum bytes of a request's body.")] = 32_000_000
    max_body_bytes_in_flight: Annotated[
        Count, About("Maximum bytes of all bodies and unread replies in memory; more get status 429.", bare=False)
    ] = 536_870_912
    max_reply_bytes: Annotated[
        Count, About("Maximum bytes of a reply with vectors of tokens; a request for more gets status 422.", bare=False)
    ] = 256_000_000
    max_connections: Annotated[
        Count, About("Maximum open connections; beyond it the longest idle ones are closed.", bare=False)
    ] = 16_384
    header_timeout_s: Annotated[
        Positive, About("Seconds for the head of a request to arrive, from its first byte.", bare=False)
    ] = 10.0
    body_timeout_s: Annotated[Positive, About("Seconds for the whole body of a request to arrive.", bare=False)] = 60.0
    send_timeout_s: Annotated[
        Positive, About("Seconds in which a client must read its reply; more if it reads 1 KB a second.", bare=False)
    ] = 60.0
    keep_alive_timeout_s: Annotated[
        Positive, About("Seconds that an idle connection stays open; more than a load balancer's 60.", bare=False)
    ] = 75.0
    drain_timeout_s: Annotated[
        Positive, About("Maximum seconds from a signal to the end of the process.", bare=False)
    ] = 25.0
    tokenization_workers: Annotated[Count, About("Threads that tokenize.")] = 1

    hostname: Annotated[
        NonEmpty,
        About("Address to listen on.", bare=False),  # every container has HOSTNAME, its own id
    ] = "0.0.0.0"  # noqa: S104 - a container's server is reached from outside
    port: Annotated[Port, About("Port to listen on; 0 takes a free one.", flags=("-p", "--port"))] = 7997
    uds_path: Annotated[Path | None, About("Unix domain socket to listen on as well.", unset="none", bare=False)] = None
    health_port: Annotated[
        Port | None, About("Another port, for health checks and metrics only.", unset="none", bare=False)
    ] = None
    api_key: Annotated[
        NonEmpty | None,
        About("Key that clients must send.", unset="anyone may call", secret=True, refuse_empty=True),
    ] = None
    api_key_file: Annotated[
        Path | None,
        About(
            "File that holds the key that clients must send.",
            unset="anyone may call",
            bare=False,
            refuse_empty=True,
            excludes=("api_key",),
        ),
    ] = None
    api_keys_file: Annotated[
        Path | None,
        About(
            "YAML file of several keys: for each name its key and, if wanted, its limits; read again when it changes.",
            unset="anyone may call",
            bare=False,
            refuse_empty=True,
            excludes=("api_key", "api_key_file"),
        ),
    ] = None
    cors_allow_origin: Annotated[
        tuple[NonEmpty, ...], About("Origins of web pages that may call.", unset="none", split=True)
    ] = ()
    ui: Annotated[
        bool, About("Serve a page at `/` to try the model, and the API reference at `/docs`.", bare=False)
    ] = True
    webserver_default_route: Annotated[
        DefaultRoute | None, About("Route that Truss's predict stands for.", unset="chosen by the model's kind")
    ] = None

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        About("Least level of the lines that are logged; debug has tracebacks of errors.", bare=False),
    ] = "info"
    json_output: Annotated[bool, About("Write log lines as JSON.")] = False
    access_log: Annotated[
        bool, About("Log a line for each request: path, status, model, tokens, and where its time went.", bare=False)
    ] = False
    otlp_endpoint: Annotated[
        Url | None, About("URL of the collector that traces are sent to, by OTLP over HTTP.", unset="no traces")
    ] = None
    otlp_service_name: Annotated[
        NonEmpty, About("Name of this service in traces, unless OTEL_SERVICE_NAME gives one.")
    ] = "bei"
    disable_spans: Annotated[bool, About("Leave spans out of log lines.", no_effect="log lines have no spans")] = False
    prometheus_port: Annotated[
        Port | None, About("Port for metrics.", no_effect="metrics are served at /metrics of port")
    ] = None

    cache_dir: Annotated[
        Path,
        About(
            "Folder for built engines and fetched checkpoints.",
            unset="bei in /cache/org or /cache/model if it can be written, else in ~/.cache",
            bare=False,
        ),
    ] = msgspec.field(default_factory=lambda: default_cache_dir(os.environ))
    cache_size_gb: Annotated[
        Positive | None,
        About("Maximum size of engines and fetched checkpoints in cache_dir, in GB.", unset="no limit", bare=False),
    ] = None
    huggingface_hub_cache: Annotated[
        Path | None,
        About(
            "Folder for what is fetched from the Hugging Face hub.",
            unset="huggingface_hub's own",
            bare=False,
            environ=("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
        ),
    ] = None
    engine_store: Annotated[
        NonEmpty | None,
        About(
            f"URL of an object store that built engines are shared in: {store_schemes()} or file://.",
            unset="engines are not shared",
            bare=False,
        ),
    ] = None
    refresh: Annotated[
        bool, About("Ask the hub for a branch's commit although an engine of the branch is in the cache.", bare=False)
    ] = False
    verify: Annotated[
        Literal["once", "always"],
        About("When every byte of an engine is checked: once for files that stay as they are, or at every start."),
    ] = "once"
    hf_token: Annotated[
        NonEmpty | None,
        About(
            "Token for private and gated Hugging Face repositories.",
            unset="what `hf auth login` left",
            flags=("--hf-token", "--hf-api-token"),
            environ=("HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"),
            secret=True,
            mounted=("hf_access_token",),
        ),
    ] = None
    engine_store_secret: Annotated[
        NonEmpty | None,
        About("Credentials for engine_store, as JSON.", unset="what the store's SDK finds", bare=False, secret=True),
    ] = None
    checkpoint_secret: Annotated[
        NonEmpty | None,
        About(
            "Credentials for a model in an object store (JSON) or at a URL (a bearer token).",
            unset="what the store's SDK finds",
            bare=False,
            secret=True,
        ),
    ] = None

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that exclude each other."""
        if self.dtype == "int8" and not (self.quantization_type or "fp8").startswith("fp8"):
            raise ConfigError(f"dtype int8 and quantization_type {self.quantization_type} exclude each other; give one")
        given = [name for name, one in SETTINGS.items() if one.about.of_one_model and getattr(self, name) is not None]
        if len(self.models) > 1 and given:
            raise ConfigError(f"{', '.join(given)} cannot be set for several models at once; start a server for each")
        names = [name_and_id(model)[0] or model for model in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(f"models has a name twice: {', '.join(names)}; write name=model_id to tell them apart")

    def each(self) -> tuple[Settings, ...]:
        """The settings of each model: one for each item of `models`, or these settings themselves.

        A page of the hub, such as https://huggingface.co/owner/name/tree/v1, becomes its repository and revision.
        """
        if not self.models:
            return (self._of_model(None, self.model_id),)
        return tuple(self._of_model(*name_and_id(model)) for model in self.models)

    def _of_model(self, name: str | None, model_id: str | None) -> Settings:
        """The settings of one model."""
        model_id, revision = at_hub(model_id, self.revision)
        name = name or self.served_model_name
        return msgspec.structs.replace(self, models=(), model_id=model_id, revision=revision, served_model_name=name)

    def without_effect(self) -> tuple[str, ...]:
        """The settings that were given although they have no effect, each with the reason."""
        given = [one for name, one in SETTINGS.items() if one.about.no_effect and getattr(self, name) != one.default]
        return tuple(f"{one.name} ({one.about.no_effect})" for one in given)

    def check_dense_path(self, folders: Sequence[str]) -> None:
        """Raises ConfigError unless `dense_path` is unset or the folder of the model's only Dense module."""
        if self.dense_path is not None and list(folders) != [self.dense_path.rstrip("/")]:
            known = ", ".join(folders) or "none"
            raise ConfigError(
                f"dense_path {self.dense_path} is not supported: the Dense modules of the model's modules.json are "
                f"used, which are: {known}; name the folder in modules.json, or leave dense_path out"
            )

    def __repr__(self) -> str:
        """One line for logs, without secrets and without the signatures of URLs."""
        values = msgspec.structs.asdict(self) | {"model_id": self.model_id and redact(self.model_id)}
        values |= {"models": tuple(map(redact, self.models))}
        values |= {name: "***" for name, one in SETTINGS.items() if one.about.secret and values[name]}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None) -> Settings:
        """The settings of a command line; a flag that is None was not given.

        Secrets that the config declares are read from the files that Baseten mounts. Raises ConfigError that names the
        source of a setting that is unknown or out of range.
        """
        given = {} if config is None else read_yaml(config)
        secrets = sources.read_secrets(given.get("secrets") or (), read_secret)
        return cls(**sources.collect(SETTINGS, given, environ, flags, secrets))

    @classmethod
    def from_truss_config(
        cls,
        config: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> Settings:
        """The settings from Truss's `config` and `secrets`, which model.py gets, and from the environment.

        Raises ConfigError.
        """
        found = sources.read_secrets(config.get("secrets") or (), (secrets or {}).__getitem__)
        return cls(**sources.collect(SETTINGS, config, environ or {}, {}, found))


SETTINGS: Mapping[str, Declared] = MappingProxyType(declared(Settings))
