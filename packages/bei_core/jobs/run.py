"""Runs a bulk job, in this process or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from bei_core.config.one_model import one_model
from bei_core.config.settings import Settings
from bei_core.engines.open import open_engine
from bei_core.jobs.inputs import Input, Part, open_input
from bei_core.jobs.job import Job
from bei_core.jobs.options import JobOptions, RayOptions, check_settings
from bei_core.jobs.output import Folder, missing_parts, read_columns, write_manifest
from bei_core.jobs.report import Progress, Report
from bei_core.jobs.sinks import absolute_sink, check_target, commit, target_of
from bei_core.jobs.sinks.base import VECTOR
from bei_core.logs import configure_own_logging


def embed(
    source: str | Path,
    output: str | Path,
    *,
    settings: Settings | Mapping[str, object] | None = None,
    options: JobOptions | None = None,
    ray: RayOptions | None = None,
) -> Report:
    """Runs every row of a data set through a model and writes Parquet files; see `bei embed-dataset`.

    `source` is a file, a folder or a glob: a path, the URL of an object store, or `hf://datasets/…`. `output` is a
    folder or the URL of one; if it has the output of the same job, which was stopped, this job is resumed. `settings`
    choose the model; a mapping is read like the flags of `bei embed-dataset`. With `ray`, the workers of a Ray cluster
    compute the parts.

    Raises StartError if the job cannot start or continue.
    """
    settings, options, folder = _loaded(settings), options or JobOptions(), Folder(str(output))
    if options.sink is not None:
        options = replace(options, sink=absolute_sink(options.sink))
    folder.check_outside(str(source))
    target = None if options.sink is None else target_of(options.sink)
    if target is not None:
        check_target(target, several_processes=ray is not None)  # before an engine is built
    with folder.locked():
        data = open_input(str(source), options, settings.hf_token)
        missing = missing_parts(folder, data.parts)
        with Progress(data.parts, missing) as progress:
            if ray is None or not missing:  # without parts, it only checks that the folder is this job's
                computed = _compute_here(settings, options, data, folder, missing)
            else:
                from bei_core.jobs.ray_data import compute_on_ray

                computed = compute_on_ray(ray, settings, options, data, folder, missing)
            with closing(computed):  # when interrupted, nothing is written after the folder's lock is gone
                for report in computed:
                    progress.add(report)
        if target is not None and data.parts:
            commit(target, (read_columns(folder, part, [VECTOR]) for part in data.parts))
        write_manifest(folder, data.parts)
    return progress.report


def _loaded(settings: Settings | Mapping[str, object] | None) -> Settings:
    """Returns the settings of the model of a job. Raises ConfigError for settings of a server, or several models."""
    if not isinstance(settings, Settings):
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        check_settings(given)
        settings = Settings.load(given, os.environ)
        if given.keys() & {"log_level", "json_output"}:
            configure_own_logging(json_output=settings.json_output, level=settings.log_level)
    return _with_absolute_paths(one_model(settings))


def _with_absolute_paths(settings: Settings) -> Settings:
    """Returns settings that mean the same in the working folder of another process."""
    model_id, texts, hub = settings.model_id or "", Path(settings.calib_dataset), settings.huggingface_hub_cache
    folder = Path(model_id.removeprefix("file://")).expanduser()
    return replace(
        settings,
        model_id=str(folder.absolute()) if model_id and folder.is_dir() else settings.model_id,
        cache_dir=settings.cache_dir.absolute(),
        huggingface_hub_cache=None if hub is None else hub.absolute(),
        calib_dataset=str(texts.absolute()) if texts.is_file() else settings.calib_dataset,
    )


def _compute_here(
    settings: Settings, options: JobOptions, data: Input, folder: Folder, missing: Sequence[Part]
) -> Generator[Report, None, None]:
    opened = open_engine(settings, for_job=True)
    try:
        with closing(Job(opened, settings, options, data, folder)) as job:
            yield from job.run(missing)
    finally:
        opened.close()
