"""The flags of every command, and their help."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bei_core.cli import main as cli
from bei_core.cli.flags import help_of
from bei_core.config.declaration import declared
from bei_core.config.settings import SETTINGS, Settings
from bei_core.errors import ConfigError
from bei_core.serving.service import Service

BARE = {name: "" for setting in SETTINGS.values() for name in setting.variables if "API_KEY" not in name}


def serve(served: list[Settings], *words: str, **environ: str) -> Settings:
    result = CliRunner().invoke(cli.app, ["serve", *words], env={**BARE, **environ}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return served[-1]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, those of groups too."""
    ctx = click.Context(cli.app)
    for name in cli.app.list_commands(ctx):
        command = cli.app.get_command(ctx, name)
        assert command is not None
        inner = command.commands.items() if isinstance(command, click.Group) else ()
        yield name, command
        yield from ((f"{name} {inner_name}", each) for inner_name, each in inner)


COMMANDS = dict(commands())


def help_text(name: str) -> str:
    """A command's help in one line."""
    result = CliRunner().invoke(cli.app, [*name.split(), "--help"], terminal_width=4000)
    assert result.exit_code == 0
    return " ".join(result.output.split())


# --- Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_flag_has_a_description(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
            assert option.help[0].isupper(), option.help
            assert "noqa" not in option.help


@pytest.mark.parametrize("name", ["serve", "build", "embed"])
def test_help_shows_every_setting_with_its_choices_and_its_default(name: str) -> None:
    shown = help_text(name)
    for setting in SETTINGS.values():
        for flag in setting.flags:
            assert f"{flag} " in shown or f"{flag}, " in shown
        assert help_of(setting) in shown
        assert "|".join(setting.choices) in shown
        if setting.default_text and not setting.about.no_effect:
            assert f"{setting.description} [default: {setting.default_text}]" in shown


def test_brackets_are_in_the_help_as_they_were_written() -> None:
    assert "Port to listen on; 0 takes a free one. [default: 7997]" in help_text("serve")
    assert "Address to listen on. [default: 0.0.0.0]" in help_text("serve")
    assert "'bei-core[bench]'" in help_text("bench")
    assert "[tiny|short|mixed|long]" in help_text("bench")


def test_a_default_of_none_is_described_in_words() -> None:
    for name, setting in SETTINGS.items():
        if setting.default is None and name not in {"model_id", "trt_llm", "prometheus_port"}:
            assert setting.default_text, f"{name} needs About(unset=...)"


# --- What flags give


def test_every_setting_can_be_given_by_its_flag(served: list[Settings], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("name: {key: sesame}")
    texts = {bool: "true", int: "5", float: "0.5", tuple: "a/b", Path: __file__, str: "http://x"}
    block = {"build": {"base_model": "encoder", "checkpoint_repository": {"source": "HF", "repo": "owner/name"}}}
    texts_of = {
        "trt_llm": json.dumps(block),
        "auto_truncate": "false",
        "ui": "false",
        "api_keys_file": str(keys),
        "devices": "0,1",
        "torch_compile": "false",
    }
    default = serve(served)
    for name, setting in SETTINGS.items():
        text = texts_of.get(name) or (setting.choices[-1] if setting.choices else texts[setting.plain])
        for flag in setting.flags:
            assert getattr(serve(served, flag, text), name) != getattr(default, name), flag


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--auto-truncate"], True),
        (["--auto-truncate", "true"], True),
        (["--auto-truncate", "false"], False),
        (["--auto-truncate=false"], False),
        (["--auto-truncate=True"], True),
        (["--no-auto-truncate"], False),
        (["--auto-truncate", "false", "--auto-truncate", "--json-output"], True),
    ],
)
def test_a_boolean_flag_may_have_a_value(served: list[Settings], words: list[str], value: bool) -> None:
    assert serve(served, *words, AUTO_TRUNCATE="false").auto_truncate is value


def test_a_text_after_a_boolean_flag_stays_a_text() -> None:
    for words in (["--refresh", "a text"], ["--refresh", "--", "false"], ["--no-refresh", "false"]):
        command = cli.app.get_command(click.Context(cli.app), "embed")
        assert command is not None
        ctx = command.make_context("embed", list(words))
        assert ctx.params["texts"] == (words[-1],)


@pytest.mark.parametrize("command", ["serve", "build"])
def test_a_model_that_is_given_as_a_word_is_an_error_that_names_the_flag(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "owner/name"], env=BARE, standalone_mode=False)
    assert str(done.exception) == "Got unexpected extra argument (owner/name); a model is given with --model-id"


def test_a_list_is_a_flag_given_several_times_and_origins_may_have_commas(served: list[Settings]) -> None:
    flag = "--cors-allow-origin"
    assert serve(served, flag, "https://a", flag, "https://b").cors_allow_origin == ("https://a", "https://b")
    assert serve(served, flag, "https://a, https://b").cors_allow_origin == ("https://a", "https://b")
    assert serve(served, "--model", "x,y").models == ("x,y",)


@pytest.mark.parametrize("text", ["last-token", "last_token", "LAST_TOKEN"])
def test_choices_may_be_written_as_text_embeddings_inference_writes_them(served: list[Settings], text: str) -> None:
    assert serve(served, "--pooling", text).pooling == "last_token"
    assert serve(served, POOLING=text).pooling == "last_token"


