"""API keys: each client has its own, with its own limits, and a change of the file needs no restart."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import Mock

import pytest

from bei_core.config.keys import ApiKey, read_keys
from bei_core.config.settings import Settings
from bei_core.errors import ConfigError, OverloadedError, UnauthorizedError
from bei_core.http import keys as module
from bei_core.http.error_format import TEI
from bei_core.http.keys import Client, Keys
from bei_core.http.replies import error_response
from tests.fakes import SAFETY_S


def keys_of(**flags: object) -> Keys:
    return Keys(Settings.load({"model_id": "m", **flags}, {}))


def sent(key: str, scheme: str = "Bearer", coding: str = "utf-8") -> dict[bytes, bytes]:
    return {b"authorization": f"{scheme} {key}".encode(coding)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text("a: {key: alpha, max_concurrent_requests: 1}\nb: {key: beta, requests_per_minute: 60}\n")
    return path


@pytest.mark.parametrize("key", ["sesame", " padded ", "schlüssel", "ключ", "a b"])
def test_a_key_is_matched_however_it_is_spelled(key: str) -> None:
    keys = keys_of(api_key=key)
    assert keys.client(sent(key)).name == "api_key"
    assert keys.client(sent(f" {key.strip()} ", "api-key")).name == "api_key"
    for wrong in ({}, sent("other"), sent(key, "Basic"), sent(""), {b"authorization": key.encode()}):
        with pytest.raises(UnauthorizedError):
            keys.client(wrong)
    if key == "schlüssel":
        assert keys.client(sent(key, coding="latin-1"))


@pytest.mark.parametrize("key", ["ключ", "日本語"])
def test_a_question_mark_is_not_a_character_of_a_key(key: str) -> None:
    """It was, of keys that are not Latin-1: `????` was as good as `ключ`."""
    keys = keys_of(api_key=key)
    assert keys.client(sent(key))
    for wrong in ("?" * len(key), key[:-1] + "?"):
        with pytest.raises(UnauthorizedError):
            keys.client(sent(wrong))


def test_a_key_with_half_of_a_character_is_refused(file: Path) -> None:
    file.write_text('a: {key: "a\\ud800"}\n')
    with pytest.raises(ConfigError, match="half of a character") as raised:
        keys_of(api_keys_file=str(file))
    assert "ud800" not in str(raised.value)


def test_without_a_key_nothing_is_asked() -> None:
    assert not keys_of()
    assert keys_of(api_key="k")


def test_each_key_has_its_own_limits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keys = keys_of(api_keys_file=str(file))
    first, second = keys.client(sent("alpha")), keys.client(sent("beta"))
    assert (first.name, second.name) == ("a", "b")
    first.enter()
    with pytest.raises(OverloadedError, match="key a has 1 requests") as raised:
        first.enter()
    assert raised.value.cause == "key_limit"
    first.leave()
    first.enter()
    second.enter()
    with pytest.raises(OverloadedError, match="requests_per_minute is 60, 1 at once; try again in 1 s") as raised:
        second.enter()
    assert (raised.value.retry_after_s, raised.value.cause) == (1, "key_limit")
    now[0] += 1.0
    second.enter()


def test_a_key_is_told_its_exact_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    client = Client("a", ApiKey("alpha", requests_per_minute=1))
    client.enter()
    with pytest.raises(OverloadedError, match="try again in 60 s") as raised:
        client.enter()
    headers = error_response(raised.value, TEI).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("60", "60000")


def test_a_changed_file_is_read_without_a_request(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key added an hour before got a 401, because only a request looked at the file, and got the old keys."""
    monkeypatch.setattr(module, "_RELOAD_S", 0.01)
    keys, until = keys_of(api_keys_file=str(file)), time.monotonic() + SAFETY_S
    file.write_text("c: {key: gamma}\n")
    while set(keys._clients) != {"c"} and time.monotonic() < until:
        time.sleep(0.01)
    assert keys.client(sent("gamma")).name == "c"


