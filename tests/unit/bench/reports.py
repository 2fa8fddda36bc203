"""Reports of benchmarks that were not run."""

from __future__ import annotations

from typing import Any

import msgspec

from bei_core.bench.report import Latency, Report, Workload

WORKLOAD = Workload(
    name="mixed",
    loop="",
    route="/v1/embeddings",
    encoding_format="base64",
    num_requests=10,
    batch=1,
    seed=0,
    mean_words=3.0,
)

REPORT = Report(
    label="",
    workload=WORKLOAD,
    num_ok=10,
    errors={},
    wall_s=1.0,
    requests_per_s=10.0,
    texts_per_s=10.0,
    tokens_per_s=None,
    latency_ms=Latency.of([1.0, 2.0, 3.0]),
    lag_ms=None,
    server_cpu_ms=None,
    server_rss_mb=None,
    client_cpu_us=1.0,
    gemm_peak_gflops=None,
    gemm_share=None,
    padding_share=None,
    engine_busy_share=None,
    counters={},
    machine={},
    server={},
)


def make_workload(**changed: Any) -> Workload:  # noqa: ANN401
    return msgspec.structs.replace(WORKLOAD, **changed)


def make_report(workload: Workload, **changed: Any) -> Report:  # noqa: ANN401
    return msgspec.structs.replace(REPORT, workload=workload, **changed)
