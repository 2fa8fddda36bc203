"""The Helm chart, rendered with its defaults and with everything on, and the manifests beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import DEPLOY, ROOT, SCHEMAS, run

CHART = DEPLOY / "helm" / "bei"
EVERYTHING = ("-f", str(CHART / "ci" / "everything-values.yaml"))
OPTIONS = {"defaults": (), "everything": EVERYTHING}
VERSION = ("--kube-version", "1.37.0")
OPERATORS = "ServiceMonitor,PrometheusRule"  # their schemas are the Prometheus operator's


def rendered(*options: str) -> dict[str, dict[str, Any]]:
    """The resources of a release r, by kind."""
    text = run("helm", "template", "r", CHART, *VERSION, *options)
    return {found["kind"]: found for found in yaml.safe_load_all(text) if found}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_lint(options: tuple[str, ...]) -> None:
    run("helm", "lint", "--strict", CHART, *VERSION, *options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resources_have_kubernetes_schemas(options: tuple[str, ...]) -> None:
    location = f"{SCHEMAS}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    flags = ("-strict", "-summary", "-output", "json", "-skip", OPERATORS, "-schema-location", location)
    if not SCHEMAS.is_dir():
        pytest.skip(f"there is no {SCHEMAS}; scripts/deploy_tools.sh makes it")
    text = run("helm", "template", "r", CHART, *VERSION, *options)
    summary = json.loads(run("kubeconform", *flags, given=text))["summary"]
    assert summary["valid"] >= 5
    assert summary["invalid"] == summary["errors"] == 0


def test_pods_are_as_narrow_as_they_can_be() -> None:
    pod = rendered()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["terminationGracePeriodSeconds"] >= 45
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_optional_resources_are_absent_by_default() -> None:
    assert rendered().keys() == {
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }


def test_every_optional_resource_can_be_enabled() -> None:
    found = rendered(*EVERYTHING)
    assert "replicas" not in found["Deployment"]["spec"]
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "te_queue_size"
    assert found["Secret"]["stringData"] == {"api_key": "key", "hf_token": "token"}
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    assert found["PrometheusRule"]["spec"] == rules
    dashboard = json.loads((DEPLOY / "grafana" / "bei.json").read_text())
    assert json.loads(found["ConfigMap"]["data"]["bei.json"]) == dashboard
    limits = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "8Gi", "nvidia.com/gpu": 1}


def test_replicas_do_not_share_a_volume_that_only_one_can_mount() -> None:
    with pytest.raises(AssertionError, match=r"set cache.accessModes to \[ReadWriteMany\]"):
        rendered("--set", "replicas=2", "--set", "cache.enabled=true")


def test_a_wrong_value_is_refused_by_name() -> None:
    with pytest.raises(AssertionError, match="gpus"):
        rendered("--set", "gpus=2")


def test_a_misspelled_value_is_refused_by_name() -> None:
    """An ignored `secret.apiKey` would be a server that anyone may call."""
    with pytest.raises(AssertionError, match="additional properties 'secret'"):
        rendered("--set", "secret.apiKey=key")
    with pytest.raises(AssertionError, match="additional properties 'enable'"):
        rendered("--set", "metrics.serviceMonitor.enable=true")


def test_the_value_that_switches_it_on_in_another_chart_is_no_mistake() -> None:
    rendered("--set", "enabled=true")


def keys_of(*options: str) -> dict[str, dict[str, Any]]:
    """The keys of Secrets that the container gets, by the name of the variable."""
    (container,) = rendered(*options)["Deployment"]["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container.get("env", ())}


def test_a_pod_does_not_start_without_the_key_of_a_secret_that_it_is_told_to_use() -> None:
    """A reference that is not optional keeps a pod from starting if its Secret, or the key in it, is missing."""
    token = {"key": "hf_token", "optional": True}
    assert keys_of("--set", "secrets.existing=s") == {
        "BEI_API_KEY": {"name": "s", "key": "api_key"},
        "HF_TOKEN": {"name": "s", **token},
    }
    assert keys_of("--set", "secrets.apiKey=k") == {"BEI_API_KEY": {"name": "r-bei", "key": "api_key"}}
    assert keys_of("--set", "secrets.hfToken=t") == {"HF_TOKEN": {"name": "r-bei", **token}}
    assert keys_of() == {}


@pytest.mark.parametrize("name", ["apiKey", "hfToken"])
def test_a_value_beside_an_existing_secret_is_refused_since_it_would_have_no_effect(name: str) -> None:
    with pytest.raises(AssertionError, match=r"secrets.apiKey and secrets.hfToken have no effect"):
        rendered("--set", "secrets.existing=s", "--set", f"secrets.{name}=x")


def test_systemd(tmp_path: Path) -> None:
    unit = tmp_path / "bei.service"
    unit.write_text((DEPLOY / "bei.service").read_text().replace("/opt/bei/bin/bei", "/bin/true"))
    run("systemd-analyze", "verify", "--man=no", unit)


def test_systemd_without_credentials_does_not_start_without_a_key(tmp_path: Path) -> None:
    """Systemd before 247 ignores LoadCredential, and an unset variable is expanded to nothing."""
    (start,) = re.findall(r"^ExecStart=\S+ (.*)$", (DEPLOY / "bei.service").read_text(), re.MULTILINE)
    environ = {"BEI_MODEL_ID": "m", "BEI_CACHE_DIR": str(tmp_path)}
    for folder, status, said in (("", 78, "cannot read api_key_file /api_key"), (str(tmp_path), 65, "m: ")):
        (tmp_path / "api_key").write_text("key\n")
        words = [word.replace("${CREDENTIALS_DIRECTORY}", folder) for word in start.split()]
        done = subprocess.run(
            [sys.executable, "-m", "bei_core.cli", *words, "--port", "0"],
            env={**os.environ, **environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_systemd_restarts_only_what_a_restart_may_mend() -> None:
    """The statuses of docs/operations.md that are not worth a restart on the same machine."""
    table = (ROOT / "docs" / "operations.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", table, re.MULTILINE)
    unit = (DEPLOY / "bei.service").read_text()
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert prevented.split() == [status for status, worth in rows if worth in {"no", "no, or on another machine"}]


def test_kserve_is_an_inference_service_that_serves_what_is_mounted() -> None:
    manifest = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())
    assert manifest["kind"] == "InferenceService"
    (container,) = manifest["spec"]["predictor"]["containers"]
    assert container["args"][:3] == ["serve", "--model-id", "/mnt/models"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_kserve_starts_and_stops_the_server_as_the_chart_does() -> None:
    manifest = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())
    (container,) = manifest["spec"]["predictor"]["containers"]
    chart = (CHART / "templates" / "deployment.yaml").read_text()
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", chart)
    assert manifest["spec"]["predictor"]["terminationGracePeriodSeconds"] == int(grace)
    parts = dict(re.findall(r"^          (\w+(?:Probe|cycle)):\n((?:            .*\n)+)", chart, re.MULTILINE))
    assert parts.keys() == {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle"}
    for name, text in parts.items():
        expected = yaml.safe_load(re.sub(r"\{\{.*\}\}", "240", text.replace("port: http", "port: 8080")))
        assert container[name] == expected, name
