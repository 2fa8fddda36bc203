"""Every lock file is asked about, and a vulnerability of what BEI installs or tests with fails the check."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = {
    "serve.lock": "numpy==2.4.6 \\\n    --hash=sha256:00\n",
    "peers-x.lock": 'numpy==2.4.6\ntorch[extra]==1.0 ; sys_platform == "linux" \\\n    --hash=sha256:00\n',
}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("vulnerable", "status"), [("numpy", 1), ("torch", 0), ("", 0)])
def test_vulnerabilities_of_our_own_environments_fail_and_those_of_other_programs_are_reported(
    audit: ModuleType,
    vulnerable: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: Any, timeout: float) -> io.BytesIO:  # noqa: ANN401 - urllib's Request
        queries = [(query["package"]["name"], query["version"]) for query in json.loads(request.data)["queries"]]
        asked.extend(queries)
        results = [{"vulns": [{"id": "PYSEC-1"}]} if name == vulnerable else {} for name, _ in queries]
        return io.BytesIO(json.dumps({"results": results}).encode())

    for name, text in LOCKS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(audit, "_MOST_QUERIES", 1)
    monkeypatch.setattr(audit.urllib.request, "urlopen", answer)
    monkeypatch.setattr(sys, "argv", ["audit.py", *(str(tmp_path / name) for name in LOCKS)])
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert asked == [("numpy", "2.4.6"), ("torch", "1.0")]
    assert int(ended.value.code) == status  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert printed.count("PYSEC-1") == bool(vulnerable)
    assert not vulnerable or f"{vulnerable} " in printed


def test_the_check_asks_about_every_lock_file() -> None:
    assert "scripts/audit.py requirements/*.lock" in (REPOSITORY / "Makefile").read_text()
