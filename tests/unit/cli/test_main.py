"""The command line as a whole: version, completion, errors and exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from bei_core.cli import main as cli
from bei_core.cli.signals import SIGTERM_STATUS
from bei_core.engines.manifest import MANIFEST
from bei_core.errors import BeiError, StartError
from bei_core.storage.errors import TransientError
from tests.e2e.environments import ROOT

CONFIG = ROOT / "tests" / "data" / "baseten" / "BEI-Bert-all-MiniLM-L6-v2.yaml"


def bei(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[object, str, str]:
    """Exit code, output and errors of a command line."""
    monkeypatch.setattr(sys, "argv", ["bei", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_the_version_is_printed_without_importing_a_command() -> None:
    source = "import sys; from bei_core.cli.main import main\ntry: main()\nfinally: print(sorted(sys.modules))"
    command = [sys.executable, "-c", source, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    said, modules = done.stdout.splitlines()
    assert (done.returncode, said) == (0, f"bei {version('bei-core')}")
    for heavy in ("numpy", "msgspec", "yaml", "openvino", "starlette", "asyncio"):
        assert repr(heavy) not in modules, heavy
    assert "bei_core.cli.serve" not in modules


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serv"], "No such command 'serv'. Did you mean 'serve'?"),
        (["nothing"], "No such command 'nothing'."),
        (
            ["bench", "--output", "/no/such/folder/r.json"],
            "/no/such/folder is not a folder in which this user can write",
        ),
        (["embed", "one", "--output", "/"], "File '/' is a directory"),
        (["truss", "init", __file__, "--from", "x"], "is a file"),
        (["serve", "--prot", "80"], "No such option '--prot'. Did you mean '--port'?"),
        (["serve", "--port", "http"], "'http' is not a valid integer"),
        (["serve", "--port", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["serve", "--cache-size-gb", "0"], "0.0 is not in the range x>0"),
        (["serve", "--dtype", "fp32"], "'fp32' is not one of 'auto', 'float32', 'bfloat16', 'float16', 'int8'"),
        (["serve", "--auto-truncate=maybe"], "'--auto-truncate' does not take a value"),
        (["serve", "a/b"], "Got unexpected extra argument (a/b)"),
        (["rerank"], "Missing argument 'QUERY'"),
        (["truss", "init", "here"], "Missing option '--from'"),
        (["engines", "push", "a"], "Missing argument 'URL'"),
        (["bench", "--shape", "grpc"], "'grpc' is not one of 'openai', 'tei'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    code, output, errors = bei(capsys, monkeypatch, *words)
    assert (code, output) == (2, "")
    assert said in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["pull"], "no model is given"),
        (["serve", "--hostname", ""], "--hostname is ''"),
        (["serve", "--model-id", "m", "--hostname", "a..b"], "'a..b' is no address to listen on"),
        (["serve", "--model-id", os.fsdecode(b"/m\xff")], "--model-id is not text in UTF-8"),
        (["serve", "--trt-llm", "{"], "trt_llm is not JSON"),
        (["build", "--model", "a", "--model", "b", "--output", "x"], "2 models are given; give one"),
        (["bench", "--num-requests", "0"], "`num_requests` must be at least 1"),
        (["truss", "init", "there", "--from", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_78(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, output, errors = bei(capsys, monkeypatch, *words)
    assert (code, output) == (78, "")
    assert said in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "status", "said"),
    [
        ({"config.json": "{"}, 65, "config.json"),
        ({"config.json": '{"architectures": 3}'}, 65, "architectures"),
        (
            {"config.json": '{"architectures": ["MyBert"], "model_type": "my", "max_position_embeddings": 64}'},
            65,
            "MyBert",
        ),
        ({}, 65, "config.json"),
        ({MANIFEST: "{"}, 65, MANIFEST),
        ({MANIFEST: '{"engine": "fake"}'}, 65, MANIFEST),
    ],
)
def test_a_malformed_model_is_one_line_and_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    files: dict[str, str],
    status: int,
    said: str,
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    cache = ["--cache-dir", str(tmp_path / "cache"), "--port", "0", "--hostname", "127.0.0.1"]
    code, output, errors = bei(capsys, monkeypatch, "serve", "--model-id", str(tmp_path), *cache)
    assert (code, output) == (status, ""), errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in errors


def test_the_exit_codes_are_those_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    documented = set(map(int, re.findall(r"^\| (\d{1,3}) \|", section, re.MULTILINE)))
    kinds: list[type[BeiError]] = [BeiError, TransientError, *StartError.__subclasses__()]
    assert documented == {kind.exit_status for kind in kinds} | {0, 2, 130, SIGTERM_STATUS}


def test_a_folder_that_cannot_be_made_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, errors = bei(capsys, monkeypatch, "truss", "init", "/proc/1/x", "--from", str(CONFIG))
    assert (code, errors) == (74, "error: cannot read or write /proc/1/x: No such file or directory\n")


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bei_core.engines.open.build_engine", full)
    code, _, errors = bei(capsys, monkeypatch, "build", "--model-id", "a/b")
    assert (code, errors) == (74, "error: cannot read or write: No space left on device\n")


def test_a_fault_that_is_not_about_a_file_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("bei_core.engines.open.build_engine", fault)
    monkeypatch.setattr(sys, "argv", ["bei", "build", "--model-id", "a/b"])
    with pytest.raises(ConnectionResetError):
        cli.main()


def test_without_a_command_the_help_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, errors = bei(capsys, monkeypatch)
    assert code == 2
    assert all(name in errors for name in cli.COMMANDS)
    assert bei(capsys, monkeypatch, "--help")[0] == 0


@pytest.mark.parametrize(
    ("words", "environ", "status", "said"),
    [
        (("serve", "--json-output", "--model-id", "/nope"), {}, 65, "/nope is not a folder"),
        (("serve", "--json-output", "--prot", "80"), {}, 2, "No such option '--prot'"),
        (("serve", "--json-output", "--config", "CONFIG"), {}, 78, "is not YAML at line 3"),
        (("build", "--model-id", "/nope"), {"BEI_JSON_OUTPUT": "true"}, 65, "/nope is not a folder"),
        (("serve", "--port", "0"), {"JSON_OUTPUT": "1", "BEI_PROT": "1"}, 78, "unknown environment variable BEI_PROT"),
    ],
)
def test_with_json_output_every_line_is_json(
    tmp_path: Path, words: tuple[str, ...], environ: dict[str, str], status: int, said: str
) -> None:
    (tmp_path / "config.yaml").write_text("model_metadata: {bei: {\nport: [\n")
    given = [word.replace("CONFIG", str(tmp_path / "config.yaml")) for word in words]
    command = [sys.executable, "-m", "bei_core.cli", *given, "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": os.environ["PATH"], **environ}, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, lines[-1]["level"]) == (status, "ERROR"), done.stderr
    assert lines[-1]["message"].startswith("error: ")
    assert said in lines[-1]["message"]


def test_with_json_output_a_bug_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bei_core.engines.open.build_engine", fault)
    code, _, errors = bei(capsys, monkeypatch, "build", "--model-id", "a/b", "--json-output")
    line = json.loads(errors)
    assert (code, line["level"]) == (1, "CRITICAL")
    assert "ZeroDivisionError" in line["traceback"]


def test_an_input_that_ends_early_is_not_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command said `interrupted` and ended with status 130."""

    def cut(*_: object) -> None:
        raise EOFError("the file ends within a value")

    monkeypatch.setattr("bei_core.engines.open.build_engine", cut)
    monkeypatch.setattr(sys, "argv", ["bei", "build", "--model-id", "a/b"])
    with pytest.raises(RuntimeError, match="an input has ended early: the file ends within a value"):
        cli.main()


