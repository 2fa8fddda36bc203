"""Settings: every knob of a server, from flags, the environment and config.yaml.

Flags win over the environment, the environment over config.yaml, config.yaml over the defaults. The names are those of
text-embeddings-inference (and truss's where it has none), so that a launch line or a container's environment written
for it works here.
"""

from __future__ import annotations

import difflib
import logging
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from bei_core.config.files import read_secret, read_yaml
from bei_core.config.foreign import is_foreign
from bei_core.config.trt_llm import Count, QuantizationType, Route, TrtLlm
from bei_core.errors import ConfigError
from bei_core.storage.drivers import redact

log = logging.getLogger(__name__)

StructT = TypeVar("StructT", bound=Struct)
TypeForm: TypeAlias = Any  # a type, a union, a Literal or an Annotated: typing has no name for it yet
NonEmpty: TypeAlias = Annotated[str, Meta(min_length=1)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]

_SECRETS = frozenset({"api_key", "hf_token", "checkpoint_secret", "engine_store_secret"})


# Baseten's network volumes for files written at run time: of the organisation, of one deployment. Either may be absent.
_VOLUMES = (Path("/cache/org"), Path("/cache/model"))


def default_cache_dir(environ: Mapping[str, str], volumes: Sequence[Path] = _VOLUMES) -> Path:
    """A network volume's folder where there is one to write to, else the user's cache folder for BEI.

    Raises ConfigError where the user has no home.
    """
    shared = next((volume for volume in volumes if os.access(volume, os.W_OK | os.X_OK)), None)
    if shared is not None:
        return shared / "bei"
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the XDG specification: anything else is to be ignored
        return base / "bei"
    try:
        return Path(environ.get("HOME") or Path.home()) / ".cache" / "bei"
    except RuntimeError as fault:
        raise ConfigError("there is no home directory for the cache; set cache_dir (BEI_CACHE_DIR)") from fault


