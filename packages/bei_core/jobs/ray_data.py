"""Runs a bulk job on a Ray cluster: a Ray Data set of parts, and a pool of actors with one engine each.

Ray schedules, retries and restarts. A part that is computed twice is published with the same bytes. Actors read their
parts themselves, so every node must be able to reach input and output: on a shared volume or in an object store.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import ray
import ray.data

from bei_core.config.settings import Settings
from bei_core.engines.open import open_engine
from bei_core.errors import BeiError, ConfigError
from bei_core.jobs.inputs import Input, Part
from bei_core.jobs.job import Job, tune_process
from bei_core.jobs.options import JobOptions, RayOptions
from bei_core.jobs.output import Folder, missing_parts
from bei_core.jobs.report import Report
from bei_core.logs import configure_worker_logging

log = logging.getLogger(__name__)

_MAX_PARTS_PER_CALL = 8  # within a call, the next part is read while one is computed
_CALLS_PER_WORKER = 4  # so that the last calls end at about the same time


class PartWorker:
    """An actor: one engine that computes the parts whose numbers it is given."""

    def __init__(self, settings: Settings, options: JobOptions, data: Input, output: str) -> None:
        """`data` comes without its parts: Ray can restart an actor only if its arguments are small."""
        self._settings, self._options, self._data, self._folder = settings, options, data, Folder(output)
        tune_process()
        configure_worker_logging(json_output=settings.json_output, level=settings.log_level)

    @cached_property
    def _job(self) -> Job:
        """The open job. The first actor that needs the engine builds it, in the cache or the engine store."""
        return Job(open_engine(self._settings, for_job=True), self._settings, self._options, self._data, self._folder)

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Computes the parts in `batch["part"]` (JSON) that are not published.

        Returns a row with a pickled Report, or with the BeiError that stopped the worker. If it were raised, Ray would
        give the driver its text only.
        """
        parts = [msgspec.json.decode(part, type=Part) for part in batch["part"].tolist()]
        try:
            result: Report | BeiError = self._compute(parts)
        except BeiError as error:
            log.exception("the worker stops")
            result = error
        return {"result": np.array([pickle.dumps(result)], object)}

    def _compute(self, parts: Sequence[Part]) -> Report:
        self._folder.check_shared()
        total = Report()
        for report in self._job.run(missing_parts(self._folder, parts)):
            total.add(report)
        return total


def compute_on_ray(
    ray_options: RayOptions,
    settings: Settings,
    options: JobOptions,
    data: Input,
    folder: Folder,
    missing: Sequence[Part],
) -> Generator[Report, None, None]:
    """Computes parts on a cluster; yields reports in any order. Raises the BeiError that a worker raised.

    Raises ConfigError if there is no cluster.
    """
    was_running = ray.is_initialized()
    if not was_running:
        try:
            ray.init(address=ray_options.ray, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:  # Ray's own are of these classes
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:3]) or type(error).__name__
            raise ConfigError(f"cannot connect to Ray at {ray_options.ray}: {reason}") from error
    check_nodes(ray_options, may_grow=was_running or ray_options.ray != "local")
    num_workers = min(ray_options.ray_workers, len(missing))
    per_call = max(1, min(_MAX_PARTS_PER_CALL, len(missing) // (num_workers * _CALLS_PER_WORKER)))
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"part": msgspec.json.encode(part).decode()} for part in missing]
    computed = ray.data.from_items(items, override_num_blocks=-(-len(missing) // per_call)).map_batches(
        PartWorker,
        fn_constructor_args=(settings, options, replace(data, parts=()), folder.location),
        batch_size=per_call,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=ray_options.cpus_per_worker,
        num_gpus=ray_options.gpus_per_worker or None,
    )
    for row in computed.iter_rows():
        result = pickle.loads(row["result"])  # noqa: S301, one of our workers has written it
        if isinstance(result, BeiError):
            raise result
        yield result


def check_nodes(ray_options: RayOptions, *, may_grow: bool) -> None:
    """Raises ConfigError if no node can hold a worker, for which Ray would wait without a word.

    Only logs a warning if the cluster may grow: one that the job did not start may have an autoscaler.
    """
    needed = {"CPU": ray_options.cpus_per_worker, "GPU": ray_options.gpus_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= number for name, number in needed.items()) for node in nodes):
        return
    most = " and ".join(f"{max((node.get(name, 0) for node in nodes), default=0):g} {name}" for name in needed)
    reason = (
        f"no node has the {needed['CPU']} CPU and {needed['GPU']:g} GPU of a worker (at most {most}); lower "
        "`cpus_per_worker` or `gpus_per_worker`"
    )
    if not may_grow:
        raise ConfigError(reason)
    log.warning("%s, or add a node: the job waits for it", reason)
