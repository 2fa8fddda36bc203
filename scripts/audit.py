"""Ask osv.dev, the database that pip-audit can use, for known vulnerabilities of the packages of the lock files.

Exits with status 1 if there are any. Where osv.dev cannot be reached, says that nothing was checked, and exits with 0.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

_URL = "https://api.osv.dev/v1/querybatch"
_TIMEOUT_S = 10.0
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def vulnerabilities(packages: list[tuple[str, str]]) -> list[str]:
    """A line for each vulnerability. Raises OSError if the database cannot be reached, ValueError for a wrong reply."""
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(_URL, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
        results = json.load(reply)["results"]
    return [
        f"{name} {version}: https://osv.dev/vulnerability/{found['id']}"
        for (name, version), result in zip(packages, results, strict=True)
        for found in result.get("vulns", ())
    ]


def main() -> None:
    """Check the lock files that are given as arguments."""
    packages = sorted({found for name in sys.argv[1:] for found in _PINNED.findall(Path(name).read_text())})
    try:
        found = vulnerabilities(packages)
    except (OSError, ValueError, KeyError) as fault:
        print(f"vulnerabilities were not checked: {_URL} did not answer as expected ({fault})")
        return
    print("\n".join(found) or f"no known vulnerability in {len(packages)} packages")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
