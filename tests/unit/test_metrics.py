"""What is counted for each input, under text-embeddings-inference's names."""

from __future__ import annotations

import asyncio
import re
from unittest.mock import Mock

import pytest

from bei_core.metrics import Metrics, Timings

# All metrics of text-embeddings-inference (`core/src` and `router/src` at 0d124dc), with their types there.
OPERATIONS = ("embed", "predict")
STAGES = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
TEI = {
    **{f"te_request_{what}": "counter" for what in ("count", "success", "failure")},
    **{f"te_{operation}_{what}": "counter" for operation in OPERATIONS for what in ("count", "success")},
    **{f"te_{what}_{stage}": "histogram" for what in ("request", *OPERATIONS) for stage in STAGES},
    **dict.fromkeys(("te_request_input_length", "te_batch_next_size", "te_batch_next_tokens"), "histogram"),
    "te_queue_size": "gauge",
}


def test_all_metrics_of_tei_are_here_with_its_types() -> None:
    found = dict(re.findall(r"^# TYPE (te_\w+) (\w+)$", Metrics().render().decode(), re.MULTILINE))
    assert found == TEI


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_input_of_a_request_counts_with_its_times(operation: str) -> None:
    metrics = Metrics()
    metrics.received(5, operation)
    metrics.succeeded(
        Timings(operation=operation, num_inputs=3, tokenization_s=0.001, queue_s=0.3, inference_s=40.0, result_s=40.5)
    )
    samples = dict(line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if line[0] != "#")
    found = {name: float(value) for name, value in samples.items() if name.startswith(f"te_{operation}_")}
    assert (found[f"te_{operation}_count"], found[f"te_{operation}_success"]) == (5, 3)
    for stage, total, below, above in (
        ("tokenization_duration", 0.003, None, "0.001"),  # a bound belongs to its bucket
        ("queue_duration", 0.9, "0.25", "0.5"),
        ("inference_duration", 120.0, "30.0", "+Inf"),
        ("duration", 121.5, "30.0", "+Inf"),
    ):
        name = f"te_{operation}_{stage}"
        assert found[f"{name}_sum"] == pytest.approx(total)
        assert found[f"{name}_count"] == found[f'{name}_bucket{{le="+Inf"}}'] == 3
        assert found[f'{name}_bucket{{le="{above}"}}'] == 3
        assert below is None or found[f'{name}_bucket{{le="{below}"}}'] == 0


async def test_scrapes_of_the_same_turn_share_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, render = Metrics(), Mock(side_effect=[b"first", b"second", ZeroDivisionError])
    monkeypatch.setattr(metrics, "render", render)
    scrapes = [asyncio.create_task(metrics.scrape()) for _ in range(20)]
    await asyncio.sleep(0)
    scrapes[0].cancel()
    assert await asyncio.gather(*scrapes[1:]) == [b"first"] * 19
    assert await metrics.scrape() == b"second", "what has changed since"
    with pytest.raises(ZeroDivisionError):
        await metrics.scrape()
    assert render.call_count == 3
