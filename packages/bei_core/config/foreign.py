"""Environment variables that look like settings but are not."""

from __future__ import annotations

import re

# A variable of this project's tests.
_NOT_SETTINGS = frozenset({"BEI_TRUSS_PYTHON"})

# If the name of a Kubernetes Service begins with `bei`, every container of its namespace gets these variables:
# BEI_SERVICE_HOST, BEI_SERVICE_PORT_HTTP, BEI_PORT_80_TCP_ADDR and more, and BEI_PORT=tcp://10.0.0.1:80.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_URL = re.compile(r"^(tcp|udp|sctp)://")


def is_foreign(name: str, value: str) -> bool:
    """Whether a variable comes from Kubernetes or from this project's tests, and so is not a setting."""
    if name.endswith("_PORT") and _SERVICE_URL.match(value) is not None:  # also PROMETHEUS_PORT of a Service prometheus
        return True
    return name.startswith("BEI_") and (name in _NOT_SETTINGS or _SERVICE_LINK.search(name) is not None)
