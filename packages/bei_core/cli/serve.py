"""`bei serve`."""

from __future__ import annotations

import logging
from contextlib import closing
from importlib import import_module
from threading import Thread

import click

from bei_core.cli.flags import Command, load_settings, settings_flags

log = logging.getLogger(__name__)


@click.command(cls=Command, params=settings_flags())
def command(**flags: object) -> None:
    """Serve one or several models over HTTP. If a model has no engine yet, it is built first.

    Every setting is also an environment variable (BEI_PORT) and a key of config.yaml (docs/settings.md).
    """
    from bei_core.http.server.sockets import bind
    from bei_core.http.traces import open_traces
    from bei_core.serving.service import Service

    settings = load_settings(flags)
    if given := settings.without_effect():
        log.info("settings without effect: %s", "; ".join(given))
    # Before an engine is built, so that a port in use or a missing package is reported at once.
    with closing(bind(settings)) as sockets:
        traces = open_traces(settings)
        # Imported while the models are loaded, most of which runs without the GIL.
        Thread(target=import_module, args=["bei_core.http.server.run"], daemon=True).start()
        services = Service.open_all(settings)
        from bei_core.http.server.run import serve

        serve(services, sockets, traces)
