"""Attacks whose result is yes or no: the tests that make them, run as rows of the table."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from benchmarks.chaos.table import Row

# The tests of each row, by what is attacked.
PROOFS = {
    "bodies that never end, within a budget of bytes": (
        "429 beyond max_body_bytes_in_flight",
        [
            "tests/chaos/test_connections.py::test_bodies_that_never_end_are_held_up_to_a_limit",
            "tests/unit/http/test_limits.py",
        ],
    ),
    "endless URL, header, trailer, chunk size": (
        "closed at 64 KB of head within 10 s",
        ["tests/chaos/test_connections.py::test_what_never_ends_is_cut_off"],
    ),
    "100,000 pipelined requests unread": (
        "memory stays flat",
        ["tests/chaos/test_connections.py::test_pipelined_requests_wait_in_the_sockets"],
    ),
    "idle and half-sent connections": (
        "closed in time; the longest idle make way",
        [
            "tests/chaos/test_connections.py::test_idle_and_half_sent_connections_end",
            "tests/chaos/test_connections.py::test_the_longest_idle_make_way_for_new_ones",
        ],
    ),
    "file descriptors exhausted": (
        "health and requests are answered; a warning names the remedy",
        ["tests/chaos/test_limits_of_the_process.py"],
    ),
    "SIGTERM and SIGINT with clients that read nothing": (
        "ends within drain_timeout_s with status 0",
        ["tests/chaos/test_signals.py", "tests/chaos/test_limits_of_the_process.py"],
    ),
    "no key, or a wrong one": (
        "401 before a byte of the body",
        ["tests/chaos/test_no_key.py", "tests/unit/http/test_keys.py"],
    ),
    "an empty key; a request id of many characters": (
        "refused at the start; cut at 128 characters",
        [
            "tests/unit/cli/test_flags.py::test_an_empty_key_does_not_open_the_server",
            "tests/unit/cli/test_flags.py::test_an_empty_secret_does_not_open_the_server",
            "tests/unit/http/test_app.py::test_the_access_log_has_a_line_for_each_request",
        ],
    ),
    "SystemExit, KeyboardInterrupt and hangs in the engine": (
        "every item ends once; status 1; the sound model goes on",
        [
            "tests/chaos/test_engine_faults.py",
            "tests/unit/serving/test_runner_failures.py",
            "tests/unit/serving/test_turns.py",
        ],
    ),
    "tampered and damaged engines, malformed checkpoints": (
        "one line that names the file and the field, and an exit code of its own",
        [
            "tests/unit/cli/test_main.py",
            "tests/unit/engines/test_open.py",
            "tests/unit/engines/test_manifest.py",
            "tests/unit/models/test_spec.py",
            "tests/unit/checkpoint/test_checkpoint.py",
            "tests/chaos/test_fuzzed_files.py",
        ],
    ),
    "crashes and hangs of an engine in a process of its own": (
        "the batch gets 503 once; a new process takes over; the sound model goes on; no process is left",
        ["tests/unit/engines/test_process.py", "tests/chaos/test_engine_faults.py"],
    ),
    "large requests, priorities and deadlines in the queue": (
        "large requests share the engine; a small one waits for one turn of each; 504 at the deadline; Retry-After is "
        "the time that the queue takes",
        [
            "tests/unit/serving/test_large_requests.py",
            "tests/unit/serving/test_admission.py",
            "tests/property/test_turns_of_large_requests.py",
            "tests/unit/http/test_overload.py::test_a_deadline_counts_from_the_arrival_and_its_504_does_not_wait",
            "tests/unit/http/test_overload.py::test_a_504_does_not_wait_until_other_requests_are_tokenized",
        ],
    ),
    "faults of a seed in the object store": (
        "every start gets its right engine",
        ["tests/chaos/test_store_faults.py", "tests/chaos/test_shared_engines.py"],
    ),
    "sizes that a checkpoint only claims: 10^9 layers or labels, giant shapes, names that are there twice": (
        "refused by name before anything is allocated",
        [
            "tests/unit/engines/test_openvino_refusals.py",
            "tests/unit/checkpoint/test_checkpoint.py::test_a_shape_that_no_array_can_have_is_refused_at_once",
            "tests/unit/checkpoint/test_checkpoint.py::test_thousands_of_names_that_are_there_twice_are_refused_at_once",
        ],
    ),
    "an address that breaks off again and again": (
        "asked a few times, then one line",
        ["tests/unit/checkpoint/test_urls.py"],
    ),
    "archives with huge headers, links and paths": ("refused", ["tests/unit/checkpoint/test_archives.py"]),
    "token ids beyond the embedding table": ("422 naming the id", ["tests/unit/text/test_unknown_ids.py"]),
    "panics of the tokenizer": ("the error of the route; the worker lives", ["tests/unit/http/test_overload.py"]),
    "a query of 30 MB with 1,024 documents": ("4xx before a prompt is made", ["tests/unit/http/test_work_limits.py"]),
    "requests of every end": (
        "no task, request or input is left",
        ["tests/chaos/test_nothing_is_left.py"],
    ),
    "start-up watched": (
        "nothing leaves the machine or is written outside the cache",
        ["tests/chaos/test_nothing_leaves.py"],
    ),
    "offers of another protocol, garbage after a request": (
        "the body is kept; the good request is answered",
        [
            "tests/chaos/test_connections.py::test_an_offer_of_another_protocol_is_ignored",
            "tests/chaos/test_connections.py::test_a_request_before_garbage_is_answered_first",
        ],
    ),
}


def prove(name: str) -> Row:
    """Runs the tests of a row."""
    must, tests = PROOFS[name]
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-m", "", "-p", "no:cacheprovider", *tests]  # the long ones too
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+ (?:passed|failed)[^\n]*?) in ", done.stdout)
    counts = found[1] if found else done.stdout[-200:]
    return Row(
        name=name,
        must=must,
        measured=f"tests: {counts} in {time.monotonic() - began:.0f} s",
        holds=done.returncode == 0,
        is_broken=done.returncode != 0,
    )


ORDER = tuple(PROOFS)
