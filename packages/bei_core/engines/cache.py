"""Built engines in the cache, on a disk or a network volume.

<root>/<artifact>/         an engine
<root>/.requests/<key>     a ref from settings to their engine, so that a restart does not ask the hub again
<root>/.used/<artifact>    the lease of the processes that have the engine open; its time is the engine's last use
<root>/.locks/             locked by the process that builds, so that only one process builds an engine
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from bei_core.checkpoint.cache import source_caches
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Address, is_engine, read_manifest, verify
from bei_core.errors import CheckpointError, DiskError, EngineCorruptError
from bei_core.storage.backends import redact
from bei_core.storage.cache import BAD, TMP, Cache, Entry, Rank, Record, RecordType, evict, publish, staging_folder
from bei_core.storage.errors import decode_record, translate_os_errors
from bei_core.storage.locks import Lease

log = logging.getLogger(__name__)

Fill = Callable[[Path], object]  # writes the files of an engine into a folder, the manifest last

_ADDRESS = re.compile(r"[0-9a-f]{32}")
_LEFTOVER = re.compile(r"\.(?:tmp|bad)-([0-9a-f]{32})-.*")


class EngineRef(msgspec.Struct, frozen=True):
    """A ref to an engine, from the settings that decide which engine it is."""

    artifact: Address
    revision: str  # the branch's commit at the time when the ref was written

    def encode(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self)


class EngineRecords(RecordType):
    """Engines, each with a lease and a lock of its own."""

    lease, lock, ref = ".used/{}", ".locks/{}", ".requests/{}"
    lock_timeout_s = 1800.0
    locks_network_volumes = False

    def name_of(self, folder: str) -> str | None:
        """The address in the name of an engine, of a staging folder or of a quarantined engine; else None."""
        left = _LEFTOVER.fullmatch(folder)
        return left[1] if left else folder if _ADDRESS.fullmatch(folder) else None

    def describe(self, folder: Path) -> Record:
        """The kind is `foreign` for an engine of another version of BEI, or one that this user may not read."""
        foreign = Record(Rank.ARTIFACT, "foreign", "another BEI version's, or another user's")
        if _LEFTOVER.fullmatch(folder.name):
            return Record(Rank.UNWANTED, "leftover", "unfinished or quarantined")
        try:
            manifest = read_manifest(folder)
        except DiskError:
            return foreign
        except CheckpointError as error:
            if is_engine(folder) and not isinstance(error, EngineCorruptError):
                return foreign
            return Record(Rank.UNWANTED, "damaged", "damaged")
        source = f"{manifest.source}@{manifest.revision[:12]}"
        return Record(Rank.ARTIFACT, "engine", f"{manifest.engine} {manifest.precision}", source)

    def fault(self, folder: Path) -> str | None:
        """Reports a missing manifest only: the files are checked when the engine is loaded."""
        return None if is_engine(folder) else "engine corrupt: it has no manifest"

    def expires_by_age(self, folder: str, *, local: bool) -> bool:
        """True for quarantined engines, and for staging folders on network volumes, where a build may be running."""
        return folder.startswith(BAD) or (folder.startswith(TMP) and not local)


class EngineCache(Cache):
    """The engines under one folder. `max_bytes` limits them together with the fetched checkpoints."""

    def __init__(
        self,
        root: Path,
        *,
        checkpoints: Path | None = None,
        max_bytes: int | None = None,
        local: bool | None = None,
    ) -> None:
        super().__init__(root, EngineRecords(), local=local)
        self.checkpoints = checkpoints
        self.max_bytes = max_bytes

    @classmethod
    def of(cls, settings: Settings) -> EngineCache:
        """The cache in the folder that the settings name."""
        limit = settings.cache_size_gb
        return cls(
            settings.cache_dir / "engines",
            checkpoints=settings.cache_dir / "checkpoints",
            max_bytes=None if limit is None else int(limit * 1e9),
        )

    def obtain(self, artifact: str, fill: Fill) -> Lease:
        """A lease on the engine of an address, which `fill` creates if it is not in the cache.

        If several processes call this at once, one creates the engine and the others wait. Raises what `fill` raises,
        and DiskError.
        """
        lease = self.lease(artifact)
        try:
            if not is_engine(lease.folder):
                with self.lock(artifact) as locked:
                    if not is_engine(lease.folder):
                        self._create(artifact, fill, is_only_builder=locked)
        except BaseException:
            lease.release()
            raise
        return lease

    def find_by_ref(self, key: str, model_id: str) -> Lease | None:
        """A lease on the engine that a ref points to; None if there is no ref or the engine was evicted.

        `model_id` is for the log: an engine serves all folders of the same content.
        """
        try:
            ref = decode_record(self.get_ref(key) or b"", EngineRef)
        except msgspec.DecodeError:
            return None
        lease = self.lease(ref.artifact)
        if self.find(ref.artifact) is None:
            lease.release()
            return None
        log.info("found the engine of %s at %s in the cache: %s", redact(model_id), ref.revision, lease.folder)
        return lease

    def quarantine_damaged(self, artifact: str) -> None:
        """Quarantine an engine. If its files match their digests, another process has rebuilt it, and it stays."""
        with self.lock(artifact):
            try:
                verify(self.folder(artifact))
            except (CheckpointError, DiskError):
                self.quarantine(artifact)
            else:
                log.info("another process has already built %s again", self.folder(artifact))

    def checkpoint_entries(self) -> list[Entry]:
        """The fetched and partly fetched checkpoints, the least recently used first. Raises DiskError."""
        entries = [entry for cache in self._sources() for entry in cache.entries()]
        return sorted(entries, key=lambda entry: entry.used_at)

    def evict(self, max_bytes: int | None = None) -> list[Entry]:
        """Remove leftovers, then checkpoints, then engines, the least recently used first, until the rest fits.

        Without `max_bytes`, only leftovers are removed. Checkpoints are evicted before engines, because a start with a
        built engine does not need the checkpoint. Returns the removed entries. Raises DiskError.
        """
        with translate_os_errors(self.root):
            return evict([self, *self._sources()], max_bytes)

    def _sources(self) -> list[Cache]:
        if self.checkpoints is None:
            return []
        with translate_os_errors(self.checkpoints):
            return source_caches(self.checkpoints)

    def _create(self, artifact: str, fill: Fill, *, is_only_builder: bool) -> None:
        if is_only_builder:  # without a lock, another process may be building in these folders
            for staging in self.root.glob(f"{TMP}{artifact}-*"):
                shutil.rmtree(staging, ignore_errors=True)
        with translate_os_errors(self.root), staging_folder(self.folder(artifact)) as staging:
            fill(staging)
            self.publish(artifact, staging)
        try:
            self.evict(self.max_bytes)
        except DiskError as error:
            log.warning("eviction failed: %s", error)


def publish_engine(target: Path, fill: Fill) -> None:
    """Create an engine in a folder outside the cache, which is empty or does not exist; an engine there is kept.

    If `fill` raises, nothing remains.
    """
    with staging_folder(target) as staging:
        fill(staging)
        publish(staging, target, is_engine)