def test_log_level_comes_from_flag_and_environment(served: list[Settings]) -> None:
    assert serve(served).log_level == "info"
    assert logging.getLogger().level == logging.INFO
    assert serve(served, BEI_LOG_LEVEL="DEBUG").log_level == "debug"
    assert logging.getLogger().level == logging.DEBUG
    assert serve(served, "--log-level", "error", BEI_LOG_LEVEL="debug").log_level == "error"
    assert logging.getLogger().level == logging.ERROR
    assert serve(served, LOG_LEVEL="text_embeddings_router=info").log_level == "info", "it may be another program's"


def test_bench_has_a_flag_for_each_described_option_and_no_other() -> None:
    from bei_core.bench import Options

    fields = declared(Options)
    assert {name for name, field in fields.items() if not field.description} == {"client_cpus", "counters"}
    assert all(field.flags[0] in help_text("bench") for field in fields.values() if field.description)


# --- API keys


def test_a_key_may_come_from_a_file(served: list[Settings], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("se same\r\n")
    assert serve(served, "--api-key-file", str(key)).api_key == "se same"
    assert serve(served, BEI_API_KEY_FILE=str(key)).api_key == "se same"
    assert serve(served, "--api-key", "other", BEI_API_KEY_FILE=str(key)).api_key == "other"
    assert serve(served, "--api-key-file", str(key), API_KEY="other").api_key == "se same"


def test_the_error_for_a_bad_key_file_names_the_fault(served: list[Settings], tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (("empty", "is empty"), ("bytes", "not UTF-8"), ("none", "No such file"), (".", "directory")):
        with pytest.raises(ConfigError, match=f"api_key_file .*{said}"):
            serve(served, "--api-key-file", str(tmp_path / name))
    with pytest.raises(ConfigError, match="api_key and api_key_file exclude each other; give one of them"):
        serve(served, "--api-key", "a", "--api-key-file", str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["BEI_API_KEY", "API_KEY", "BEI_API_KEY_FILE", "BEI_API_KEYS_FILE"])
def test_an_empty_key_does_not_open_the_server(served: list[Settings], name: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {name} is set and empty; give it a value, or remove"):
        serve(served, **{name: ""})
    with pytest.raises(ConfigError, match=r"--api-key is \*\*\*"):
        serve(served, "--api-key", "")
    assert served == []


@pytest.mark.parametrize("key", [" ", "\t\n", "\u00a0"])
def test_a_key_of_spaces_does_not_open_the_server(served: list[Settings], tmp_path: Path, key: str) -> None:
    file, config = tmp_path / "key", tmp_path / "config.yaml"
    file.write_text(key)
    config.write_text(f"model_metadata: {{bei: {{api_key: {json.dumps(key)}}}}}")
    flags = [("--api-key", key), ("--api-key-file", str(file)), ("--config", str(config))]
    sources: list[tuple[tuple[str, ...], dict[str, str]]] = [*((flag, {}) for flag in flags)]
    sources += [((), {name: key}) for name in ("BEI_API_KEY", "API_KEY")] + [((), {"BEI_API_KEY_FILE": str(file)})]
    for words, environ in sources:
        with pytest.raises(ConfigError, match="nothing but spaces"):
            serve(served, *words, **environ)
    assert served == []


def test_an_empty_secret_does_not_open_the_server() -> None:
    config = {"secrets": {"api_key": None}, "model_metadata": {"bei": {"model_id": "none"}}}
    for values in ({"api_key": "\n"}, {"api_key": " "}, {}):
        settings = Settings.from_truss_config(config, {}, values)  # as `bei build` of the same folder has them
        with pytest.raises(ConfigError, match="declares the secret api_key, which has no value; give it one"):
            Service.open_all(settings)


def test_an_empty_key_is_no_mistake_where_another_source_gives_one(served: list[Settings], tmp_path: Path) -> None:
    keys, config = tmp_path / "keys.yaml", tmp_path / "config.yaml"
    keys.write_text("a: {key: k}")
    config.write_text("secrets: {api_key: null}")
    serve(served, "--api-key", "k", API_KEY="")
    serve(served, BEI_API_KEYS_FILE=str(keys), API_KEY="")
    serve(served, "--api-key", "k", "--config", str(config))
    serve(served, "--config", str(config), BEI_API_KEY="k", API_KEY="")
    assert [settings.api_key or settings.api_keys_file for settings in served] == ["k", keys, "k", "k"]


# --- secrets in a file with a mistake


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_metadata:\n  bei: {api_key: sesame, port: 1\nmodel_name: m", "is not YAML at line 3, column 11"),
        ("model_metadata: {bei: {api_key:sesame}}", "unknown setting model_metadata.bei.api_key…; did you mean"),
        ("model_metadata:\n  bei:\n    api_key:sesame", "model_metadata.bei must be a mapping"),
    ],
)
def test_a_mistake_in_config_yaml_shows_nothing_of_its_text(
    served: list[Settings], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as raised:
        serve(served, "--config", str(tmp_path / "config.yaml"))
    assert "sesame" not in "".join(traceback.format_exception(None, raised.value, raised.value.__traceback__))
