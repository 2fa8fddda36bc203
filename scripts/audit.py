"""Ask osv.dev, the database that pip-audit can use, for known vulnerabilities of the packages of the lock files.

Exits with status 1 if there are any, but only reports those of other programs that tests and benchmarks run beside BEI:
which versions these need is not our choice. Where osv.dev cannot be reached, says that nothing was checked, and exits
with 0.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path

_URL = "https://api.osv.dev/v1/querybatch"
_TIMEOUT_S = 10.0
_MOST_QUERIES = 1000  # in one request, by osv.dev's documentation
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)

# How the names of the lock files of other programs begin.
_OTHERS = ("clients", "peers", "truss")


def vulnerabilities(packages: list[tuple[str, str]]) -> list[list[str]]:
    """The ids of the vulnerabilities of each package, given by name and version.

    Raises OSError if the database cannot be reached, ValueError or KeyError for a wrong reply.
    """
    found: list[list[str]] = []
    for start in range(0, len(packages), _MOST_QUERIES):
        part = packages[start : start + _MOST_QUERIES]
        queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in part]
        body = json.dumps({"queries": queries}).encode()
        request = urllib.request.Request(_URL, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            results = json.load(reply)["results"]
        found += [[each["id"] for each in result.get("vulns", ())] for _, result in zip(part, results, strict=True)]
    return found


def locked(files: Iterable[Path]) -> dict[tuple[str, str], list[str]]:
    """The names of the lock files that have each package, by its name and version."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in files:
        for package in _PINNED.findall(file.read_text()):
            found.setdefault(package, []).append(file.name)
    return dict(sorted(found.items()))


def main() -> None:
    """Check the lock files that are given as arguments."""
    packages, fails = locked(map(Path, sys.argv[1:])), False
    try:
        found = vulnerabilities(list(packages))
    except (OSError, ValueError, KeyError) as fault:
        print(f"vulnerabilities were not checked: {_URL} did not answer as expected ({fault})")
        return
    for ((name, version), files), ids in zip(packages.items(), found, strict=True):
        for each in ids:
            print(f"{name} {version} of {', '.join(files)}: https://osv.dev/vulnerability/{each}")
        fails = fails or (bool(ids) and not all(file.startswith(_OTHERS) for file in files))
    print(f"{sum(map(len, found))} known vulnerabilities in {len(packages)} packages")
    sys.exit(fails)


if __name__ == "__main__":
    main()
