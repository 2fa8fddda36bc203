"""Bodies of all routes may be decoded on several threads from the first request on."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import contextlib, sys, threading
import msgspec
from bei_core.http.route import prepare_schemas
from bei_core.http.routes import ROUTES

prepare_schemas(ROUTES)
sys.setswitchinterval(1e-6)
schemas = list({route.schema for route in ROUTES if route.schema is not None})
start = threading.Barrier(4)

def work():
    start.wait()
    for schema in schemas:
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert({"input": "a", "inputs": "a", "texts": ["a"], "query": "a"}, schema)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(schemas))
"""


def test_threads_that_are_the_first_to_use_a_body_do_not_crash_the_process() -> None:
    """Without `prepare_schemas`, msgspec 0.22 ends the process by a null pointer, in most runs."""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 20