def test_an_interrupt_is_not_a_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bei_core.engines.open.build_engine", interrupted)
    monkeypatch.setattr("os._exit", sys.exit)  # which would end the tests
    code, _, errors = bei(capsys, monkeypatch, "build", "--model-id", "a/b")
    assert (code, errors.strip()) == (130, "error: interrupted")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    code, script, _ = bei(capsys, monkeypatch, "completion", shell)
    assert code == 0
    assert f"_BEI_COMPLETE={shell}_complete" in script


def test_flags_and_choices_are_completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_BEI_COMPLETE", "bash_complete")
    for words, found in (
        ("bei tr", {"truss"}),
        ("bei serve --quality-r", {"--quality-rank-correlation"}),
        ("bei serve --dtype f", {"float16", "float32"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        code, output, _ = bei(capsys, monkeypatch)
        assert code == 0
        assert {line.partition(",")[2] for line in output.splitlines()} == found


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
def test_a_log_that_cannot_be_written_does_not_change_the_status() -> None:
    """Python ended with status 120, also after a drain in order."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "bei_core.cli", "serve"], cwd=ROOT / "packages", stderr=full)
    assert done.returncode == 78


def test_files_that_the_parent_has_closed_are_opened() -> None:
    """Else a socket is standard output, and a client gets what a library prints."""
    source = "import os; from bei_core.cli import main; main._open_missing_files(); os._exit(os.open('/', os.O_RDONLY))"
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", source]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "packages")}).returncode == 3


def test_without_a_null_device_a_command_runs() -> None:
    source = "import os; os.devnull = '/no/such/file'; from bei_core.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", source, "--version"], cwd=ROOT / "packages", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bei {version('bei-core')}\n", "")


@pytest.mark.parametrize(("words", "status"), [("--version", 0), ("serv", 2)])
def test_a_closed_standard_error_does_not_change_the_status(words: str, status: int) -> None:
    source = "import sys; from bei_core.cli.main import main; sys.stderr.close(); main()"
    assert subprocess.run([sys.executable, "-c", source, words], cwd=ROOT / "packages").returncode == status
