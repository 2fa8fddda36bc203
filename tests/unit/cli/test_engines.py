"""The `bei engines` commands: output, errors and exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bei_core.cli import main as cli
from bei_core.cli.engines import command as app
from bei_core.engines.cache import EngineCache
from bei_core.engines.manifest import MANIFEST, Manifest, is_engine, verify
from bei_core.engines.remote import RemoteEngine
from bei_core.errors import EngineCorruptError
from tests.fakes import write_engine
from tests.unit.storage.test_eviction import fetch

A, B = "a" * 32, "ab" * 16


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """A cache with the engines A and B, to which the environment points."""
    monkeypatch.setenv("BEI_CACHE_DIR", str(tmp_path / "cache"))
    made = EngineCache(tmp_path / "cache" / "engines", local=True)
    for number, artifact in enumerate((A, B)):
        made.obtain(artifact, lambda folder, artifact=artifact: _write(folder, artifact)).release()  # type: ignore[misc]
        os.utime(made.root / ".used" / artifact, (1e9 + number, 1e9 + number))
    return made


def _write(folder: Path, artifact: str) -> None:
    write_engine(folder, artifact)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def bei(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """The exit status of the command as a process would end."""
    monkeypatch.setattr(sys, "argv", ["bei", "engines", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def damage(engines: EngineCache, artifact: str, name: str = "model.bin") -> Path:
    path = engines.folder(artifact) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def of_another_version(engines: EngineCache, artifact: str) -> None:
    (engines.folder(artifact) / MANIFEST).write_text('{"schema": 1}')


# --- list


def test_list_shows_the_kind_of_each_entry_and_whether_it_is_in_use(engines: EngineCache) -> None:
    lease = engines.lease(B)
    (engines.root / f".tmp-{'c' * 32}-1").mkdir()
    (engines.folder(A) / MANIFEST).write_text("{}")
    listed = run("list")
    assert listed.exit_code == 0
    first, second, third = sorted(listed.stdout.splitlines())
    assert first.startswith(f".tmp-{'c' * 32}-1  unfinished or quarantined  0.0 MB  used ")
    assert second.startswith(f"{A}  damaged  0.0 MB  used 2001-09-")
    assert third == f"{B}  fake f32  0.0 MB  in use  owner/name@000000000000"
    lease.release()


def test_list_shows_engines_of_other_versions_and_checkpoints(engines: EngineCache, tmp_path: Path) -> None:
    of_another_version(engines, A)
    fetch(tmp_path / "cache" / "checkpoints", "1" * 64, 1.5e9)
    lines = run("list").stdout.splitlines()
    assert lines[0].startswith(f"{A}  another BEI version's, or another user's  0.0 MB  used 2001-09-")
    assert lines[2].startswith(f"{'1' * 64}  checkpoint  0.0 MB  used 2017-07-")
    assert lines[2].endswith("  https://host/m.tar@111111111111")


def test_list_of_another_cache_or_an_empty_one(engines: EngineCache, tmp_path: Path) -> None:
    assert run("list", "--cache-dir", tmp_path / "other").stdout == ""
    assert A in run("list", "--cache-dir", tmp_path / "cache").stdout


# --- verify


def test_verify_of_a_whole_store_ends_well(engines: EngineCache) -> None:
    checked = run("verify")
    assert checked.exit_code == 0
    assert [line.partition(":")[0] for line in checked.stdout.splitlines()] == [
        str(engines.folder(A)),
        str(engines.folder(B)),
    ]
    assert "whole, 3 files" in checked.stdout


@pytest.mark.parametrize("name", ["model.bin", "spec.json", "deep/er/tokenizer.json", MANIFEST])
def test_verify_names_the_file_that_differs_and_checks_the_others(engines: EngineCache, name: str) -> None:
    path = damage(engines, A, name)
    checked = run("verify")
    assert checked.exit_code == 1
    assert checked.stderr.startswith(f"engine corrupt: {path} ")
    assert checked.stdout.startswith(f"{engines.folder(B)}: whole")
    assert run("verify", B).exit_code == 0
    assert run("verify", B, A).exit_code == 1


def test_verify_of_a_folder(engines: EngineCache, tmp_path: Path) -> None:
    write_engine(tmp_path / "engine")
    assert run("verify", tmp_path / "engine").stdout.startswith(f"{tmp_path}/engine: whole")
    (tmp_path / "engine" / "spec.json").unlink()
    assert run("verify", tmp_path / "engine").exit_code == 1


def test_verify_warns_of_files_that_no_manifest_lists(engines: EngineCache) -> None:
    for name in ("notes.txt", "deep/er/more", ".tuned/card.json"):
        (engines.folder(A) / name).parent.mkdir(parents=True, exist_ok=True)
        (engines.folder(A) / name).write_text("x")
    checked = run("verify")
    assert checked.exit_code == 0
    assert [line.partition(" is not in ")[0] for line in checked.stderr.splitlines()] == [
        f"warning: {engines.folder(A) / name}" for name in ("deep/er/more", "notes.txt")
    ]


def test_verify_of_another_versions_engine_fails_only_where_it_was_named(engines: EngineCache) -> None:
    of_another_version(engines, A)
    for arguments, status in (((), 0), ((A,), 1)):
        checked = run("verify", *arguments)
        assert checked.exit_code == status
        assert checked.stderr.startswith(f"{engines.folder(A)} was built by another version of BEI (schema 1)")


def test_verify_ignores_builds_under_way_and_quarantined_engines(engines: EngineCache) -> None:
    damage(engines, A)
    engines.quarantine_damaged(A)
    (engines.root / f".tmp-{A}-1").mkdir()
    checked = run("verify")
    assert (checked.exit_code, checked.stderr) == (0, "")


# --- prune


def test_prune_without_a_size_removes_only_leftovers(engines: EngineCache) -> None:
    (engines.root / f".tmp-{A}-1").mkdir()
    pruned = run("prune")
    assert [line.partition("  ")[0] for line in pruned.stdout.splitlines()] == [f"removed .tmp-{A}-1", "0.0 MB removed"]
    assert {entry.folder.name for entry in engines.entries()} == {A, B}


def test_prune_without_a_size_does_not_use_the_servers_limit(
    engines: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEI_CACHE_SIZE_GB", "0.000001")
    assert run("prune").stdout == "0.0 MB removed\n"
    assert {entry.folder.name for entry in engines.entries()} == {A, B}


def test_prune_to_a_size_removes_checkpoints_first(engines: EngineCache, tmp_path: Path) -> None:
    folder = fetch(tmp_path / "cache" / "checkpoints", "1" * 64, 1e9)
    assert run("prune").stdout == "0.0 MB removed\n"
    room = sum(entry.num_bytes for entry in engines.entries())
    pruned = run("prune", "--max-gb", (room + 100) / 1e9)
    assert pruned.stdout.splitlines()[0].startswith(f"removed {folder.name}  checkpoint  0.0 MB")
    assert not folder.exists()
    assert {entry.folder.name for entry in engines.entries()} == {A, B}


def test_prune_to_a_size_keeps_what_is_in_use(engines: EngineCache) -> None:
    lease = engines.lease(A)
    pruned = run("prune", "--max-gb", 0)
    assert pruned.stdout.startswith(f"removed {B}  fake f32  0.0 MB")
    assert [entry.folder.name for entry in engines.entries()] == [A]
    lease.release()
    assert run("prune", "--max-gb", -1).exit_code == 2


# --- push and pull


def test_an_engine_is_pushed_by_the_first_digits_of_its_address_and_pulled(
    engines: EngineCache, tmp_path: Path
) -> None:
    pushed = run("push", "aa", f"file://{tmp_path}/remote")
    url = f"file://{tmp_path}/remote/{A}"
    assert (pushed.exit_code, pushed.stdout) == (0, f"{url}\n")
    pulled = run("pull", url, "--cache-dir", tmp_path / "other")
    assert pulled.stdout == f"{tmp_path}/other/engines/{A}\n"
    assert verify(Path(pulled.stdout.strip())) == verify(engines.folder(A))
    assert run("pull", url, "--output", tmp_path / "engine").stdout == f"{tmp_path}/engine\n"
    assert verify(tmp_path / "engine") == verify(engines.folder(A))


def test_force_pushes_again(engines: EngineCache, tmp_path: Path) -> None:
    remote = f"file://{tmp_path}/remote"
    run("push", A, remote)
    (tmp_path / "remote" / A / "model.bin").unlink()
    run("push", A, remote)
    assert not (tmp_path / "remote" / A / "model.bin").exists(), "the manifest says that it is there"
    assert run("push", A, remote, "--force").exit_code == 0
    verify(tmp_path / "remote" / A)


def test_a_damaged_engine_is_not_pulled(engines: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("push", A, f"file://{tmp_path}/remote")
    (tmp_path / "remote" / A / "model.bin").write_bytes(b"bad!")
    for to in (("--output", tmp_path / "engine"), ("--cache-dir", tmp_path / "other")):
        assert bei(monkeypatch, "pull", f"file://{tmp_path}/remote/{A}", *to) == 65
    assert not (tmp_path / "engine").exists()
    assert not is_engine(tmp_path / "other" / "engines" / A)


@pytest.mark.parametrize("to", ["--output", "--cache-dir"])
def test_an_engine_that_is_another_when_it_is_pulled_is_refused(
    engines: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    url = f"file://{tmp_path}/remote/{A}"
    run("push", A, f"file://{tmp_path}/remote")
    real = RemoteEngine.manifest

    def replaced_afterwards(engine: RemoteEngine) -> Manifest | None:
        made = real(engine)
        (tmp_path / "remote" / A / MANIFEST).write_bytes((engines.folder(B) / MANIFEST).read_bytes())
        return made

    monkeypatch.setattr(RemoteEngine, "manifest", replaced_afterwards)
    refused = run("pull", url, to, tmp_path / "other")
    assert isinstance(refused.exception, EngineCorruptError)
    assert str(refused.exception) == f"engine corrupt: {url}/{MANIFEST} is that of another engine, {B}"


# --- Errors


def test_an_error_is_one_line(
    engines: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(engines, A)
    remote = f"file://{tmp_path}/remote"
    for arguments, status, said in (
        (("verify", "a"), 78, f"2 engines in {engines.root} have an address that begins with 'a'"),
        (("verify", "f"), 78, f"no engines in {engines.root} have an address that begins with 'f'"),
        (("push", "aa", remote), 65, f"engine corrupt: {engines.folder(A)}/model.bin does not have the digest"),
        (("push", B, "/srv/engines"), 65, "error: /srv/engines: no object store"),
        (("pull", f"{remote}/{B}"), 65, f"{remote}/{B} is not an engine: it has no manifest.json"),
        (("pull", "ftp://host/a"), 65, "ftp://host/a: no object store has this scheme; known are s3"),
    ):
        assert bei(monkeypatch, *arguments) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert said in line


def test_pull_replaces_nothing(
    engines: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("push", B, f"file://{tmp_path}/remote")
    (tmp_path / "notes").write_text("the only copy")
    assert bei(monkeypatch, "pull", f"file://{tmp_path}/remote/{B}", "--output", tmp_path / "notes") == 78
    assert capsys.readouterr().err == f"error: {tmp_path}/notes exists already; name a new folder\n"


def test_the_whole_command_ends_as_its_part_does(engines: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bei(monkeypatch, "verify") == 0
    damage(engines, B)
    assert bei(monkeypatch, "verify") == 1
    assert bei(monkeypatch, "list") == 0
