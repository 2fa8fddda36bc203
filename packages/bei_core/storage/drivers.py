"""The drivers of object stores: which one a URL needs, its options from a secret, and what to print of either.

    s3://bucket/prefix                  s3fs    {"aws_access_key_id", "aws_secret_access_key", "aws_region"}
    gs://bucket/prefix                  gcsfs   a service account's JSON
    azure://account/container/prefix    adlfs   {"account_key"}, {"sas_token"} or {"connection_string"}
    file:///folder, memory://folder     fsspec's own, without credentials

Secrets have the form of Baseten's documentation. Without a secret, the driver's SDK finds credentials by itself
(environment, profile, the machine's role). Endpoints and proxies are the SDK's own variables, such as AWS_ENDPOINT_URL
and STORAGE_EMULATOR_HOST.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from bei_core.errors import CheckpointError

Options: TypeAlias = dict[str, Any]  # what a driver is created with

_AZURE_HOST = re.compile(r"(?P<account>[a-z0-9]+)\.(blob|dfs)\.core\.windows\.net")
_GOOGLE_TOKEN = {"type": "service_account", "token_uri": "https://oauth2.googleapis.com/token"}


@dataclass(frozen=True)
class Driver:
    """One kind of store."""

    name: str
    protocol: str  # fsspec's name of it
    package: str = ""  # the driver's package, unless it comes with fsspec
    extra: str = ""  # the extra of bei-core that installs the driver
    options: Callable[[Mapping[str, Any]], Options] = lambda secret: {}  # the driver's options, from a secret
    form: str = "no secret"  # the form of a secret


def driver_of(url: str) -> Driver:
    """The driver for a URL. Raises CheckpointError that lists the known schemes."""
    driver = _DRIVERS.get(_scheme(url))
    if driver is None:
        raise CheckpointError(f"{redact(url)}: no object store of that scheme; known are {', '.join(_DRIVERS)}")
    return driver


def options_of(url: str, secret: str | None) -> tuple[Options, str]:
    """The driver's options from the URL and the secret, and the path in the store, without a slash at its end.

    Raises CheckpointError, without the secret, if either has the wrong form.
    """
    options, path = _parse(url)
    return (options | _credentials(url, secret) if secret else options), path


def is_store(url: str) -> bool:
    """Whether a driver is known for the URL."""
    return "://" in url and (_scheme(url) in _DRIVERS or _is_azure_https(url))


def redact(url: str) -> str:
    """A URL that may be printed: without its query, which may hold a signature, and without user and password.

    Anything that is no URL is returned unchanged.
    """
    if "://" not in url:
        return url
    bare = url.split("?")[0].split("#")[0]
    return re.sub(r"(?<=://)[^/@]*@", lambda found: found[0] if _scheme(url) in {"abfs", "abfss"} else "", bare)


def message_of(error: BaseException, secret: str | None) -> str:
    """The first line of an error's message, without any value of the secret."""
    text = str(error).strip().partition("\n")[0] or "no reason given"
    for value in _values(secret):
        text = text.replace(value, "***")
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def is_about_credentials(error: BaseException) -> bool:
    """Whether an error of a driver's SDK is about credentials, by its name: its class cannot be imported here."""
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return isinstance(error, PermissionError) or re.search("Credential|Authenticat|RefreshError", names) is not None


def credentials_help(url: str, secret: str | None) -> str:
    """What to do if a store refuses access."""
    driver = driver_of(url)
    if not driver.package:
        return "Check that this user may read and write there"
    given = "the secret that was given" if secret else "no secret was given, so the SDK's own credentials were tried"
    return f"Credentials: {given}; {driver.name} takes {driver.form} (checkpoint_secret, runtime_secret_name)"


def _scheme(url: str) -> str:
    """The scheme; `azure` for an https URL of an Azure account."""
    return "azure" if _is_azure_https(url) else url.partition("://")[0].lower()


def _is_azure_https(url: str) -> bool:
    """Whether an https URL is of a folder in an Azure account. A URL of a file there, a tar, is like any other URL."""
    parts = urlsplit(url)
    is_file = re.search(r"\.(tar(\.\w+)?|tgz)$", parts.path) is not None or bool(parts.query)
    return parts.scheme == "https" and _AZURE_HOST.fullmatch(parts.netloc) is not None and not is_file


