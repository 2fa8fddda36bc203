"""The kinds of object stores. Each is a subclass of `Backend`, and its driver is an extra of pyproject.toml.

A secret has the form that Baseten's documentation gives. Without a secret, the driver's SDK finds credentials itself
(environment, profile, the machine's role). The SDK also reads the variables for endpoints and proxies, such as
AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

from bei_core.errors import CheckpointError

Options: TypeAlias = dict[str, Any]  # what a driver is created with
FileSystem: TypeAlias = Any  # an fsspec.AbstractFileSystem: fsspec has no types

BACKENDS: list[Backend] = []  # one object of every class below


class Backend:
    """One kind of object store. Python registers each subclass here; settings, errors and help then name it.

    Every subclass sets `name`, `schemes`, `protocol` and `example`. The methods of this class fit a store with buckets
    that needs no credentials; a subclass overrides those that differ.
    """

    name: ClassVar[str]  # in errors and documents
    schemes: ClassVar[tuple[str, ...]]  # the schemes of its URLs, such as "s3"; help and errors name the first
    protocol: ClassVar[str]  # fsspec's name of the driver
    example: ClassVar[str]  # an example URL
    requirement: ClassVar[str] = ""  # the driver's package, as in pyproject.toml; empty if fsspec has the driver
    extra: ClassVar[str] = ""  # the extra of bei-core that installs it
    credentials_form: ClassVar[str] = "no secret"  # what a secret looks like, for errors and docs/models.md

    def __init_subclass__(cls) -> None:
        BACKENDS.append(cls())

    @property
    def package(self) -> str:
        """The name of the driver's package; empty if fsspec has the driver."""
        return self.requirement.partition(">=")[0]

    def matches(self, url: str) -> bool:
        """Whether the URL names a store of this kind."""
        scheme, separator, _ = url.partition("://")
        return bool(separator) and scheme.lower() in self.schemes

    def parse(self, url: str) -> tuple[Options, str]:
        """Returns the driver's options that the URL gives, and the path in the store without a slash at its end.

        Raises CheckpointError if the URL names no bucket.
        """
        parts = urlsplit(url)
        if not parts.netloc:
            raise CheckpointError(f"{redact(url)} names no bucket; write {self.example}")
        return {}, f"{parts.netloc}{parts.path}".rstrip("/")

    def credentials(self, secret: Mapping[str, Any]) -> Options:
        """Returns the driver's options that a secret gives. Raises KeyError with the name of a missing value."""
        return {}

    def open(self, options: Options) -> FileSystem:
        """Returns the driver, without contacting the store. Raises ImportError if the driver's package is missing."""
        import fsspec

        # Drivers cache listings and fsspec caches drivers: without this a changed bucket would look unchanged.
        return fsspec.filesystem(self.protocol, **options, use_listings_cache=False, skip_instance_cache=True)

    def md5_of(self, info: Mapping[str, Any]) -> str | None:
        """Returns the MD5 of a file's content in hex, from the driver's entry for the file; None if it has none."""
        return None

    def is_md5(self, files: FileSystem, path: str) -> bool:
        """Whether what `md5_of` returned for a file is really an MD5. Called only if the content has another MD5."""
        return True


def find_backend(url: str) -> Backend | None:
    """Returns the kind of store that a URL names; None if it names no store."""
    return next((backend for backend in BACKENDS if backend.matches(url)), None)


def is_store(url: str) -> bool:
    """Whether the URL names an object store."""
    return find_backend(url) is not None


def backend_of(url: str) -> Backend:
    """Returns the kind of store that a URL names. Raises CheckpointError listing the schemes if there is none."""
    backend = find_backend(url)
    if backend is None:
        known = ", ".join(scheme for each in BACKENDS for scheme in each.schemes)
        raise CheckpointError(f"{redact(url)}: no object store has this scheme; known are {known}")
    return backend


def store_examples() -> str:
    """An example URL of each kind of store, except the memory of this process; for help and errors."""
    return ", ".join(backend.example for backend in BACKENDS if not isinstance(backend, Memory))


def store_schemes() -> str:
    """The schemes of the stores that need a driver, for help and errors, such as "s3://, gs://, azure://"."""
    return ", ".join(f"{backend.schemes[0]}://" for backend in BACKENDS if backend.requirement)


def redact(url: str) -> str:
    """A URL without secrets, for logs, errors and the names of cached sources: no query, fragment, user or password.

    A query may hold a signature. In the URL of an object store only a user with a password is a secret: `user@` alone
    belongs to the path, as in `abfs://container@account...`. A text that is not a URL is returned unchanged.
    """
    if "://" not in url:
        return url
    bare = url.split("?")[0].split("#")[0]
    secret = r"[^/@]*:[^/@]*@" if is_store(url) else r"[^/@]*@"
    return re.sub(rf"(?<=://){secret}", "", bare)


def redact_input(location: str) -> str:
    """As `redact`, for the input of a job: `?` and `#` belong to its names and globs, unless `has_query`."""
    if has_query(location):
        return redact(location)
    bare = re.split("[?#]", location)[0]
    return redact(bare) + location[len(bare) :]


def has_query(location: str) -> bool:
    """Whether the input of a job is a URL with a query: any `?` in HTTP, else a `?` with a `=` before the next `/`.

    In a path of this machine and in a data set of the hub (hf://), it is the `?` of a glob or a name.
    """
    return re.match(r"(?is)https?://.*\?|(?!hf:)[a-z0-9+.-]+://.*\?[^/]*=", location) is not None


