"""BEI on Ray Serve: `serve run bei_core.serve_ray:app model_id=BAAI/bge-small-en-v1.5 max_replicas=8`.

The routes are those of `bei serve`. Ray Serve scales the replicas by the number of waiting and running requests. The
header `serve_multiplexed_model_id` chooses another model for a request; Ray sends the request to a replica that has
loaded this model, if there is one.

Ray's proxy takes the connections, so settings of connections are refused. All others are honoured by each replica.
Source: docs.ray.io, "Serve: Autoscaling", "Model multiplexing" and "Set Up FastAPI and HTTP".
"""

from __future__ import annotations

from bei_core.serve_ray.deployment import app

__all__ = ["app"]
