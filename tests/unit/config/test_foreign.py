"""Variables that Kubernetes sets for its Services, whose names look like settings."""

from __future__ import annotations

import pytest

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError


def load(environ: dict[str, str] | None = None) -> Settings:
    return Settings.load({}, environ or {}, None)


def test_a_kubernetes_service_named_bei_breaks_nothing() -> None:
    links = {
        "BEI_SERVICE_HOST": "10.0.0.1",
        "BEI_SERVICE_PORT": "80",
        "BEI_SERVICE_PORT_HTTP": "80",
        "BEI_PORT": "tcp://10.0.0.1:80",
        "BEI_PORT_80_TCP": "tcp://10.0.0.1:80",
        "BEI_PORT_80_TCP_PROTO": "tcp",
        "BEI_PORT_80_TCP_PORT": "80",
        "BEI_PORT_80_TCP_ADDR": "10.0.0.1",
        "BEI_CORE_PORT": "tcp://10.0.0.1:80",
    }
    assert load(environ=links) == load()
    assert load(environ={**links, "BEI_PORT": "81"}).port == 81


def test_a_kubernetes_service_named_prometheus_breaks_nothing() -> None:
    assert load(environ={"PROMETHEUS_PORT": "tcp://10.0.0.1:9090"}) == load()
    with pytest.raises(ConfigError, match=r"PROMETHEUS_PORT is 'http': Expected `int \| null`"):
        load(environ={"PROMETHEUS_PORT": "http"})
