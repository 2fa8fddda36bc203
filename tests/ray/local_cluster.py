"""A Ray cluster of local nodes that starts on a busy machine too."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.fakes import SAFETY_S

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def free_ports(count: int) -> list[int]:
    """Ports on which no process listens."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def agent_ports() -> dict[str, int]:
    """Arguments of a node: the ports of its agents.

    Without them, the node waits for its agents to write their ports, and ends if one of them takes 15 s to start. Ray
    2.60 has no setting for this time (https://github.com/ray-project/ray/issues/65983).
    """
    return dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))


class LocalCluster(Cluster):  # type: ignore[misc,unused-ignore]
    """A cluster whose nodes do not wait for their agents."""

    def add_node(self, **arguments: Any) -> Any:  # noqa: ANN401
        """See `Cluster.add_node`."""
        return super().add_node(**{**agent_ports(), "include_dashboard": False, **arguments})


def lines_with(text: str) -> list[str]:
    """The lines of the logs of workers that have a text, of which there is one at least."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for _ in range(round(SAFETY_S / 0.1)):
        found = [line for path in logs.glob("worker-*.err") for line in path.read_text().splitlines() if text in line]
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no line has {text}")
