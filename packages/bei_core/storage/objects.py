"""Object stores by URL: which driver, whose credentials, and what their errors mean. Checkpoints and engines use it.

    s3://bucket/prefix                  s3fs    {"aws_access_key_id", "aws_secret_access_key", "aws_region"}
    gs://bucket/prefix                  gcsfs   a service account's JSON
    azure://account/container/prefix    adlfs   {"account_key"}, {"sas_token"} or {"connection_string"}
    file:///folder, memory://folder     fsspec's own, without credentials

The secrets are in the form of Baseten's documentation. Without one, the credentials are those that the driver's SDK
finds by itself (environment, profile, the machine's role); endpoints and proxies are the SDK's own variables, such as
AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from bei_core.errors import BeiError, CheckpointError

FileSystem: TypeAlias = Any  # an fsspec.AbstractFileSystem: fsspec has no types
Options: TypeAlias = dict[str, Any]  # what a driver is made with

_AZURE_HOST = re.compile(r"(?P<account>[a-z0-9]+)\.(blob|dfs)\.core\.windows\.net")
_GOOGLE_TOKEN = {"type": "service_account", "token_uri": "https://oauth2.googleapis.com/token"}


@dataclass(frozen=True)
class _Kind:
    """One kind of store."""

    name: str
    protocol: str  # what fsspec calls it
    driver: str = ""  # the package, where it does not come with fsspec
    extra: str = ""  # of bei-core, that brings the driver
    options: Callable[[Mapping[str, Any]], Options] = lambda secret: {}  # the driver's, from a secret
    form: str = "no secret"  # what a secret is to be


def open_store(url: str, secret: str | None = None) -> tuple[FileSystem, str]:
    """The fsspec file system of a URL, and the path on it, without a slash at its end.

    `secret` is JSON of credentials, in the form that the module's description gives. Nothing is contacted yet: put what
    is done with the file system inside `explained`. Instances are not shared and cache no listings.
    Raises CheckpointError for a URL or secret of the wrong form, and with the pip command for a driver that is missing.
    """
    kind = _kind_of(url)
    options, path = _place(url)
    options |= _credentials(url, secret, kind) if secret else {}
    import fsspec

    try:
        # s3fs and its like remember what they listed, and fsspec remembers them: a changed bucket would look unchanged.
        made = fsspec.filesystem(kind.protocol, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as fault:
        raise CheckpointError(
            f"{shown(url)}: {kind.name} needs {kind.driver}: pip install 'bei-core[{kind.extra}]' "
            f"(or pip install {kind.driver}). {fault}"
        ) from fault
    except Exception as fault:  # of the driver's SDK, which has classes of its own
        raise CheckpointError(f"{shown(url)}: {_said(fault, secret)}. {_advice(kind, secret)}") from fault
    return made, path


def is_store(url: str) -> bool:
    """Whether `open_store` knows what to do with a URL."""
    return "://" in url and (_protocol(url) in _KINDS or _is_azure_https(url))


def shown(url: str) -> str:
    """A URL that may be printed: without its query, where signatures are, and without user and password.

    What is no URL comes back as it is.
    """
    if "://" not in url:
        return url
    bare = url.split("?")[0].split("#")[0]
    return re.sub(r"(?<=://)[^/@]*@", lambda found: found[0] if _protocol(url) in {"abfs", "abfss"} else "", bare)


@contextmanager
def explained(url: str, secret: str | None = None) -> Iterator[None]:
    """Turns what a driver raises inside `with` into CheckpointError that says what to do, less the secret's values."""
    try:
        yield
    except BeiError:
        raise
    except FileNotFoundError as fault:
        raise CheckpointError(f"{shown(url)}: not there: {_said(fault, secret)}") from fault
    except PermissionError as fault:
        raise CheckpointError(
            f"{shown(url)}: access denied: {_said(fault, secret)}. {_advice(_kind_of(url), secret)}"
        ) from fault
    except Exception as fault:
        advice = f" {_advice(_kind_of(url), secret)}" if is_about_credentials(fault) else ""
        raise CheckpointError(f"{shown(url)}: {_said(fault, secret)}.{advice}") from fault


def is_about_credentials(fault: BaseException) -> bool:
    """Whether an error of a driver's SDK is about credentials, by its name: the classes are not importable here."""
    names = " ".join(kind.__name__ for kind in type(fault).__mro__)
    return isinstance(fault, PermissionError) or re.search("Credential|Authenticat|RefreshError", names) is not None


def is_lasting(fault: BaseException) -> bool:
    """Whether trying again is of no use: the store answered. Otherwise it may be out of reach for a while."""
    return isinstance(fault, FileNotFoundError) or is_about_credentials(fault)


def _protocol(url: str) -> str:
    """The scheme; `azure` where an https URL names an Azure account."""
    return "azure" if _is_azure_https(url) else url.partition("://")[0].lower()


def _is_azure_https(url: str) -> bool:
    """Whether an https URL is of a folder of an Azure account: of a file there, a tar, it is a URL like any other."""
    parts = urlsplit(url)
    is_file = re.search(r"\.(tar(\.\w+)?|tgz)$", parts.path) is not None or bool(parts.query)
    return parts.scheme == "https" and _AZURE_HOST.fullmatch(parts.netloc) is not None and not is_file