class S3(Backend):
    """Amazon S3, and stores with its API."""

    name = "S3"
    schemes = ("s3", "s3a")
    protocol = "s3"
    example = "s3://bucket/folder"
    requirement = "s3fs>=2024.6"
    extra = "s3"
    credentials_form = '{"aws_access_key_id": …, "aws_secret_access_key": …, "aws_region": …}'

    def credentials(self, secret: Mapping[str, Any]) -> Options:
        """Returns the driver's options. Names in the secret may begin with `aws_` or not."""
        values = {name.removeprefix("aws_"): value for name, value in secret.items()}
        _require(values, "access_key_id", "secret_access_key")
        options = {"key": values["access_key_id"], "secret": values["secret_access_key"]}
        if values.get("session_token"):
            options["token"] = values["session_token"]
        region = values.get("region") or values.get("default_region")
        return {**options, "client_kwargs": {"region_name": region}} if region else options

    def md5_of(self, info: Mapping[str, Any]) -> str | None:
        """Returns the ETag; None if the file was uploaded in parts, because the ETag then ends with their number."""
        etag = str(info.get("ETag", "")).strip('"')
        return etag if re.fullmatch(r"[0-9a-f]{32}", etag) else None

    def is_md5(self, files: FileSystem, path: str) -> bool:
        """Whether the ETag is an MD5. It is not if the file is encrypted with a key of KMS or of the user."""
        bucket, _, key = path.partition("/")
        head = files.call_s3("head_object", Bucket=bucket, Key=key)
        return head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head


class GoogleCloudStorage(Backend):
    """Google Cloud Storage."""

    name = "Google Cloud Storage"
    schemes = ("gs", "gcs")
    protocol = "gs"
    example = "gs://bucket/folder"
    requirement = "gcsfs>=2024.6"
    extra = "gcs"
    credentials_form = 'a service account\'s JSON, {"private_key_id": …, "private_key": …, "client_email": …}'

    def credentials(self, secret: Mapping[str, Any]) -> Options:
        """Returns the driver's options. The secret is a service account's key file or three of its fields."""
        _require(secret, "private_key", "client_email")
        return {"token": {"type": "service_account", "token_uri": "https://oauth2.googleapis.com/token", **secret}}

    def md5_of(self, info: Mapping[str, Any]) -> str | None:
        """Returns the field md5Hash, which is in base64."""
        return base64.b64decode(info["md5Hash"]).hex() if info.get("md5Hash") else None


class AzureBlobStorage(Backend):
    """Azure Blob Storage. Four forms of URLs are common; those that name no account take it from the secret.

    azure://account/container/folder, https://account.blob.core.windows.net/container/folder,
    abfs://container@account.dfs.core.windows.net/folder, abfs://container/folder
    """

    name = "Azure Blob Storage"
    schemes = ("azure", "az", "abfs", "abfss")
    protocol = "abfs"
    example = "azure://account/container/folder"
    requirement = "adlfs>=2024.7"
    extra = "azure"
    credentials_form = '{"account_key": …}, {"sas_token": …} or {"connection_string": …}'

    _HOST = re.compile(r"(?P<account>[a-z0-9]+)\.(blob|dfs)\.core\.windows\.net")
    _KEYS = frozenset({"account_key", "sas_token", "connection_string", "client_secret"})

    def matches(self, url: str) -> bool:
        """Whether the URL names a folder in Azure, also with https. The https URL of a tar is that of an archive."""
        is_file = "?" in url or re.search(r"\.(tar(\.\w+)?|tgz)$", url) is not None
        is_https = re.match(rf"https://{self._HOST.pattern}(/|$)", url) is not None and not is_file
        return is_https or super().matches(url)

    def parse(self, url: str) -> tuple[Options, str]:
        """Raises CheckpointError if the URL names no container."""
        parts = urlsplit(url)
        host, options = self._HOST.fullmatch(parts.hostname or ""), {}
        if host is not None:
            options, path = {"account_name": host["account"]}, f"{parts.username or ''}{parts.path}"
        elif parts.scheme == "azure":
            options, path = {"account_name": parts.netloc}, parts.path
        else:
            path = f"{parts.netloc}{parts.path}"
        if not path.strip("/"):
            raise CheckpointError(f"{redact(url)} names no container; write {self.example}")
        return options, path.strip("/")

    def credentials(self, secret: Mapping[str, Any]) -> Options:
        """Returns the driver's options. The names in the secret are the driver's own."""
        names = (*self._KEYS, "account_name", "client_id", "tenant_id")
        options = {name: secret[name] for name in names if secret.get(name)}
        if not options.keys() & self._KEYS:
            raise KeyError("account_key")
        return options

    def md5_of(self, info: Mapping[str, Any]) -> str | None:
        """Returns the MD5 in the settings of the content."""
        settings = info.get("content_settings") or {}
        md5 = settings.get("content_md5") if isinstance(settings, Mapping) else getattr(settings, "content_md5", None)
        return bytes(md5).hex() if md5 else None


class LocalFolder(Backend):
    """A folder of this machine or of a network volume."""

    name = "a folder"
    schemes = ("file",)
    protocol = "file"
    example = "file:///folder"

    def parse(self, url: str) -> tuple[Options, str]:
        """Returns the path, and the option to create folders when a file is written, as in a bucket."""
        return {"auto_mkdir": True}, urlsplit(url).path.rstrip("/") or "/"


class Memory(Backend):
    """The memory of this process, for tests."""

    name = "memory"
    schemes = ("memory",)
    protocol = "memory"
    example = "memory://folder"


def _require(secret: Mapping[str, Any], *names: str) -> None:
    """Raise KeyError for the first name without a value."""
    for name in names:
        if not secret.get(name):
            raise KeyError(name)