class Settings(Struct, frozen=True, kw_only=True):
    """The settings of one server, checked when made by `load` or `from_truss_config`."""

    # The model
    model_id: NonEmpty | None = None  # a folder, a Hugging Face repository, or a URL (s3, gs, azure; https for a tar)
    models: tuple[NonEmpty, ...] = ()  # instead of model_id, several in one server: each a model_id, or name=model_id
    revision: NonEmpty | None = None  # branch, tag or commit of the repository; None: its main branch
    served_model_name: NonEmpty | None = None  # the name in replies; None: model_id
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of the computation
    pooling: Literal["cls", "mean", "max", "last_token", "weighted_mean", "mean_sqrt_len", "splade"] | None = None
    engine: Literal["auto", "openvino", "tensorrt_llm"] = "auto"
    default_prompt: str | None = None  # put before every text; exclusive with default_prompt_name
    default_prompt_name: NonEmpty | None = None  # one of the prompts of config_sentence_transformers.json
    rerank_template: NonEmpty | None = None  # a template's name, text or JSON, or none; None: by the model's name
    auto_truncate: bool = True  # cut what is too long, unless the request says otherwise
    trt_llm: TrtLlm | None = None  # Baseten's block, as it was given

    # Quantisation
    quantization_type: QuantizationType | None = None  # fp8: int8 on a CPU; None: only if dtype is int8
    smooth_quant_alpha: Share | None = None  # of outliers that weights take over; None: what suits each product
    calib_dataset: NonEmpty = "packaged"  # or a .txt file, a text a line, or a .jsonl file with a field text
    calib_size: Count = 512  # texts to calibrate with
    calib_max_seq_length: Count = 1536  # tokens of each
    quality_mean_cosine: Share = 0.99  # to f32 on texts held out; an engine that is below is refused
    quality_top_label_agreement: Share = 0.97  # of a classifier
    quality_rank_correlation: Share = 0.98  # Spearman's, of a classifier's or a reranker's scores

    # Limits
    max_batch_tokens: Count = 16_384  # tokens of one forward pass
    max_batch_requests: Count | None = None  # inputs of one forward pass; None: as many as the tokens allow
    max_client_batch_size: Count = 1024  # inputs of one request
    max_concurrent_requests: Count = 2048  # requests accepted and not yet answered
    max_queue_tokens: Count = 1_048_576  # tokens accepted and not yet computed
    payload_limit: Count = 32_000_000  # bytes of one request's body
    tokenization_workers: Count | None = None  # threads; None: by the number of processors

    # The server
    hostname: NonEmpty = "0.0.0.0"  # noqa: S104 - a container's server is reached from outside
    port: Annotated[int, Meta(ge=0, le=65_535)] = 7997  # 0: any free port
    api_key: NonEmpty | None = None  # what clients must send; None: anyone may call
    cors_allow_origin: tuple[NonEmpty, ...] = ()  # origins of web pages that may call; commas in text
    webserver_default_route: Route | None = None  # what Truss's predict means; None: by the model's kind
    json_output: bool = False  # log lines as JSON
    otlp_endpoint: Annotated[str, Meta(pattern="^https?://")] | None = None  # collector of traces, OTLP over HTTP

    # Files
    cache_dir: Path = msgspec.field(default_factory=lambda: default_cache_dir(os.environ))  # built engines
    cache_size_gb: Annotated[float, Meta(gt=0)] | None = None  # cap on engines and fetched checkpoints; None: no limit
    engine_store: NonEmpty | None = None  # URL of an object store that engines are taken from, and put into when built
    refresh: bool = False  # look again which commit a branch names, though an engine of it is there
    hf_token: NonEmpty | None = None  # for private and gated repositories; None: what `hf auth login` left
    engine_store_secret: NonEmpty | None = None  # of engine_store, as JSON; None: what its SDK finds
    checkpoint_secret: NonEmpty | None = None  # of an object store (JSON) or URL (a token); None: what its SDK finds

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that exclude each other."""
        if self.default_prompt is not None and self.default_prompt_name is not None:
            raise ConfigError("default_prompt and default_prompt_name exclude each other; give one of them")
        if self.models and self.model_id is not None:
            raise ConfigError("model_id and models exclude each other; give one of them")
        if self.dtype == "int8" and self.quantization_type == "no_quant":
            raise ConfigError("dtype int8 and quantization_type no_quant exclude each other; give one of them")
        given = [name for name in _OF_ONE_MODEL if getattr(self, name) is not None]
        if len(self.models) > 1 and given:
            raise ConfigError(f"{', '.join(given)} cannot be set for several models at once; start a server for each")
        names = [_named(model)[0] or model for model in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(f"models has a name twice: {', '.join(names)}; write name=model_id to tell them apart")

    def each(self) -> tuple[Settings, ...]:
        """The settings of each model: these themselves, unless `models` names some."""
        named = [_named(model) for model in self.models]
        return tuple(
            msgspec.structs.replace(
                self, models=(), model_id=model_id, served_model_name=name or self.served_model_name
            )
            for name, model_id in named
        ) or (self,)

    def __repr__(self) -> str:
        """One line for logs, without the secrets and the signatures of URLs."""
        values = msgspec.structs.asdict(self) | {"model_id": self.model_id and redact(self.model_id)}
        values |= {"models": tuple(map(redact, self.models))} | {name: "***" for name in _SECRETS if values[name]}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None) -> Settings:
        """The settings of a command line; a flag that is None was not given.

        The secrets that the config declares are read as Baseten mounts them. Raises ConfigError naming the source of
        what is unknown or out of range.
        """
        given = {} if config is None else read_yaml(config)
        secrets = _present(given.get("secrets") or (), read_secret)
        return _settings(_block(given), environ, _typed(flags, lambda name: f"--{name.replace('_', '-')}"), secrets)

    @classmethod
    def from_truss_config(
        cls,
        config: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> Settings:
        """The settings in the config and secrets that Truss hands to model.py, under the environment's.

        Raises ConfigError.
        """
        return _settings(
            _block(config), environ or {}, {}, _present(config.get("secrets") or (), (secrets or {}).__getitem__)
        )


# What is one model's own, so that there is no saying whose it is where there are several.
_OF_ONE_MODEL = (
    "revision",
    "served_model_name",
    "pooling",
    "default_prompt",
    "default_prompt_name",
    "rerank_template",
)

_EXCLUSIVE = (("default_prompt", "default_prompt_name"), ("model_id", "models"))

_FIELDS = {info.name: info for info in msgspec.structs.fields(Settings)}

# Not read from a bare upper-case name. Every container has HOSTNAME set to its own id, which TEI takes for the address
# to listen on; the others are no names of TEI's, and common enough to be set for something else.
_OURS = {"models", "engine", "cache_dir", "cache_size_gb", "engine_store", "refresh", "trt_llm"}
_NOT_BARE = frozenset({"hostname", "engine_store_secret", "checkpoint_secret"} | _OURS)

# Other names of a setting in the environment, the stronger first.
_ALIASES = {"hf_token": ("HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")}

# How a setting that is not one plain value is written as text (environment, flags).
_FROM_TEXT: Mapping[str, Callable[[str], object]] = {
    "pooling": lambda text: text.replace("-", "_"),  # TEI writes last-token
    "cors_allow_origin": lambda text: _list_of(text),
    "models": lambda text: _list_of(text),
    "trt_llm": lambda text: msgspec.json.decode(text),
}


def _settings(
    block: Mapping[str, object],
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    secrets: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """The settings of the sources: secrets, then the three others as given, weakest first."""
    layers = [_typed(block, "model_metadata.bei.{}".format), _from_environ(environ), flags]
    trt_llm = _merge(layers).get("trt_llm")
    if isinstance(trt_llm, TrtLlm):  # weaker than any key given beside it
        layers.insert(0, trt_llm.settings())
    layers.insert(0, _from_secrets(secrets, trt_llm))
    merged = _merge(layers)
    if "cache_dir" not in merged:
        merged["cache_dir"] = default_cache_dir(environ)
    return Settings(**merged)


def _merge(layers: Iterable[Mapping[str, object]]) -> dict[str, Any]:
    """One value a name, later layers winning; a value that excludes or outdates another takes it away."""
    merged: dict[str, Any] = {}
    for layer in layers:
        chosen, before = _models_of(layer), _models_of(merged)
        if chosen and before and chosen != before:
            merged.pop("revision", None)  # it was the other model's
        for one, other in _EXCLUSIVE:
            for name, excluded in ((one, other), (other, one)):
                if name in layer:
                    merged.pop(excluded, None)
        merged.update(layer)
    return merged


def _models_of(layer: Mapping[str, object]) -> dict[str, object]:
    """What a layer says of which models are served."""
    return {name: layer[name] for name in ("model_id", "models") if name in layer}


def _named(model: str) -> tuple[str | None, str]:
    """The name, if one is given, and the model_id of an entry of `models`."""
    name, equals, model_id = model.partition("=")
    return (name, model_id) if equals and name and model_id and "/" not in name else (None, model)


def _list_of(text: str) -> object:
    """Several texts in one: a JSON list, or with commas between them."""
    if text.lstrip().startswith("["):
        return msgspec.json.decode(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_environ(environ: Mapping[str, str]) -> dict[str, object]:
    """The settings in the environment; an empty variable counts as unset, as compose files leave many so."""
    given = {name: value for name, value in environ.items() if value and not is_foreign(name, value)}
    known = {f"BEI_{name.upper()}" for name in _FIELDS}
    for name in given:
        if name.startswith("BEI_") and name not in known:
            raise _unknown("environment variable", name, known)
    values = {}
    for name in _FIELDS:
        bare = () if name in _NOT_BARE else (name.upper(), *_ALIASES.get(name, ()))
        source = next((source for source in (f"BEI_{name.upper()}", *bare) if source in given), None)
        if source is not None:
            values[name] = _value(name, given[source], f"environment variable {source}", strict=False)
    return values


def _present(declared: Iterable[str], read: Callable[[str], str]) -> dict[str, str]:
    """The secrets that config.yaml declares and that have a value."""
    found = {}
    for name in declared:
        try:
            found[name] = read(name).strip()  # it may come from a file that ends with a new line
        except Exception:  # truss's SecretNotFoundError is no KeyError, and a class that only its server has
            log.warning("secret %s is declared in config.yaml and has no value", name)
    return found


def _from_secrets(secrets: Mapping[str, str], trt_llm: object) -> dict[str, object]:
    """The settings that Truss's secrets stand for; Baseten's block may name its own for the checkpoint."""
    names = {name: [name] for name in _SECRETS} | {"hf_token": ["hf_access_token", "hf_token"]}
    if isinstance(trt_llm, TrtLlm):
        setting, name = trt_llm.build.checkpoint_repository.secret
        names[setting].insert(0, name)
    found = {setting: [secrets[name] for name in known if secrets.get(name)] for setting, known in names.items()}
    return {setting: values[0] for setting, values in found.items() if values}


def _block(config: Mapping[str, Any]) -> dict[str, object]:
    """Our block of a Truss config, with a `trt_llm` of either form in it; empty where there is none."""
    misplaced = sorted(set(config) & (set(_FIELDS) - {"trt_llm"}))
    if misplaced:
        raise ConfigError(
            f"put {', '.join(misplaced)} under model_metadata.bei; the top level of config.yaml is Truss's"
        )
    metadata = config.get("model_metadata") or {}
    block = (metadata.get("bei") or {}) if isinstance(metadata, Mapping) else metadata
    if not isinstance(block, Mapping):
        raise ConfigError("model_metadata.bei must be a mapping of settings")
    top = config.get("trt_llm")
    if top is not None and block.get("trt_llm") is not None:
        raise ConfigError("trt_llm is at the top level and under model_metadata.bei; keep one of them")
    return {**block, "trt_llm": top} if top is not None else dict(block)


def _typed(values: Mapping[str, object], label: Callable[[str], str]) -> dict[str, object]:
    """Named settings, each of its type; `label` is how an error names one. A null counts as unset."""
    typed = {}
    for name, value in values.items():
        if name not in _FIELDS:
            raise _unknown("setting", label(str(name)), [label(known) for known in _FIELDS])
        if value is not None:
            typed[name] = _value(name, value, "trt_llm" if name == "trt_llm" else label(name), strict=True)
    return typed


def _value(name: str, value: object, where: str, *, strict: bool) -> object:
    """One setting, of its type; text is read as numbers and booleans where not strict."""
    if isinstance(value, str) and name in _FROM_TEXT:
        try:
            value = _FROM_TEXT[name](value)
        except msgspec.DecodeError as fault:
            raise ConfigError(f"{where} is not JSON: {fault}") from fault
    return _convert(_FIELDS[name].type, value, where, strict=strict, shown="***" if name in _SECRETS else None)


def _convert(kind: TypeForm, value: object, where: str, *, strict: bool = True, shown: str | None = None) -> object:
    """A value as the type says. Raises ConfigError with the value, unless secret, and what is expected instead."""
    struct = next((part for part in _parts(kind) if isinstance(part, type) and issubclass(part, Struct)), None)
    if struct is not None:
        return _decode(struct, value, where)
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=_path)
    except msgspec.ValidationError as fault:
        raise ConfigError(f"{where} is {shown or repr(value)}: {_expected(kind, str(fault))}") from fault


def _decode(kind: type[StructT], value: object, where: str) -> StructT:
    """A block as a struct, key by key, so that an error can say which and what it may be."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}: expected a mapping of {', '.join(kind.__struct_fields__)}")
    infos = {info.name: info for info in msgspec.structs.fields(kind)}
    for name in value:
        if name not in infos:
            raise _unknown("key", f"{where}.{name}", [f"{where}.{known}" for known in infos])
    given = {name: item for name, item in value.items() if item is not None}
    values = {name: _convert(infos[name].type, item, f"{where}.{name}") for name, item in given.items()}
    for name, info in infos.items():
        if info.required and name not in values:
            raise ConfigError(f"{where}.{name} is missing: {_expected(info.type, 'it has no default')}")
    return kind(**values)