def _kind_of(url: str) -> _Kind:
    """The kind of store. Raises CheckpointError that lists the known schemes."""
    kind = _KINDS.get(_protocol(url))
    if kind is None:
        raise CheckpointError(f"{shown(url)}: no object store of that scheme; known are {', '.join(_KINDS)}")
    return kind


def _place(url: str) -> tuple[Options, str]:
    """The driver's options that the URL itself says, and the path on it."""
    protocol, parts = _protocol(url), urlsplit(url)
    path = f"{parts.netloc}{parts.path}".rstrip("/")
    account = _AZURE_HOST.fullmatch(parts.hostname or "")
    if protocol == "file":
        return {"auto_mkdir": True}, parts.path.rstrip("/") or "/"  # as buckets, which have no folders to be made
    if account:  # https://account.blob…/container/path, abfs://container@account.dfs…/path
        container = f"{parts.username}/" if parts.username else ""
        return {"account_name": account["account"]}, _container(url, f"{container}{parts.path.strip('/')}")
    if protocol == "azure":
        return {"account_name": parts.netloc}, _container(url, parts.path.strip("/"))
    if not parts.netloc and protocol != "memory":
        raise CheckpointError(f"{url!r} names no bucket; write {protocol}://bucket/folder")
    return {}, path


def _container(url: str, path: str) -> str:
    """The path, which must begin with a container."""
    if not path:
        raise CheckpointError(f"{shown(url)} names no container; write azure://account/container/folder")
    return path


def _credentials(url: str, secret: str, kind: _Kind) -> Options:
    """The driver's options in a secret. Raises CheckpointError, without the secret, for one of another form."""
    try:
        found = json.loads(secret)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{shown(url)}: the secret is not a JSON object; {kind.name} takes {kind.form}")
    try:
        return kind.options(found)
    except KeyError as fault:
        raise CheckpointError(
            f"{shown(url)}: the secret has no {fault.args[0]}; {kind.name} takes {kind.form}"
        ) from fault


def _s3(secret: Mapping[str, Any]) -> Options:
    """Options of s3fs: Baseten's names, or the same without `aws_`, as truss-transfer reads them."""
    values = {name.removeprefix("aws_"): value for name, value in secret.items()}
    _need(values, "access_key_id", "secret_access_key")
    options = {"key": values["access_key_id"], "secret": values["secret_access_key"]}
    if values.get("session_token"):
        options["token"] = values["session_token"]
    region = values.get("region") or values.get("default_region")
    return {**options, "client_kwargs": {"region_name": region}} if region else options


def _gcs(secret: Mapping[str, Any]) -> Options:
    """Options of gcsfs: a service account's key file, of which Baseten asks for three fields only."""
    _need(secret, "private_key", "client_email")
    return {"token": {**_GOOGLE_TOKEN, **secret}}


def _azure(secret: Mapping[str, Any]) -> Options:
    """Options of adlfs, whose names are those of the secret."""
    known = ("account_name", "account_key", "sas_token", "connection_string", "client_id", "client_secret", "tenant_id")
    options = {name: secret[name] for name in known if secret.get(name)}
    if not options.keys() & {"account_key", "sas_token", "connection_string", "client_secret"}:
        raise KeyError("account_key")
    return options


def _need(secret: Mapping[str, Any], *names: str) -> None:
    """Raises KeyError for the first name that has no value."""
    for name in names:
        if not secret.get(name):
            raise KeyError(name)


def _said(fault: BaseException, secret: str | None) -> str:
    """The first line of what an error says, without any value of the secret."""
    text = str(fault).strip().partition("\n")[0] or "no reason given"
    for value in _values(secret):
        text = text.replace(value, "***")
    return text if isinstance(fault, OSError) else f"{type(fault).__name__}: {text}"


def _values(secret: str | None) -> list[str]:
    """What must not be printed of a secret, the longest first."""
    if not secret:
        return []
    try:
        found = json.loads(secret)
    except ValueError:
        found = None
    values = [str(value) for value in found.values()] if isinstance(found, dict) else []
    return sorted((value for value in (*values, secret) if len(value) > 3), key=len, reverse=True)


def _advice(kind: _Kind, secret: str | None) -> str:
    """What to do about credentials."""
    if not kind.driver:
        return "Check that this user may read and write there"
    given = "the secret that was given" if secret else "no secret was given, so the SDK's own credentials were tried"
    return f"Credentials: {given}; {kind.name} takes {kind.form} (checkpoint_secret, runtime_secret_name)"


_S3 = _Kind(
    name="S3",
    protocol="s3",
    driver="s3fs",
    extra="s3",
    options=_s3,
    form='{"aws_access_key_id": …, "aws_secret_access_key": …, "aws_region": …}',
)
_GCS = _Kind(
    name="Google Cloud Storage",
    protocol="gs",
    driver="gcsfs",
    extra="gcs",
    options=_gcs,
    form='a service account\'s JSON, {"private_key_id": …, "private_key": …, "client_email": …}',
)
_AZURE = _Kind(
    name="Azure Blob Storage",
    protocol="abfs",
    driver="adlfs",
    extra="azure",
    options=_azure,
    form='{"account_key": …}, {"sas_token": …} or {"connection_string": …}',
)
_KINDS = {
    **dict.fromkeys(("s3", "s3a"), _S3),
    **dict.fromkeys(("gs", "gcs"), _GCS),
    **dict.fromkeys(("azure", "az", "abfs", "abfss"), _AZURE),
    "file": _Kind(name="a folder", protocol="file"),
    "memory": _Kind(name="memory", protocol="memory"),
}
