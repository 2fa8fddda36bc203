"""Alert rules and dashboard against a real Prometheus that scrapes a real server."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bei_core.errors import RequestError
from bei_core.metrics import Metrics
from tests.deploy.tools import DEPLOY, find, run
from tests.docs.test_snippets import free_port
from tests.e2e.server import Server, cache_of, wait_until
from tests.fakes import SAFETY_S

RULES = DEPLOY / "prometheus" / "alerts.yml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "bei.json").read_text())
TARGETS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
RANGE = "5m"  # in place of what Grafana chooses; as long as the tests take

# What the panels of a public dashboard for text-embeddings-inference ask for (OPEA's GenAIEval,
# evals/benchmark/grafana/tei_grafana.json at b4fe6fc): each form of expression, over the metrics that it is used with.
_OF_TEI = '{namespace="", job="bei"}'
TEI_PANELS = (
    *(f"sum(increase({name}{_OF_TEI}[{RANGE}]))" for name in ("te_embed_count", "te_embed_success")),
    *(
        f"histogram_quantile({share}, sum by (le) (rate(te_{what}_{stage}_bucket{_OF_TEI}[{RANGE}])))"
        for share in (0.5, 0.9, 0.99)
        for what in ("embed", "request")
        for stage in ("duration", "tokenization_duration", "queue_duration", "inference_duration")
    ),
    *(f"sum by (le) (increase(te_{of}_duration_bucket{_OF_TEI}[{RANGE}]))" for of in ("request", "embed_inference")),
    *(f"avg(te_{of}_bucket{_OF_TEI})" for of in ("batch_next_size", "request_input_length")),
    f"count(te_request_count{_OF_TEI})",
    f"sum(te_queue_size{_OF_TEI})",
)

KINDS = {kind.kind.lower() for kind in RequestError.__subclasses__()}


def expression(text: str) -> str:
    """A dashboard's expression as Grafana sends it, for all servers."""
    text = text.replace("$__rate_interval", RANGE)
    return re.sub(r"\$(job|instance)\b", ".*", text)


class Prometheus:
    """Prometheus on this machine alone, with the project's rules, scraping one server each second."""

    def __init__(self, folder: Path, target: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "bei", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        flags = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": self.url.removeprefix("http://"),
        }
        with (folder / "log").open("wb") as log:
            command = [find("prometheus"), *(f"--{name}={value}" for name, value in flags.items())]
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def get(self, path: str, **query: str) -> Any:  # noqa: ANN401 -- JSON
        """The `data` of a reply of its API; None until it answers."""
        try:
            reply = httpx.get(f"{self.url}/api/v1/{path}", params=query, timeout=SAFETY_S)
        except httpx.TransportError:
            return None
        assert reply.status_code in {200, 503}, reply.text
        return reply.json()["data"] if reply.status_code == 200 else None

    def query(self, text: str) -> list[dict[str, Any]]:
        """The samples of an expression at this moment; none until it answers."""
        data = self.get("query", query=text)
        return [] if data is None else list(data["result"])

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(SAFETY_S)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen a server with requests of every way to end."""
    find("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with Server(folder / "server", cache_of(tmp_path_factory)) as server:
        prometheus = Prometheus(folder, f"127.0.0.1:{server.port}")
        try:
            wait_until(lambda: bool(prometheus.query("te_queue_size")))
            for _ in range(3):
                for inputs in ("a", ["a", "b", "a much longer text " * 9]):
                    assert server.post("/embed", {"inputs": inputs}).status_code == 200
                assert server.post("/embed", {"inputs": ""}).status_code == 400
                time.sleep(1)  # a scrape's interval
            wait_until(lambda: bool(prometheus.query(f"rate(te_request_duration_count[{RANGE}]) > 0")))
            wait_until(lambda: bool(prometheus.query(f'rate(te_request_failure{{err="empty"}}[{RANGE}]) > 0')))
            yield prometheus
        finally:
            prometheus.close()


def test_promtool_finds_no_fault() -> None:
    run("promtool", "check", "rules", RULES)
    run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    tested = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    assert all(f'alertname="{rule["alert"]}"' in tested for rule in ALERTS)
    run("promtool", "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")


@pytest.mark.parametrize(("title", "text"), TARGETS)
def test_every_expression_of_the_dashboard_has_a_value(prometheus: Prometheus, title: str, text: str) -> None:
    found = prometheus.query(expression(text))
    assert found
    assert all(sample["value"][1] not in {"NaN", "+Inf"} for sample in found)


@pytest.mark.parametrize("text", TEI_PANELS)
def test_panels_that_were_made_for_tei_have_values(prometheus: Prometheus, text: str) -> None:
    found = prometheus.query(text)
    assert found
    assert all(sample["value"][1] not in {"NaN", "+Inf"} for sample in found)
    assert "te_embed_" not in text or any(float(sample["value"][1]) > 0 for sample in found)


def test_the_variables_of_the_dashboard_have_values(prometheus: Prometheus) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            label = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", variable["definition"])
            assert label is not None
            assert prometheus.query(f'count by ({label[2]}) ({label[1]}{{{label[2]}!=""}})')


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_evaluated_and_silent(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """What is compared has a value, so that the alert is silent for its threshold, not for a missing metric."""
    assert prometheus.query(rule["expr"]) == []
    for side in re.split(r"[<>=]=?\s*[\d.]+\s*$", rule["expr"].strip())[0].split(" and on (job, instance) "):
        assert prometheus.query(re.sub(r" > 0$", "", side.strip())), side
    state = {found["name"]: found for group in prometheus.get("rules")["groups"] for found in group["rules"]}[
        rule["alert"]
    ]
    assert (state["health"], state["state"]) == ("ok", "inactive")


def test_prometheus_knows_counters_as_counters(prometheus: Prometheus) -> None:
    kinds = {name: found[0]["type"] for name, found in prometheus.get("metadata").items()}
    expected = dict(line.split()[2:4] for line in Metrics().render().decode().splitlines() if line.startswith("# TYPE"))
    assert {name: kinds[name] for name in expected} == expected
    assert expected["te_request_count"] == expected["bei_padding_tokens_total"] == "counter"
    assert expected["te_queue_size"] == "gauge"


def test_the_dashboard_and_alerts_name_only_kinds_of_errors_that_exist() -> None:
    texts = [rule["expr"] for rule in ALERTS] + [text for _, text in TARGETS]
    named = {kind for text in texts for kinds in re.findall(r'err=~?"([^"]+)"', text) for kind in kinds.split("|")}
    assert named
    assert named <= KINDS


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