def _parts(kind: TypeForm) -> tuple[Any, ...]:
    """The members of a union, the type itself of anything else."""
    origin: object = typing.get_origin(kind)
    is_union = origin is typing.Union or origin is types.UnionType
    return tuple(part for member in typing.get_args(kind) for part in _parts(member)) if is_union else (kind,)


def _expected(kind: TypeForm, fault: str) -> str:
    """What a value of the type may be, from msgspec's own words, the choices and the type's description."""
    parts = _parts(kind)
    notes = [meta.description for part in parts for meta in getattr(part, "__metadata__", ()) if meta.description]
    plain = [part.__origin__ if hasattr(part, "__metadata__") else part for part in parts]
    choices = [str(choice) for part in plain if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
    said = f"expected {'one of ' if choices[1:] else ''}{', '.join(choices)}" if choices else fault
    return "; ".join([said, *notes])


def _path(kind: type, value: object) -> object:
    """A path from text, `~` read as the user's home: the one type in `Settings` that msgspec does not know."""
    if kind is Path and isinstance(value, (str, Path)) and value:
        return Path(value).expanduser()
    raise ValueError("expected the path of a folder")


def _unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is none of the known ones, with the nearest of them."""
    choices = sorted(known)
    nearest = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ";"
    return ConfigError(f"unknown {what} {name}{hint} known are {', '.join(choices)}")