def test_the_thread_ends_with_the_keys_and_survives_a_fault(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RELOAD_S", 0.01)
    looks = Mock(side_effect=[MemoryError, ValueError, *[None] * 10_000])
    monkeypatch.setattr(Keys, "look", looks)
    before = set(threading.enumerate())
    keys = keys_of(api_keys_file=str(file))
    (thread,) = [each for each in threading.enumerate() if each.name == "bei-keys" and each not in before]
    until = time.monotonic() + SAFETY_S
    while looks.call_count < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert looks.call_count >= 3
    del keys
    thread.join(SAFETY_S)
    assert not thread.is_alive()


def test_many_keys_take_no_longer_than_one(file: Path) -> None:
    """With 10,000 keys, each request took the event loop a millisecond, also one with a wrong key."""

    def num_lines(num_keys: int) -> int:
        file.write_text("".join(f"a{number}: {{key: k{number}}}\n" for number in range(num_keys)))
        keys, lines, before = keys_of(api_keys_file=str(file)), list[str](), sys.gettrace()

        def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - a function of this type
            lines.append(event)
            return trace

        sys.settrace(trace)
        try:
            found = keys.client(sent("k0"))
        finally:
            sys.settrace(before)
        assert found.name == "a0"
        return len(lines)

    assert num_lines(100) == num_lines(1) > 5


def test_the_file_is_read_again_when_it_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RELOAD_S", SAFETY_S)
    keys = keys_of(api_keys_file=str(file))
    keys.client(sent("alpha")).enter()
    file.write_text("a: {key: alpha, max_concurrent_requests: 1}\nc: {key: gamma}\n")
    keys.look()
    assert keys.client(sent("gamma")).name == "c"
    assert keys.client(sent("alpha")).num_requests == 1
    with pytest.raises(UnauthorizedError):
        keys.client(sent("beta"))
    file.write_text("c: {kee: delta}\n")
    keys.look()
    assert keys.client(sent("gamma")).name == "c"
    assert "stay as they were" in caplog.text
    file.write_text("c: {key: delta\nd: {key: delta2}\n")
    keys.look()
    assert keys.client(sent("gamma")).name == "c"
    assert "line 2, column 2" in caplog.text
    assert not any(key in caplog.text for key in ("alpha", "beta", "gamma", "delta"))
    os.unlink(file)
    keys.look()
    assert keys.client(sent("gamma")).name == "c"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key"),
        ("a: sesame", "api_keys_file"),
        ("a: {key: ''}", "key"),
        ("a: {key: ' '}", "spaces"),
        ("a: {key: x}\nb: {key: x}", "two names"),
        ("a: {key: x, requests_per_minute: 0}", "requests_per_minute"),
        ("a: [", "is not YAML"),
        ("a: " + 3000 * "[", "is nested too deeply"),
        ("a: " + 3000 * "{x: ", "is nested too deeply"),
        ("a: {key: '\u2003'}", "spaces"),
        (
            "a: {key: sesame, requests_per_minute: 600\nb: {key: x}",
            r"is not YAML at line 2, column 2 \(the value begins at line 1, column 4\)",
        ),
        ("a:\n\tkey: sesame", "is not YAML at line 2, column 1"),
        ("a: {key: *sesame}", "is not YAML at line 1, column 10"),
        ("a: {key: !sesame x}", "is not YAML at line 1, column 10"),
        ("a: {key: x}\nb: {key: \x01sesame}", "is not YAML at line 2, column 10"),
        ("a: {key: 2024-02-31}", "is not YAML: .* in quotes"),
        ("a: {key:sesame, requests_per_minute: 600}", "a has a field other than key, "),
        ("a: {key: x, sesame: 600}", "a has a field other than key, "),
        ("a: {[sesame]: x}", "is not YAML at line 1, column 5"),
        ("a b: {key: ' '}", "a… "),
    ],
)
def test_a_wrong_file_is_refused_before_anything_starts(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as raised:
        Settings.load({"model_id": "m", "api_keys_file": str(path)}, {})
    told = "".join(traceback.format_exception(None, raised.value, raised.value.__traceback__))  # the debug log has it
    assert "sesame" not in told
    with pytest.raises(ConfigError, match="cannot read"):
        read_keys(tmp_path / "none")


def test_keys_are_not_shown(file: Path) -> None:
    assert "alpha" not in repr(read_keys(file))
    with pytest.raises(ConfigError, match="exclude each other"):
        Settings.load({"model_id": "m", "api_keys_file": str(file), "api_key": "k"}, {})