def _parse(url: str) -> tuple[Options, str]:
    """The driver's options in the URL itself, and the path in the store."""
    scheme, parts = _scheme(url), urlsplit(url)
    path = f"{parts.netloc}{parts.path}".rstrip("/")
    account = _AZURE_HOST.fullmatch(parts.hostname or "")
    if scheme == "file":
        return {"auto_mkdir": True}, parts.path.rstrip("/") or "/"  # as in buckets, folders need not be created
    if account:  # https://account.blob…/container/path, abfs://container@account.dfs…/path
        container = f"{parts.username}/" if parts.username else ""
        return {"account_name": account["account"]}, _container(url, f"{container}{parts.path.strip('/')}")
    if scheme == "azure":
        return {"account_name": parts.netloc}, _container(url, parts.path.strip("/"))
    if not parts.netloc and scheme != "memory":
        raise CheckpointError(f"{url!r} names no bucket; write {scheme}://bucket/folder")
    return {}, path


def _container(url: str, path: str) -> str:
    """The path, which must begin with a container."""
    if not path:
        raise CheckpointError(f"{redact(url)} names no container; write azure://account/container/folder")
    return path


def _credentials(url: str, secret: str) -> Options:
    """The driver's options from a secret. Raises CheckpointError, without the secret, if it has the wrong form."""
    driver, values = driver_of(url), _decode(secret)
    if values is None:
        raise CheckpointError(f"{redact(url)}: the secret is not a JSON object; {driver.name} takes {driver.form}")
    try:
        return driver.options(values)
    except KeyError as error:
        raise CheckpointError(
            f"{redact(url)}: the secret has no {error.args[0]}; {driver.name} takes {driver.form}"
        ) from error


def _decode(secret: str) -> dict[str, Any] | None:
    """The JSON object that a secret is; None if it is none."""
    try:
        values = json.loads(secret)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _values(secret: str | None) -> list[str]:
    """The strings of a secret that must not be printed, the longest first."""
    if not secret:
        return []
    values = map(str, (_decode(secret) or {}).values())
    return sorted((value for value in (*values, secret) if len(value) > 3), key=len, reverse=True)


def _s3(secret: Mapping[str, Any]) -> Options:
    """Options of s3fs, by Baseten's names or the same names without `aws_`, which truss-transfer reads too."""
    values = {name.removeprefix("aws_"): value for name, value in secret.items()}
    _need(values, "access_key_id", "secret_access_key")
    options = {"key": values["access_key_id"], "secret": values["secret_access_key"]}
    if values.get("session_token"):
        options["token"] = values["session_token"]
    region = values.get("region") or values.get("default_region")
    return {**options, "client_kwargs": {"region_name": region}} if region else options


def _gcs(secret: Mapping[str, Any]) -> Options:
    """Options of gcsfs: a service account's key file, or the three fields of it that Baseten asks for."""
    _need(secret, "private_key", "client_email")
    return {"token": {**_GOOGLE_TOKEN, **secret}}


def _azure(secret: Mapping[str, Any]) -> Options:
    """Options of adlfs, by the names that they have in the secret."""
    known = ("account_name", "account_key", "sas_token", "connection_string", "client_id", "client_secret", "tenant_id")
    options = {name: secret[name] for name in known if secret.get(name)}
    if not options.keys() & {"account_key", "sas_token", "connection_string", "client_secret"}:
        raise KeyError("account_key")
    return options


def _need(secret: Mapping[str, Any], *names: str) -> None:
    """Raise KeyError for the first name without a value."""
    for name in names:
        if not secret.get(name):
            raise KeyError(name)


_S3 = Driver(
    name="S3",
    protocol="s3",
    package="s3fs",
    extra="s3",
    options=_s3,
    form='{"aws_access_key_id": …, "aws_secret_access_key": …, "aws_region": …}',
)
_GCS = Driver(
    name="Google Cloud Storage",
    protocol="gs",
    package="gcsfs",
    extra="gcs",
    options=_gcs,
    form='a service account\'s JSON, {"private_key_id": …, "private_key": …, "client_email": …}',
)
_AZURE = Driver(
    name="Azure Blob Storage",
    protocol="abfs",
    package="adlfs",
    extra="azure",
    options=_azure,
    form='{"account_key": …}, {"sas_token": …} or {"connection_string": …}',
)
_DRIVERS = {
    **dict.fromkeys(("s3", "s3a"), _S3),
    **dict.fromkeys(("gs", "gcs"), _GCS),
    **dict.fromkeys(("azure", "az", "abfs", "abfss"), _AZURE),
    "file": Driver(name="a folder", protocol="file"),
    "memory": Driver(name="memory", protocol="memory"),
}
